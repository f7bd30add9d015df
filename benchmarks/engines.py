"""The embedded engine and a vLLM server side by side: tokens a second, publications, whole runs.

    python benchmarks/engines.py            # about fifteen minutes; needs isentrope vllm install
    python benchmarks/engines.py --quick    # the tiny model only, fewer requests

Both sides sample the same prompts in turns, an adapter published to both; the ratio is of medians.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import isentrope
from isentrope import Engine, EngineUse, LanguageModel, Sampling, WeightsRef, component
from isentrope.testing._model import adapted
from isentrope_plugins.tiny.tokenizer import train_tokenizer
from isentrope_plugins.vllm.place import Place
from isentrope_plugins.vllm.server import Server, ServerOptions

PROMPT, NEW, CONTEXT, RANK, ROUNDS = 64, 128, 512, 8, 3
CONCURRENCY = (1, 8, 32, 128)
SIZES = {"0.4M": (128, 2, 32), "25M": (512, 8, 64)}
"""Hidden size, layers, size of a head; vLLM's kernels for CPUs take heads of 32 and more."""


def make(size: str, folder: Path) -> LanguageModel:
    """Return a random Qwen3, from a folder that a server can read, too."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, layers, head = SIZES[size]
    tokenizer = train_tokenizer(["What is 6 * 7? It is 42."] * 20, 512)
    config = Qwen3Config(
        vocab_size=512, hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=hidden // head,
        num_key_value_heads=max(1, hidden // head // 2), head_dim=head,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LanguageModel(Qwen3ForCausalLM(config), tokenizer).save(folder)
    return LanguageModel.load(folder)


async def timed(work: Awaitable[object]) -> float:
    """Return the seconds that it takes."""
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def sample(engine: Engine, requests: int) -> None:
    """Draw as many completions at once, of prompts that differ."""
    sampling = Sampling(max_tokens=NEW)
    generator = torch.Generator().manual_seed(requests)
    prompts = torch.randint(10, 300, (requests, PROMPT), generator=generator).tolist()
    drawn = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))
    assert all(len(one.ids) == NEW for one in drawn)


async def sampling(size: str, concurrency: Sequence[int]) -> None:
    """Print tokens a second at each concurrency, and how long a publication takes."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(size, Path(folder))
        use = EngineUse(context=CONTEXT, rank=RANK)
        options = ServerOptions(
            model=folder, context=CONTEXT, max_lora_rank=RANK, flags=("--max-num-seqs", "128")
        )
        server = Server.start(options)
        try:
            await asyncio.to_thread(server.wait_ready)
            config: Any = component("engine", "vllm", urls=[server.url])
            engines: dict[str, Engine] = {
                "embedded": component("engine", "transformers").build(model, use),
                "vLLM": config.build(model, use),
            }
            await _compared(size, engines, adapted(model, RANK, seed=1), concurrency)
            for engine in engines.values():
                await engine.close()
        finally:
            await asyncio.to_thread(server.stop)


async def _compared(
    size: str, engines: dict[str, Engine], adapter: Any, concurrency: Sequence[int]
) -> None:
    refs = {"embedded": {"tensors": adapter[1]}, "vLLM": {"adapter": adapter[0]}}
    took: dict[str, list[float]] = {name: [] for name in engines}
    for version in range(1, ROUNDS + 2):
        for name, engine in engines.items():
            ref = WeightsRef(version, **refs[name])
            took[name].append(await timed(engine.publish(ref)))
    publications = {name: 1000 * median(seconds[1:]) for name, seconds in took.items()}
    for at_a_time in concurrency:
        speeds: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(ROUNDS + 1):
            for name, engine in engines.items():
                seconds = await timed(sample(engine, at_a_time))
                if turn:  # the first warms up
                    speeds[name].append(at_a_time * NEW / seconds)
        ours, theirs = (median(speeds[name]) for name in ("embedded", "vLLM"))
        print(f"| {size} | {at_a_time} | {ours:,.0f} | {theirs:,.0f} | {theirs / ours:.2f} |")
    said = ", ".join(f"{name} {ms:.0f} ms" for name, ms in publications.items())
    print(f"{size}: a publication takes: {said}")


def runs(iterations: int) -> None:
    """Print seconds an iteration, and the share spent waiting, in turns and collecting ahead."""
    print("\n| engine | staleness | s / iteration | tokens / s | waiting | learning |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("transformers", "vllm"):
            for staleness in (0, 1, 2):
                print(_row(engine, staleness, iterations, Path(folder)), flush=True)


def _row(engine: str, staleness: int, iterations: int, folder: Path) -> str:
    transform = component("transform", "truncated-importance")
    ends: list[float] = []
    run = isentrope.train(
        env="guess",
        algorithm=isentrope.recipe("grpo", transforms=[transform], minibatch=32),
        engine=engine,
        model={"hidden_size": 128, "context": CONTEXT, "warmup_steps": 100, "warmup_batch": 64},
        learner={"lora": {"r": RANK}, "lr": 1e-3, "probe": 0},
        rollout={"tasks": 8, "group": 8, "max_tokens": 24, "staleness": staleness},
        iterations=iterations,
        out=folder / f"{engine}-{staleness}",
        on_iteration=lambda _: ends.append(time.perf_counter()),
    )
    metrics = run.metrics[2:]  # the first ones fill caches
    each = (ends[-1] - ends[1]) / len(metrics)
    tokens = sum(m["tokens"] for m in metrics) / len(metrics) / each
    share = {
        phase: median(m[f"seconds/{phase}"] for m in metrics) / each
        for phase in ("rollout", "learn")
    }
    cells = f"{each:.2f} | {tokens:,.0f} | {share['rollout']:.0%} | {share['learn']:.0%}"
    return f"| {engine} | {staleness} | {cells} |"


def main() -> None:
    """Run it all."""
    if Place.default().device is None:
        sys.exit(f"vLLM is not in {Place.default().root}: isentrope vllm install")
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    print(
        "| model | at once | embedded, tokens/s | vLLM, tokens/s | ratio |\n|---|--:|--:|--:|--:|"
    )
    for size in ["0.4M"] if quick else SIZES:
        asyncio.run(sampling(size, CONCURRENCY[:3] if quick else CONCURRENCY))
    runs(6 if quick else 12)


if __name__ == "__main__":
    main()
