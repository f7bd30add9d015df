"""Advantage transforms: what keeps entropy, token by token.

``log pi`` is the present policy's log-prob of the sampled token, and ``L = log pi + H`` its
distance from what was to be expected: below 0 for a token rarer than the state's entropy suggests.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen, validators

from isentrope import AdvantageTransform, TokenBatch, knob, validation

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class RepoR(AdvantageTransform):
    """REPO-R: rescale each advantage by how surprising its token was (paper, D.2).

    ``A' = A - zeta * |A| * log pi``: for A > 0 ``A * (1 - zeta * log pi)``, for A < 0
    ``A * (1 + zeta * log pi)``. With zeta > 0 rare right tokens gain more and rare wrong tokens
    lose less, so entropy rises; with zeta < 0 it falls.
    """

    zeta: float = knob(1e-4, low=-10.0, high=10.0)
    floor: float | None = field(
        default=None, validator=validators.optional(validation.real(high=1))
    )
    """Least value of ``A' / A``: 0 keeps a very rare token's advantage from changing its sign,
    which happens where ``log pi < -1 / |zeta|``. None: no floor."""
    of: Literal["present", "old"] = field(
        default="present", validator=validation.one_of(("present", "old"))
    )
    """Whose log-prob: the present policy's, or that of the policy that the iteration began with."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return transformed advantages [T]."""
        factor = 1 - self.zeta * batch.advantage.sign() * self._logp(batch)
        return batch.advantage * (factor if self.floor is None else factor.clamp(min=self.floor))

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return where the transform reverses the advantage's sign, and where the floor acts."""
        factor = 1 - self.zeta * batch.advantage.sign() * self._logp(batch)
        found = {"flipped": self(batch) * batch.advantage < 0}
        return found if self.floor is None else found | {"floored": factor < self.floor}

    def _logp(self, batch: TokenBatch) -> Tensor:
        return batch.logp.detach() if self.of == "present" else batch.old_logp


@frozen(kw_only=True)
class RepoD(AdvantageTransform):
    """REPO-D: take from each advantage what its token tells of the entropy (paper, 5.1, A.7).

    ``A' = A - zeta * L``. In expectation over actions, on-policy and unclipped, its gradient is
    that of an entropy bonus of weight zeta; where it is raw, at no cost.
    """

    keeps_zero_groups: ClassVar[bool] = True

    zeta: float = knob(1e-3, low=-100.0, high=100.0)
    centred: bool = field(default=True, validator=validation.flag())
    """Subtract L, whose mean in every state is 0; else ``log pi`` itself, which has the same
    gradient in expectation with more noise, and another one under a clip."""

    @property
    def needs(self) -> frozenset[str]:
        """The entropy, to centre by."""
        return frozenset({"entropy"} if self.centred else ())

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return transformed advantages [T]."""
        if not self.centred:
            return batch.advantage - self.zeta * batch.logp.detach()
        return batch.advantage - self.zeta * _surprise(batch)


@frozen(kw_only=True)
class Decorrelate(AdvantageTransform):
    """REPO-D with the zeta at which entropy stays as it is, to first order.

    ``A' = A - zeta* L``, ``zeta* = sum w A response / sum w L response`` over the minibatch, with
    `TokenBatch.weight` and `TokenBatch.entropy_response`: the predicted change of the entropy
    (Cor. 2) is linear in the advantage, and zeta* is where it is 0. Derived here (the paper names
    the idea, not a formula). It follows from the policy that the iteration began with, and from
    the advantages that the transforms before it make.
    """

    needs = frozenset({"entropy", "entropy_response"})

    _zeta: float = field(init=False, default=0.0, repr=False)
    """The minibatch's; `prepare` sets it."""

    def prepare(self, minibatch: TokenBatch) -> Decorrelate:
        """Return a copy that knows zeta* of this minibatch; 0 where nothing responds."""
        kept = minibatch.mask
        response = (minibatch.weight * minibatch.entropy_response)[kept].double()
        predicted = (minibatch.advantage[kept] * response).sum()
        per_zeta = (_surprise(minibatch)[kept] * response).sum()  # in expectation -sum (pi L)^2
        prepared = copy.copy(self)
        zeta = float(predicted / per_zeta) if per_zeta < 0 else 0.0
        object.__setattr__(prepared, "_zeta", zeta)
        return prepared

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return transformed advantages [T]."""
        return batch.advantage - self._zeta * _surprise(batch)

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return zeta*, for every token."""
        return {"zeta": batch.advantage.new_full(batch.advantage.shape, self._zeta)}


@frozen(kw_only=True)
class TruncatedImportance(AdvantageTransform):
    """Weigh each token by how likely the policy is to sample it, against what did sample it.

    ``A' = A * min(exp(old_logp - engine_logp), cap)``: old_logp is the learner's, when learning on
    the experience begins; engine_logp that of whatever server and version sampled the token. With
    the surrogate's own ratio on top this is decoupled PPO (Hilton et al. 2022, eq. 8) with a
    truncated weight (Ionides 2008; Espeholt et al. 2018). It is the last of transforms: what the
    others add to the advantage is weighed, too.
    """

    corrects_sampling: ClassVar[bool] = True

    cap: float = field(default=2.0, validator=validation.real(1))
    """Largest weight: bounds the variance, at the cost of a bias where it acts."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return transformed advantages [T]."""
        return batch.advantage * self._weight(batch).clamp(max=self.cap)

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return the weight, and where it was cut."""
        weight = self._weight(batch)
        return {"weight": weight.clamp(max=self.cap), "truncated": weight > self.cap}

    @staticmethod
    def _weight(batch: TokenBatch) -> Tensor:
        return (batch.old_logp - batch.engine_logp).exp()


def _surprise(batch: TokenBatch) -> Tensor:
    """``L = log pi + H`` [T], detached."""
    return batch.logp.detach() + batch.entropy.detach()
