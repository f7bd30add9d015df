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
        return -_smaller(batch.ratio, batch.advantage, self.eps_low, self.eps_high)

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return where a ratio left the bounds, and whether that took its gradient away."""
        return _clipped(batch.ratio, batch.advantage, self)


@frozen(kw_only=True)
class SequenceClipped(Objective):
    """GSPO: the clip on the ratio of a whole episode, its length taken out (Zheng et al. 2025).

    ``s = exp(mean_t(logp - old_logp))`` over an episode's sampled tokens, of all its turns. Each
    token carries ``sg(s) * exp(logp - sg(logp))``, with `sg` the stop-gradient: the value of s, and
    the gradient of its own log-prob, so that advantages may differ from token to token (GSPO-token,
    eq. 14). Bounds are those of a mean: a hundred times tighter than a token's.
    """

    eps_low: float = knob(3e-4, low=0.0, high=1.0)
    eps_high: float = knob(4e-4, low=0.0, high=10.0)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token [T]."""
        own = (batch.logp - batch.logp.detach()).exp()  # 1, with the gradient of logp
        return -_smaller(self._ratio(batch) * own, batch.advantage, self.eps_low, self.eps_high)

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return where an episode's ratio left the bounds, for each of its tokens."""
        return _clipped(self._ratio(batch), batch.advantage, self)

    def _ratio(self, batch: TokenBatch) -> Tensor:
        return batch.sequence_mean(batch.logp.detach() - batch.old_logp).exp()


@frozen(kw_only=True)
class EntropyBonus(Objective):
    """``-coef * H``, H the exact entropy of each sampled position's full distribution.

    To be added to another objective, as a regularizer. With coef < 0 it is a penalty.
    """

    uses_ratio: ClassVar[bool] = False
    keeps_zero_groups: ClassVar[bool] = True
    needs = frozenset({"entropy"})

    coef: float = knob(1e-3, low=-10.0, high=10.0)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token [T]."""
        return -self.coef * batch.entropy


@frozen(kw_only=True)
class KlToStart(Objective):
    """``coef * (logp - reference_logp)^2 / 2``: pulls back to the policy that the run started from.

    To be added to another objective, as a regularizer. On-policy, its gradient is that of
    ``coef * KL(policy || start)`` in expectation, which the usual estimator's (``e^-d + d - 1``,
    with d the difference) is not: that one has the gradient of ``KL(start || policy)``.
    """

    uses_ratio: ClassVar[bool] = False
    keeps_zero_groups: ClassVar[bool] = True
    needs = frozenset({"reference_logp"})

    coef: float = knob(1e-3, low=0.0, high=10.0)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token [T]."""
        return self.coef * (batch.logp - batch.reference_logp).square() / 2

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return ``kl``: an estimate of KL(policy || start) by token, nats, never negative."""
        apart = (batch.reference_logp - batch.logp).detach()
        return {"kl": apart.exp() - apart - 1}


def _smaller(ratio: Tensor, advantage: Tensor, eps_low: float, eps_high: float) -> Tensor:
    """``min(r * A, clip(r) * A)``: what PPO maximises, the pessimistic one of the two."""
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    return (ratio * advantage).minimum(clipped * advantage)


def _clipped(
    ratio: Tensor, advantage: Tensor, bounds: Clipped | SequenceClipped
) -> Mapping[str, Tensor]:
    from isentrope import diagnostics  # which imports torch

    return diagnostics.clipped(ratio, advantage, eps_low=bounds.eps_low, eps_high=bounds.eps_high)
