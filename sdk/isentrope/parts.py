"""The parts of an algorithm: what a plugin author implements.

One iteration, as the parts see it::

    rewards [G] --AdvantageEstimator--> advantages [G] --per token--> TokenBatch
    TokenBatch --AdvantageTransform ...--> advantages [T] --Objective--> loss [T] --learner--> step
    Statistics --Controller--> knobs of all the others

Every part is a frozen attrs class: its fields are its configuration, in Python, in TOML and in the
run folder alike. A field declared with `knob` may be moved by a controller; a part always reads
its own field, since the learner hands each part out with the knobs' present values set.

Shape legend: G rollouts of a group, T tokens of a batch, S sequences (episodes) of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import attrs
from attrs import field, frozen

from isentrope.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from isentrope.episodes import Episode

Estimator = Literal["sampled", "exact"]
"""How entropy is measured: over the sampled tokens, or their full distributions."""
NEEDS = frozenset({"entropy", "entropy_response", "reference_logp"})
"""What a part may ask the learner to compute beyond log-probs: fields of `TokenBatch`."""


@frozen
class TokenBatch:
    """The sampled tokens of whole episodes, end to end; no episode spans two batches.

    Prompt and environment tokens are not in it.
    """

    logp: Tensor
    """[T] float32, nats: log-prob of each token under the present policy; carries the gradient."""
    old_logp: Tensor
    """[T] float32, nats: the same under the policy that the iteration began with."""
    engine_logp: Tensor
    """[T] float32, nats: what the engine reported when it sampled."""
    advantage: Tensor
    """[T] float32: the estimator's, then after each transform the transform's."""
    mask: Tensor
    """[T] bool: False for tokens that must have no influence at all."""
    sequence: Tensor
    """[T] int64: index of the token's episode in this batch, 0 .. S-1."""
    group: Tensor
    """[T] int64: index of the token's group in the iteration."""
    turn: Tensor
    """[T] int64: index of the token's turn in its episode."""
    num_sequences: int
    """S."""
    step: int = 0
    """Optimizer steps taken since the experience was collected; 0 is strictly on-policy."""
    _entropy: Tensor | None = None
    _entropy_response: Tensor | None = None
    _reference_logp: Tensor | None = None
    _weight: Tensor | None = None

    @property
    def entropy(self) -> Tensor:
        """[T] float32, nats, with gradient: exact entropy of each token's full distribution.

        Raises `ConfigError` unless a part of the algorithm ``needs`` it.
        """
        return _computed("entropy", self._entropy)

    @property
    def entropy_response(self) -> Tensor:
        """[T] float32: the first-order change of `entropy` for a unit of advantage on the token.

        ``-(pi * L - sum_a pi_a^2 L_a)`` with ``L = log pi + H``, for a unit step in the logits
        (paper, Cor. 2).

        Raises `ConfigError` unless a part of the algorithm ``needs`` it.
        """
        return _computed("entropy_response", self._entropy_response)

    @property
    def reference_logp(self) -> Tensor:
        """[T] float32, nats: log-prob of each token under the policy that the run started from.

        Known where adapters are trained, which can be switched off.

        Raises `ConfigError` unless a part of the algorithm ``needs`` it.
        """
        return _computed("reference_logp", self._reference_logp)

    @property
    def weight(self) -> Tensor:
        """[T] float32: what the learner multiplies each token's loss by: 0 for a masked one.

        It follows from the aggregation. In a batch made by hand, all tokens count alike.
        """
        if self._weight is not None:
            return self._weight
        return self.mask.to(self.logp.dtype) / self.mask.sum().clamp(min=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that there is, [T] each, by the name that the constructor takes."""
        names = [a.name for a in attrs.fields(TokenBatch)]
        values = {name.lstrip("_"): getattr(self, name) for name in names}
        return {k: v for k, v in values.items() if v is not None and not isinstance(v, int)}

    @property
    def ratio(self) -> Tensor:
        """[T] float32: importance ratio of each token, with gradient."""
        return (self.logp - self.old_logp).exp()

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean of `values` [T] over the unmasked tokens of each token's own episode, as [T]."""
        weight = self.mask.to(values.dtype)
        zeros = values.new_zeros(self.num_sequences)
        total = zeros.index_add(0, self.sequence, values * weight)
        count = zeros.index_add(0, self.sequence, weight)
        return (total / count.clamp(min=1))[self.sequence]


def _computed(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise ConfigError(
            f"TokenBatch.{name} was not computed: the part that reads it must declare "
            f'needs = frozenset({{"{name}"}}).'
        )
    return value


@frozen
class Knob:
    """The range of a numeric field that a controller may move: [low, high]."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and self.low <= float(value) <= self.high  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


def knob(default: float, *, low: float, high: float) -> Any:
    """Declare a float field as a knob: bounded, finite, and movable by a controller."""
    if not low <= high:
        raise ConfigError(f"A knob's low ({low}) must not be above its high ({high}).")
    bounds = Knob(low, high)

    def check(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
        if value not in bounds:
            name = f"{type(instance).__name__}.{attribute.name}"
            raise ConfigError(f"{name} must be within {bounds}; got {value!r}.")

    return field(default=default, validator=check, metadata={"knob": bounds})


class Component(ABC):
    """What estimators, transforms and objectives have in common."""

    keeps_zero_groups: ClassVar[bool] = False
    """True where groups whose rewards are all equal still carry gradient through this part; they
    are then not filtered out."""


class TokenPart(Component):
    """What transforms and objectives have in common: they act token by token, inside the loss."""

    @property
    def needs(self) -> frozenset[str]:
        """What the learner must compute for this part: fields of `TokenBatch`.

        One or more of ``entropy``, ``entropy_response`` and ``reference_logp``. A class
        attribute does: ``needs = frozenset({"entropy"})``.
        """
        return frozenset()

    def prepare(self, minibatch: TokenBatch) -> Self:
        """Return the part to use for one minibatch, given all of the minibatch's tokens.

        Called once per minibatch, before it is split into micro-batches: statistics over the
        minibatch (a mean, a quantile) belong here, so that the split changes nothing. In
        `minibatch`, everything is of the policy that the iteration began with and carries no
        gradient: ``logp`` is ``old_logp``, and what the part `needs` is there. ``advantage`` is
        what the transforms before this one make of the estimator's; for a loss, what all of them
        do.
        """
        del minibatch
        return self

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return per-token values [T] to log as means over tokens (clip fractions, ...).

        Logged as ``slot/name``; a transform is asked before it is applied.
        """
        del batch
        return {}


class AdvantageEstimator(Component):
    """From the rewards of one group to its advantages."""

    @abstractmethod
    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Tensor | Sequence[Tensor]:
        """Return advantages [G], or for each episode one per sampled token (ragged).

        rewards: [G] float64, the episodes' returns; G >= 2.
        """


class AdvantageTransform(TokenPart):
    """From advantages to advantages, token by token, inside the loss."""

    corrects_sampling: ClassVar[bool] = False
    """True where it weighs tokens by how likely the present policy is to sample them, against the
    one that did (`TokenBatch.engine_logp`): what collecting ahead of learning needs. Such a one is
    the last."""

    @abstractmethod
    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return new advantages [T] float32; the learner detaches them."""


class Objective(TokenPart):
    """From a batch to a loss per token, to be minimised. Never normalises: the learner does."""

    on_policy: ClassVar[bool] = False
    """True where the loss is right only for the policy that sampled: one epoch, one minibatch."""
    uses_ratio: ClassVar[bool] = True
    """Whether the loss uses importance ratios, which sampling with top-p or top-k falsifies."""

    @abstractmethod
    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss of each token, [T] float32; masked tokens' values are ignored."""


@frozen(kw_only=True)
class Statistics:
    """What an iteration's experience says, before anything is filtered or learnt from it."""

    iteration: int
    entropy: float
    """Mean of -log pi over the sampled tokens, nats per token (the sampled estimator, H_k)."""
    initial_entropy: float
    """The same in the first iteration (H_0)."""
    exact_entropy: float | None = None
    """Mean entropy of the full distributions over the same tokens, nats per token; None unless a
    part or a controller ``needs`` it."""
    initial_exact_entropy: float | None = None
    """The same in the first iteration."""
    reward: float
    success: float
    """Share of episodes of which the environment said that they succeeded."""


class Controller(ABC):
    """Moves knobs between collecting experience and learning from it.

    A controller holds no state of its own: knobs are in `AlgorithmState`, and whatever else it must
    remember goes into `memory`, which is checkpointed with them.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What must be measured of the experience: ``{"entropy"}`` for the exact one."""
        return frozenset()

    absolute: ClassVar[bool] = False
    """True where it sets its knobs whatever they were, so that they may begin out of its range."""

    @property
    @abstractmethod
    def moves(self) -> Mapping[str, Knob]:
        """The knobs that it moves, by path, and how far: ``{"repo_r.zeta": Knob(-1, 1)}``."""

    @abstractmethod
    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Return new values for (some of) its knobs.

        knobs: present values of every knob, by path. memory: this controller's own, empty at
        first, to be changed in place; JSON-serialisable.
        """

    def target_entropy(self, statistics: Statistics) -> float | None:
        """Return the entropy that it steers towards, nats per token, for the log."""
        del statistics
        return None


Part = Component | Controller
