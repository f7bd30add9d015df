"""Rehearsal: whether the largest batch of a run fits into memory, found out before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from isentrope.config import LearnerConfig
from isentrope.episodes import Episode, Segment, StopReason
from isentrope.errors import TrainingError
from isentrope.learner.accounting import peak_memory
from isentrope.learner.head import KNOWN
from isentrope.learner.learner import Learner
from isentrope.learner.packing import ATTENDED, collate


def rehearse(learner: Learner, context: int, needs: frozenset[str]) -> float:
    """Go through the largest micro-batches that there can be; return peak memory, GiB.

    context: tokens of the longest episode. needs: what the algorithm needs. No weight changes.

    Raises `TrainingError` where it does not fit into memory: now, and not after hours.
    """
    config = learner.config
    try:
        for _ in range(2):  # the second time beside the gradients of the first
            for episodes in fullest(context, config.micro_batch_tokens):
                inputs = collate(episodes, learner.device, config.torch_dtype)
                scores = learner.policy(inputs, needs=needs & KNOWN)
                total = sum(column.sum() for column in scores if column is not None)
                (0.0 * total).backward()
                del inputs, scores, total
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _lacks_memory(error):
            raise
        raise TrainingError(advice(config, context, _first_line(error))) from error
    learner.release()
    return peak_memory(learner.device)


@contextmanager
def placing(config: LearnerConfig) -> Iterator[None]:
    """Raise `TrainingError` where the policy alone does not fit into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _lacks_memory(error):
            raise
        ways = ["start more ranks"]
        if config.torch_dtype == torch.float32:
            ways.append("set learner.dtype = 'bfloat16'")
        if config.lora is None:
            ways.append("train adapters (learner.lora = {})")
        raise TrainingError(
            f"The policy does not fit into memory ({_first_line(error)}): {', or '.join(ways)}; "
            "`isentrope train --dry-run` says how much a run needs."
        ) from error


def fullest(context: int, budget: int) -> list[list[Episode]]:
    """Make the packs that take most memory: of an episode longer than the budget, and the fullest.

    That has as many tokens as the budget, and as many in rows as there may be: three rollouts of a
    prompt three times as long as their answers, so that half of the rows is shared, and groups as
    long as may be, the last one as long as fits.
    """
    left, groups = ATTENDED * budget // 3, []
    while left > 1:
        groups.append(min(left, context))
        left -= groups[-1]
    packs = [[_filled(n, 3 * n // 4, i) for i, n in enumerate(groups) for _ in range(3)]]
    if context > budget:
        packs.append([_filled(context, 1, 0)])
    return [pack for pack in packs if pack]


def _filled(length: int, prompt: int, number: int) -> Episode:
    """Make an episode of so many tokens after a prompt that has its number in it."""
    ids, nothing = np.zeros(length, np.int64), np.zeros(length)
    bits = [int(bit) for bit in f"{number:b}"[::-1]][:prompt]
    ids[: len(bits)] = bits
    segment = Segment(ids, np.arange(length) >= prompt, nothing, nothing, nothing)
    return Episode("", 0, 0, (segment,), (), (), success=False, stop_reason=StopReason.CONTEXT)


def _lacks_memory(error: RuntimeError) -> bool:
    known = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in known)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def advice(config: LearnerConfig, context: int, reason: str) -> str:
    """Say that the largest micro-batch does not fit, and what to change."""
    tokens = max(config.micro_batch_tokens, context)
    ways = [f"lower learner.micro_batch_tokens ({config.micro_batch_tokens})"]
    if context >= config.micro_batch_tokens:
        ways = [f"lower rollout.context ({context})"]
    if not config.activation_checkpointing:
        ways.append("set learner.activation_checkpointing = true")
    if config.lora is None:
        ways.append("train adapters (learner.lora = {})")
    return (
        f"A micro-batch of {tokens} tokens, the largest that this run may meet, does not fit into "
        f"memory ({reason}): {', or '.join(ways)}."
    )
