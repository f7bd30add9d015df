"""CISPO: the policy gradient, each token's weight its clipped importance ratio.

``loss = -sg(clip(r, 1 - eps_low, 1 + eps_high)) * A * logp``, with ``r = exp(logp - old_logp)`` and
``sg`` the stop-gradient. PPO's clip takes the whole gradient of a token whose ratio went too far;
this one only bounds its weight, so rare tokens that change much go on being learnt.

Source: MiniMax-M1 (arXiv 2506.13585), equations 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from isentrope import Objective, TokenBatch, knob

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Cispo(Objective):
    """``-sg(clip(r, 1 - eps_low, 1 + eps_high)) * A * logp``."""

    eps_low: float = knob(1.0, low=0.0, high=1.0)
    """1: no lower bound, as ratios are positive. The paper has none."""
    eps_high: float = knob(0.28, low=0.0, high=10.0)
    """The paper tuned it and does not print it; this default is ours, after DAPO's."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token [T]."""
        weight = batch.ratio.detach().clamp(1 - self.eps_low, 1 + self.eps_high)
        return -weight * batch.advantage * batch.logp

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return where a bound set the weight, whatever the sign of the advantage."""
        ratio = batch.ratio
        return {
            "cispo_capped": ratio > 1 + self.eps_high,
            "cispo_raised": ratio < 1 - self.eps_low,
        }
