"""Random tokens for `check_objective`.

Shape legend: T tokens, S episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from isentrope.parts import TokenBatch

LENGTHS = (5, 1, 7, 4, 6, 3)  # tokens of each episode
GROUP = 2


def random_batch(
    seed: int, *, on_policy: bool, needs: frozenset[str], double: bool = False
) -> TokenBatch:
    """Return a batch of ordinary tokens: ratios around 1, advantages of both signs, a masked few.

    on_policy: whether all ratios are exactly 1. needs: what beside log-probs, of `parts.NEEDS`.
    double: float64 in place of float32.
    """
    rng = torch.Generator().manual_seed(seed)
    count, dtype = sum(LENGTHS), torch.float64 if double else torch.float32

    def normal() -> Tensor:
        return torch.randn(count, generator=rng, dtype=torch.float64)

    old = -(normal().abs() + 0.02)
    drift = torch.zeros_like(old) if on_policy else 0.3 * normal()
    mask = torch.rand(count, generator=rng) > 0.25
    mask[: LENGTHS[0]] = True  # the first episode is whole, so that something always is
    return _batch(
        logp=(old + drift).clamp(max=-1e-3).to(dtype),
        old_logp=old.clamp(max=-1e-3).to(dtype),
        advantage=normal().to(dtype),
        mask=mask,
        lengths=LENGTHS,
        step=0 if on_policy else 1,
        entropy=(normal().abs() + 0.1).to(dtype) if "entropy" in needs else None,
        response=(0.1 * normal()).to(dtype) if "entropy_response" in needs else None,
        reference=(old + 0.3 * normal()).to(dtype) if "reference_logp" in needs else None,
    )


def extreme_batch(*, on_policy: bool, needs: frozenset[str]) -> TokenBatch:
    """Return every combination of nearly impossible, likely and certain, with all advantages."""
    values = torch.tensor([-80.0, -1.0, 0.0])
    old, new, advantage = torch.cartesian_prod(
        values, values, torch.tensor([-3.0, 0.0, 3.0])
    ).unbind(1)
    return _batch(
        logp=(old if on_policy else new).clone(),
        old_logp=old.clone(),
        advantage=advantage.clone(),
        mask=torch.ones(len(old), dtype=torch.bool),
        lengths=(3,) * (len(old) // 3),
        step=0 if on_policy else 1,
        entropy=-new * new.exp() if "entropy" in needs else None,
        response=new * new.exp() if "entropy_response" in needs else None,
        reference=old.flip(0) if "reference_logp" in needs else None,
    )


def scramble_masked(batch: TokenBatch, seed: int) -> TokenBatch:
    """Return the same batch with other values in its masked tokens."""
    rng = torch.Generator().manual_seed(1000 + seed)

    def other(values: Tensor) -> Tensor:
        strange = 5 * torch.randn(values.shape, generator=rng, dtype=values.dtype)
        return values.detach().where(batch.mask, strange)

    changed: dict[str, Any] = {
        name: other(tensor)
        for name, tensor in batch.tensors().items()
        if tensor.is_floating_point()
    }
    return attrs.evolve(batch, **changed)


def split(batch: TokenBatch) -> Iterator[tuple[Tensor, TokenBatch]]:
    """Cut a batch into micro-batches of whole episodes, with each one's positions in the batch."""
    for episodes in torch.arange(batch.num_sequences).tensor_split((1, 4)):
        positions = torch.isin(batch.sequence, episodes).nonzero()[:, 0]
        parts: dict[str, Any] = {name: x[positions] for name, x in batch.tensors().items()}
        parts["sequence"] = parts["sequence"] - episodes[0]
        yield positions, attrs.evolve(batch, **parts, num_sequences=len(episodes))


def _batch(
    *,
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    lengths: tuple[int, ...],
    step: int,
    entropy: Tensor | None,
    response: Tensor | None,
    reference: Tensor | None,
) -> TokenBatch:
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return TokenBatch(
        logp=logp.requires_grad_(),
        old_logp=old_logp,
        engine_logp=old_logp.clone(),
        advantage=advantage,
        mask=mask,
        sequence=sequence,
        group=sequence // GROUP,
        turn=torch.zeros_like(sequence),
        num_sequences=len(lengths),
        step=step,
        entropy=None if entropy is None else entropy.requires_grad_(),
        entropy_response=response,
        reference_logp=reference,
    )
