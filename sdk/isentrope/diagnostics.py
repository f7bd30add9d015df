"""The paper's theory as instruments: plain functions of what training has at hand.

Each takes tensors [T], one value per sampled token, computes in float64 and returns plain numbers.
An iteration that learns logs them: docs/diagnostics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from isentrope.errors import UnknownNameError

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def predicted_entropy_change(
    advantage: Tensor, entropy_response: Tensor, weight: Tensor | None = None
) -> float:
    """Return the first-order change of entropy, nats per token and unit of learning rate.

    Of a policy-gradient step in the logits, as if each state had its own:
    ``sum_t w A response / sum_t w``, with ``response = -(pi * L - sum_a pi_a^2 L_a)``,
    ``L = log pi + H``. In expectation over the sampled tokens it is Cor. 2,
    ``-sum_a pi_a^2 (A - E A)(a) L(a)``, exact for a softmax per state; of a network whose states
    share parameters it compares transforms, and tells neither the size nor always the sign.

    weight: [T], the tokens' weights in the loss (`TokenBatch.weight`); None: all alike.
    """
    change = advantage.detach().double() * entropy_response.detach().double()
    if weight is None:
        return float(change.mean())
    return float((weight.double() * change).sum() / weight.double().sum())


def covariance(advantage: Tensor, logp: Tensor) -> float:
    """Return the covariance of advantage and log-prob over tokens.

    Within a state, a natural gradient step changes its entropy by minus this (Cui et al. 2025).
    Over tokens of many states it also holds what differs between states.
    """
    a, x = advantage.detach().double(), logp.detach().double()
    return float(((a - a.mean()) * (x - x.mean())).mean())


def correlation(advantage: Tensor, logp: Tensor) -> float | None:
    """Return their correlation; None where either is constant."""
    a, x = advantage.detach().double(), logp.detach().double()
    scale = float(a.std(correction=0) * x.std(correction=0))
    return covariance(advantage, logp) / scale if scale > 0 else None


def clipped(
    ratio: Tensor, advantage: Tensor, *, eps_low: float, eps_high: float
) -> dict[str, Tensor]:
    """Return which tokens' ratios are outside [1 - eps_low, 1 + eps_high], as masks [T].

    ``clip_high`` and ``clip_low``: and whose advantage pushes them further, so that PPO's clip
    takes their gradient away. ``kept_high`` and ``kept_low``: whose advantage pulls them back.
    """
    above, below = ratio > 1 + eps_high, ratio < 1 - eps_low
    up, down = advantage > 0, advantage < 0
    return {
        "clip_high": above & up,
        "clip_low": below & down,
        "kept_high": above & down,
        "kept_low": below & up,
    }


def clip_fractions(
    ratio: Tensor, advantage: Tensor, *, eps_low: float, eps_high: float
) -> dict[str, float]:
    """Return the shares of tokens in the masks of `clipped`."""
    masks = clipped(ratio, advantage, eps_low=eps_low, eps_high=eps_high)
    return {name: float(mask.double().mean()) for name, mask in masks.items()}


def quantiles(values: Tensor, at: tuple[float, ...] = (0.01, 0.1, 0.5, 0.9, 0.99)) -> list[float]:
    """Return quantiles, by linear interpolation."""
    import numpy as np  # torch's own refuses more than 16 million values

    return [float(q) for q in np.quantile(values.detach().double().cpu().numpy(), at)]


def mismatch(old_logp: Tensor, engine_logp: Tensor) -> dict[str, float]:
    """Return mean, 99th percentile and maximum of ``|old_logp - engine_logp|``, in nats."""
    difference = (old_logp.detach().double() - engine_logp.detach().double()).abs()
    return {
        "mean": float(difference.mean()),
        "p99": quantiles(difference, (0.99,))[0],
        "max": float(difference.max()),
    }


def mismatch_by(
    of: Tensor, edges: Sequence[float], old_logp: Tensor, engine_logp: Tensor
) -> dict[float, float]:
    """Return the mean of ``|old_logp - engine_logp|``, nats, in bins of another quantity.

    of: [T]. edges: where bins begin, ascending; the last is open, and what lies below the first is
    in none. By each bin's beginning; bins without a token are left out.
    """
    difference = (old_logp.detach().double() - engine_logp.detach().double()).abs()
    bins = torch.bucketize(of.detach().double(), torch.tensor(edges).double(), right=True) - 1
    found = {edge: difference[bins == i] for i, edge in enumerate(edges)}
    return {edge: float(values.mean()) for edge, values in found.items() if len(values)}


@frozen
class Rounding:
    """What importance ratios become when both log-probs are rounded to a narrower type first."""

    bias: float
    """Mean of (rounded ratio / true ratio) - 1."""
    predicted_bias: float
    """What Thm. 3 predicts for it."""
    clip_changed: float
    """Share of tokens on which a clip at ``1 +- clip`` decides otherwise."""


def rounding(logp: Tensor, old_logp: Tensor, dtype: str, *, clip: float = 0.2) -> Rounding:
    """Return what ratios computed in ``"bf16"``, ``"fp16"`` or ``"fp32"`` would be (paper, Thm. 3).

    logp, old_logp: [T], float32 or better. The prediction averages over where in its last digit a
    log-prob lies: ``(ulp(logp)^2 + ulp(old_logp)^2) / 24`` where the two round independently, and
    ``|d| * (ulp - |d|) / 2`` where their difference d is below the last digit of both: zero for
    equal ones.
    """
    new, old = logp.detach().double(), old_logp.detach().double()
    if dtype not in DTYPES:
        raise UnknownNameError("Dtype", str(dtype), DTYPES)
    kind = DTYPES[dtype]
    true = (new - old).exp()
    low, high = torch.finfo(kind).min, torch.finfo(kind).max
    rounded = (
        new.clamp(low, high).to(kind).double() - old.clamp(low, high).to(kind).double()
    ).exp()
    near, u = (new - old).abs(), _ulp(new, kind)
    together = (near < u) & (u == _ulp(old, kind))
    apart = (u**2 + _ulp(old, kind) ** 2) / 24
    predicted = torch.where(together, near * (u - near) / 2, apart)
    changed = ((true > 1 + clip) != (rounded > 1 + clip)) | (
        (true < 1 - clip) != (rounded < 1 - clip)
    )
    return Rounding(
        bias=float((rounded / true - 1).mean()),
        predicted_bias=float(predicted.mean()),
        clip_changed=float(changed.double().mean()),
    )


def _ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbours in `dtype` around each value."""
    info: Any = torch.finfo(dtype)
    smallest = math.log2(info.smallest_normal)
    exponent = values.abs().clamp(min=info.smallest_normal).log2().floor().clamp(min=smallest)
    distance: Tensor = torch.exp2(exponent) * info.eps
    return distance
