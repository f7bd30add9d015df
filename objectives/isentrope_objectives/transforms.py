"""Advantage transforms: what keeps entropy, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from isentrope import AdvantageTransform, TokenBatch, knob

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class RepoR(AdvantageTransform):
    """REPO-R: rescale each advantage by how surprising its token was (paper, D.2).

    ``A' = A - zeta * |A| * log pi``: for A > 0 ``A * (1 - zeta * log pi)``, for A < 0
    ``A * (1 + zeta * log pi)``. With zeta > 0 rare right tokens gain more and rare wrong tokens
    lose less, so entropy rises; with zeta < 0 it falls. ``log pi`` is the present policy's, which
    is the old policy's on the first minibatch.
    """

    zeta: float = knob(1e-4, low=-10.0, high=10.0)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return transformed advantages [T]."""
        return batch.advantage - self.zeta * batch.advantage.abs() * batch.logp.detach()

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return where the transform reverses the advantage's sign.

        That is where ``log pi < -1 / |zeta|`` and A has the sign that zeta has not.
        """
        return {"flipped": self(batch) * batch.advantage < 0}
