"""Sampling: tokens per second of the embedded engine against `model.generate`, side by side.

Both sample the same prompts from the same random weights on one thread, at temperature 1 without
truncation, up to the same number of new tokens, with a key-value cache and batches of the same
size. `generate` gets its prompts padded on the left, with their mask, and returns ids; the engine
gets them through `generate` calls of its own, one task each, and returns log-probabilities as well.

- prompts "equal": all of one length; "mixed": of lengths from half of that on. All are distinct:
  what the engine saves on the shared prompts of a group is not counted.
- ends "full": nobody stops, so both draw the same number of tokens; "uneven": one token id in 24
  stops a row, for `generate` as its `eos_token_id`. Only tokens up to a row's end are counted.

The two take turns in one process, so that a busy machine slows both down. Reported are medians over
the turns: tokens per second of CPU time (one thread works at a time, so that on an idle machine it
is wall-clock time, and on a busy one it is not the neighbours'), the ratio of the two in adjacent
turns, and the same ratio by wall clock.

    python benchmarks/sampling.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from isentrope import Engine, EngineUse, LanguageModel, Sampling
from isentrope_plugins.sampler.engine import TransformersEngine

PROMPT = 20
NEW = 32
STOPS_ONE_IN = 24

TINY = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}
MEDIUM = TINY | {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "Qwen3 0.1M": lambda: Qwen3(Qwen3Config(**TINY)),
    "Llama 0.1M": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "Qwen3 25M": lambda: Qwen3(Qwen3Config(**MEDIUM)),
}

Prompts = Sequence[Sequence[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the embedded engine against generate.")
    parser.add_argument("--quick", action="store_true", help="fewer turns, no large model")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print("model       batch prompts   ends   engine generate ratio  wall")
    for name, build in MODELS.items():
        large = name.endswith("25M")
        if large and quick:
            continue
        turns = 3 if quick or large else 9
        compare_model(name, build, batches=[64] if large else [64, 256], turns=turns)


def compare_model(
    name: str, build: Callable[[], PreTrainedModel], *, batches: Sequence[int], turns: int
) -> None:
    """Print one line per workload of one model."""
    torch.manual_seed(0)
    model = build().eval()
    vocabulary = model.config.vocab_size
    engine = TransformersEngine().build(
        LanguageModel(model, tokenizer=None), EngineUse(context=256)
    )
    for batch, mixed, uneven in itertools.product(batches, (False, True), (False, True)):
        prompts = make_prompts(batch, vocabulary, mixed=mixed)
        stops = list(range(0, vocabulary, STOPS_ONE_IN)) if uneven else []
        numbers = compare(model, engine, prompts, stops, turns)
        kind = f"{'mixed' if mixed else 'equal':>7} {'uneven' if uneven else 'full':>6}"
        print(f"{name:<11} {batch:>5} {kind} {numbers}", flush=True)
    asyncio.run(engine.close())


def make_prompts(count: int, vocabulary: int, *, mixed: bool) -> Prompts:
    """Return distinct random prompts."""
    lengths = [PROMPT - (i % (PROMPT // 2 + 1) if mixed else 0) for i in range(count)]
    return [torch.randint(vocabulary, (length,)).tolist() for length in lengths]


def compare(
    model: PreTrainedModel, engine: Engine, prompts: Prompts, stops: list[int], turns: int
) -> str:
    """Return the numbers of one line."""
    rates = []
    for turn in range(turns + 1):
        ours = rate(lambda seed=turn: sample(engine, prompts, stops, seed))
        theirs = rate(lambda seed=turn: generate(model, prompts, stops, seed))
        rates.append((*ours, *theirs))
    rates = rates[1:]  # the first turn warms up
    ours_cpu, theirs_cpu = (median(row[i] for row in rates) for i in (0, 2))
    ratio_cpu, ratio_wall = (median(row[i] / row[i + 2] for row in rates) for i in (0, 1))
    return f"{ours_cpu:>8,.0f} {theirs_cpu:>8,.0f} {ratio_cpu:>5.2f} {ratio_wall:>5.2f}"


def rate(draw: Callable[[], int]) -> tuple[float, float]:
    """Return tokens per second of CPU and of wall-clock time; `draw` returns how many it drew."""
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = draw()
    return tokens / (time.process_time() - cpu), tokens / (time.perf_counter() - wall)


def sample(engine: Engine, prompts: Prompts, stops: list[int], seed: int) -> int:
    """Draw with the engine."""

    async def together() -> int:
        samplings = (
            Sampling(max_tokens=NEW, stop_ids=stops, seed=seed * len(prompts) + i)
            for i in range(len(prompts))
        )
        waiting = map(engine.generate, prompts, samplings)
        return sum(len(completion.ids) for completion in await asyncio.gather(*waiting))

    return asyncio.run(together())


def generate(model: PreTrainedModel, prompts: Prompts, stops: list[int], seed: int) -> int:
    """Draw with transformers."""
    torch.manual_seed(seed)
    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * pad + list(p) for pad, p in zip(pads, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    drawn = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=stops or None,
        pad_token_id=0,
    )[:, width:]
    ended = torch.isin(drawn, torch.tensor(stops, dtype=torch.long)).long().cumsum(1)
    before = (ended == 0).sum(1)
    return int((before + (before < drawn.shape[1])).sum())


if __name__ == "__main__":
    main()
