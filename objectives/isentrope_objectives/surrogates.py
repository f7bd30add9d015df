"""Objectives: from tokens to a loss per token, to be minimised.

``r = exp(logp - old_logp)``, the importance ratio of a token; ``A``, its advantage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from isentrope import Objective, TokenBatch, knob

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Reinforce(Objective):
    """The policy gradient itself: ``-A * logp``. Strictly on-policy (RLOO)."""

    on_policy: ClassVar[bool] = True
    uses_ratio: ClassVar[bool] = False

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token [T]."""
        return -batch.advantage * batch.logp


@frozen(kw_only=True)
class Clipped(Objective):
    """PPO's clipped surrogate: ``-min(r * A, clip(r, 1 - eps_low, 1 + eps_high) * A)``.

    GRPO and LOOP with ``eps_low = eps_high``; DAPO with a higher ``eps_high`` (paper, section 2).
    """

    eps_low: float = knob(0.2, low=0.0, high=1.0)
    eps_high: float = knob(0.2, low=0.0, high=10.0)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token [T]."""
        ratio = batch.ratio
        clipped = ratio.clamp(1 - self.eps_low, 1 + self.eps_high)
        return -(ratio * batch.advantage).minimum(clipped * batch.advantage)

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return where the bound took the gradient away: above for A > 0, below for A < 0."""
        ratio = batch.ratio
        return {
            "clip_high": (ratio > 1 + self.eps_high) & (batch.advantage > 0),
            "clip_low": (ratio < 1 - self.eps_low) & (batch.advantage < 0),
        }
