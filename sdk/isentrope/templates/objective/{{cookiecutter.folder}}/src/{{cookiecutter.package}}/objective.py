"""A policy gradient under a bounded importance weight: a toy, to be replaced by yours.

``loss = -sg(min(r, bound)) * A * logp``, with ``r = exp(logp - old_logp)``, sg the stop-gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from isentrope import Objective, TokenBatch, knob

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class {{cookiecutter.class_name}}(Objective):
    """``-sg(min(r, bound)) * A * logp`` per token; the learner takes the mean."""

    bound: float = knob(2.0, low=1.0, high=100.0)
    """Of the importance ratio; a controller may move it."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token [T]."""
        return -batch.ratio.detach().clamp(max=self.bound) * batch.advantage * batch.logp

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return where the weight is bounded; logged as ``objective/bounded``, a share."""
        return {"bounded": batch.ratio > self.bound}
