"""What `test_memory` has real processes do: each rank measures what its learner takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Qwen3Config

from isentrope import LearnerConfig, LoraConfig
from isentrope.learner.head import KNOWN
from isentrope.learner.learner import Learner
from isentrope.learner.memory import LearnerMemory, learner_memory
from isentrope.learner.packing import collate
from isentrope.learner.policy import Policy
from isentrope.learner.ranks import Ranks, joined
from isentrope.learner.rehearsal import fullest

LORA = LoraConfig(r=4)
CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "adapters": {"lora": LORA},
    "recomputed": {"activation_checkpointing": True},
    "adapters recomputed": {"lora": LORA, "activation_checkpointing": True},
    "bfloat16": {"dtype": "bfloat16"},
    "adapters in bfloat16": {"lora": LORA, "dtype": "bfloat16", "activation_checkpointing": True},
    "adapters of the head": {"lora": LoraConfig(r=4, head=True)},
}
SHAPES: dict[str, dict[str, Any]] = {
    "wide": {"hidden_size": 192, "vocab_size": 1003, "num_attention_heads": 6},
    "deep": {"num_hidden_layers": 7, "num_key_value_heads": 4},
    "large vocabulary": {"vocab_size": 60_000, "hidden_size": 64},
}
CONTEXT, BUDGET = 256, 512
REHEARSALS = 5
"""The least counts: about once in thirty, a thread of gloo's lets go of a message late."""


def architecture(shape: str) -> Qwen3Config:
    plain: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
    }
    return Qwen3Config(**plain | SHAPES[shape])


@cache
def planned(
    shape: str, case: str, ranks: int, needs: frozenset[str], device: str = "cpu"
) -> LearnerMemory:
    config = LearnerConfig(micro_batch_tokens=BUDGET, **CASES[case])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture(shape), dtype=torch.float32)
    policy = Policy(model, 1.0, config.lora)
    return learner_memory(policy, config, ranks=ranks, context=CONTEXT, needs=needs, device=device)


def work(shape: str, case: str, needs: frozenset[str], ranks: Ranks) -> dict[str, int]:
    """Return what there is, bytes: static parts by walking over tensors, peaks by the allocator."""
    config = LearnerConfig(micro_batch_tokens=BUDGET, **CASES[case])
    model = AutoModelForCausalLM.from_config(architecture(shape), dtype=torch.float32)
    learner = Learner(Policy(model, 1.0, config.lora), config, ranks)
    policy = learner.policy
    trained = policy.trainable()
    learner.release()
    (episodes,) = fullest(CONTEXT, BUDGET)
    inputs = collate(episodes, learner.device, config.torch_dtype)

    def rehearse() -> None:
        scores = policy(inputs, needs=needs & KNOWN)
        total = sum(column.sum() for column in scores if column is not None)
        del scores
        (0.0 * total).backward()

    rehearse()  # gradients are there from now on
    before = _storages(p.grad for p in trained if p.grad is not None)
    state = [x for p in trained for x in learner.optimizer.state[p].values()]
    return {
        "frozen": _storages(p for p in policy.parameters() if not p.requires_grad),
        "trained": _storages(trained),
        "gradients": before,
        "optimizer": _storages(state),
        "peak": min(allocated(rehearse) for _ in range(REHEARSALS)),
        "saved": saved(lambda: policy(inputs, needs=needs & KNOWN), policy),
    }


def allocated(function: Callable[[], None]) -> int:
    """Return the most bytes that torch's allocator had given out beside those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def saved(function: Callable[[], Any], policy: Policy) -> int:
    """Return the bytes of what autograd keeps, parameters left out."""
    known = {t.untyped_storage()._cdata for t in (*policy.parameters(), *policy.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = function()
    del scores
    return sum(storage.nbytes() for storage in kept.values())


def _storages(tensors: Iterable[Tensor]) -> int:
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in local}.values())


SHARDED = [
    ("wide", "whole"),
    ("wide", "adapters"),
    ("deep", "recomputed"),
    ("deep", "adapters in bfloat16"),
    ("large vocabulary", "whole"),
    ("wide", "bfloat16"),
]


def main() -> None:
    torch.set_num_threads(1)
    with joined(sharded=True) as ranks:
        found = {case: work(*case, frozenset(), ranks) for case in SHARDED}
    torch.save(found, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
