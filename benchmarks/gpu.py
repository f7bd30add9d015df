"""The learner on one GPU: tokens per second, utilisation, memory, and the error of log-probs.

    python benchmarks/gpu.py [--out FILE.json] [--smoke]

Qwen3-0.6B's shape with random weights, one sequence of 16,384 tokens a step, all of them sampled;
adapters of rank 16 and full weights, bfloat16 and float16, our chunked head and Cut Cross-Entropy
(package extra ``gpu``). prime-rl claims for the same on one H100: full weights 11,900 tokens/s,
11.1 % of the peak and 12.5 GiB; adapters of rank 16 13,300 tokens/s and 5.1 GiB. Errors are of log-
probs of a shorter sequence, against the same weights in float64. ``--smoke`` runs all of it on a
toy, anywhere.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from isentrope import ConfigError, Episode, LearnerConfig, LoraConfig, Segment, recipe
from isentrope.episodes import StopReason
from isentrope.learner.accounting import GIB, peak_flops, peak_memory
from isentrope.learner.learner import Learner
from isentrope.learner.packing import Trajectory, collate
from isentrope.learner.policy import Policy
from isentrope.learner.ranks import joined

SHAPE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
TOY: dict[str, Any] = {
    **SHAPE,
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
LENGTH, SHORT, WARM_UP, STEPS = 16_384, 1024, 2, 8


def episode(length: int, vocabulary: int) -> Episode:
    """Make an episode of random tokens, all but the first sampled."""
    ids = np.random.default_rng(0).integers(0, vocabulary, length)
    nothing = np.zeros(length)
    segment = Segment(ids, np.arange(length) > 0, nothing, nothing, nothing)
    return Episode("", 0, 0, (segment,), (), (), success=False, stop_reason=StopReason.TERMINATED)


def exact(model: Qwen3ForCausalLM, one: Episode) -> Tensor:
    """Return log-probs of a short episode's tokens in float64."""
    wide: Any = copy.deepcopy(model)
    wide.double()
    ids = torch.from_numpy(one.segments[0].ids)[None].to(model.device)
    with torch.no_grad():
        logp = wide(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(-1, ids[0, 1:, None])[:, 0].cpu()


def measure(model: Qwen3ForCausalLM, config: LearnerConfig, length: int, short: int) -> Any:
    """Time steps of a learner, and compare its log-probs with float64's."""
    cuda = model.device.type == "cuda"
    one, small = (episode(n, model.config.vocab_size) for n in (length, short))
    truth = exact(model, small)
    with joined(sharded=config.shards(1)) as ranks:
        policy = Policy(copy.deepcopy(model), 1.0, config.lora, config.head)
        learner = Learner(policy, config, ranks)
        (scores,) = learner.scores([small], frozenset())
        error = (scores.logp.double() - truth).abs()
        (old,) = learner.scores([one], frozenset())
        trajectory = Trajectory(one, 0, old, torch.ones(len(old.logp)))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for step in range(WARM_UP + STEPS):
            start = time.perf_counter()
            learner.step(recipe("grpo"), [trajectory], nominal_sequences=1, step=step)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        took = median(seconds[WARM_UP:])
        inputs = collate([one], learner.device, config.torch_dtype)
        flops = policy.flops(inputs) * (3 if config.lora is None else 2)
        return {
            "tokens_per_second": length / took,
            "flop_utilisation": flops / took / peak_flops(learner.device, config.torch_dtype),
            "peak_gib": peak_memory(learner.device),
            "logp_error_mean": float(error.mean()),
            "logp_error_max": float(error.max()),
        }


def main() -> None:
    """Measure every combination, and print a table."""
    parser = argparse.ArgumentParser(description="Measure the learner on one GPU.")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--smoke", action="store_true", help="a toy, on whatever there is")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.smoke:
        raise SystemExit("There is no GPU here; --smoke runs a toy on the CPU.")
    shape, length, short = (TOY, 256, 64) if arguments.smoke else (SHAPE, LENGTH, SHORT)
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(Qwen3Config(**shape)).to(device)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    weights = sum(p.numel() for p in model.parameters()) * 4 / GIB
    print(
        f"{name}, torch {torch.__version__}, {length} tokens a step, {weights:.1f} GiB of weights"
    )
    print(f"{'':>44} {'tokens/s':>9} {'of peak':>8} {'GiB':>6} {'error':>9} {'largest':>9}")
    found: dict[str, Any] = {}
    for lora in (LoraConfig(r=16, alpha=32.0), None):
        for dtype in ("bfloat16", "float16"):
            for head in ("chunked", "cut-cross-entropy"):
                config = LearnerConfig(
                    dtype=dtype,  # type: ignore[arg-type]  # one of them
                    head=head,  # type: ignore[arg-type]  # one of them
                    lora=lora,
                    micro_batch_tokens=length,
                    activation_checkpointing=True,
                )
                title = f"{'adapters' if lora else 'full weights'}, {dtype}, {head}"
                try:
                    row = measure(model, config, length, short)
                except ConfigError as error:  # no package for it, say
                    print(f"{title:>44} {error}")
                    continue
                found[title] = row
                print(
                    f"{title:>44} {row['tokens_per_second']:>9,.0f} "
                    f"{row['flop_utilisation']:>8.1%} {row['peak_gib']:>6.1f} "
                    f"{row['logp_error_mean']:>9.2g} {row['logp_error_max']:>9.2g}"
                )
    if arguments.out:
        arguments.out.write_text(json.dumps({"device": name, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
