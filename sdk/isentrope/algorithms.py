"""Algorithms: a composition of an estimator, transforms, an objective and controllers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import attrs
from attrs import define, field, frozen, validators

from isentrope.errors import ConfigError, UnknownNameError
from isentrope.parts import (
    NEEDS,
    AdvantageEstimator,
    AdvantageTransform,
    Component,
    Controller,
    Estimator,
    Knob,
    Objective,
    Part,
    Statistics,
    TokenBatch,
    TokenPart,
)
from isentrope.validation import instance_of, whole

if TYPE_CHECKING:
    from torch import Tensor

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]
"""How the learner adds up per-token losses; the names are verl's."""
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


@define
class AlgorithmState:
    """The one moving part of an algorithm: what is checkpointed, logged, and the same on all ranks.

    Components themselves never change.
    """

    knobs: dict[str, float]
    """Present value of every knob, by path."""
    memory: dict[str, dict[str, Any]] = field(factory=dict)
    """What each controller remembers, by slot."""
    initial_entropy: float | None = None
    """H_0 by the sampled estimator, nats per token."""
    initial_exact_entropy: float | None = None
    """H_0 by the exact one, where it is measured."""


_C = TypeVar("_C")
_P = TypeVar("_P", bound=TokenPart)


def _sequence_of(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


@frozen(kw_only=True)
class Algorithm:
    """A composition, checked when it is made.

    Raises `ConfigError` for a combination that cannot work.
    """

    advantage: AdvantageEstimator = field(validator=instance_of(AdvantageEstimator))
    objective: Objective = field(validator=instance_of(Objective))
    transforms: tuple[AdvantageTransform, ...] = field(
        default=(),
        converter=_sequence_of,
        validator=validators.deep_iterable(instance_of(AdvantageTransform)),
    )
    """Applied in order."""
    regularizers: tuple[Objective, ...] = field(
        default=(),
        converter=_sequence_of,
        validator=validators.deep_iterable(instance_of(Objective)),
    )
    """Losses added to the objective's, token by token: an entropy bonus, a penalty."""
    controllers: tuple[Controller, ...] = field(
        default=(),
        converter=_sequence_of,
        validator=validators.deep_iterable(instance_of(Controller)),
    )
    aggregation: Aggregation = "seq-mean-token-mean"
    """The denominators are global: the nominal `minibatch` (or all episodes) for the ``seq-``
    kinds, whatever filtering left in it, and the minibatch's token count for ``token-mean``."""
    norm_length: int | None = field(default=None, validator=validators.optional(whole(1)))
    """Tokens that ``seq-mean-token-sum-norm`` divides each episode's sum by."""
    epochs: int = field(default=1, validator=whole(1))
    """Passes over an iteration's experience."""
    minibatch: int | None = field(default=None, validator=validators.optional(whole(1)))
    """Episodes per optimizer step; None, or more than an iteration collects: all of them."""
    recipe: str = field(default="", init=False, eq=False, repr=False)
    """The name of the recipe that made it, where one did: runs are called by it."""

    def __attrs_post_init__(self) -> None:
        """Check the composition."""
        self._check_aggregation()
        self._check_parts()
        self._check_controllers()

    def slots(self) -> dict[str, Part]:
        """Return every part by the name that knob paths and overrides use.

        ``advantage``, ``objective``, and for transforms, regularizers and controllers their class
        names in snake case (``repo_r``, ``entropy_ladder``; a second of the same class,
        ``repo_r_2``). In the order of the algorithm's fields.
        """
        return name_slots(
            self.advantage,
            self.objective,
            (*self.transforms, *self.regularizers, *self.controllers),
        )

    def knobs(self) -> dict[str, Knob]:
        """Return every knob by path, ``"<slot>.<field>"``."""
        return {
            f"{slot}.{a.name}": a.metadata["knob"]
            for slot, part in self.slots().items()
            for a in _knob_fields(part)
        }

    def initial_state(self) -> AlgorithmState:
        """Return the state that a run begins with: every knob at its configured value."""
        return AlgorithmState(
            {
                f"{slot}.{a.name}": float(getattr(part, a.name))
                for slot, part in self.slots().items()
                for a in _knob_fields(part)
            }
        )

    def at(self, knobs: Mapping[str, float]) -> Algorithm:
        """Return this algorithm with the knobs' present values set in its parts."""
        return self._map(lambda slot, part: _at(slot, part, knobs))

    def prepare(self, minibatch: TokenBatch) -> Algorithm:
        """Return this algorithm with every component prepared for one minibatch.

        Each transform sees what those before it make of the advantages, the losses what all do.
        """
        transforms: list[AdvantageTransform] = []
        for part in self.transforms:
            transforms.append(_prepare(part, minibatch))
            values = of_tokens(transforms[-1](minibatch), minibatch, part)
            minibatch = attrs.evolve(minibatch, advantage=values)
        return attrs.evolve(
            self,
            transforms=transforms,
            objective=_prepare(self.objective, minibatch),
            regularizers=[_prepare(part, minibatch) for part in self.regularizers],
        )

    def control(self, statistics: Statistics, state: AlgorithmState) -> None:
        """Let every controller move its knobs in `state`.

        Raises `ConfigError` where one moves a knob that it did not declare, or further than that.
        """
        for slot, part in self.slots().items():
            if not isinstance(part, Controller):
                continue
            moved = part.update(statistics, dict(state.knobs), state.memory.setdefault(slot, {}))
            if not isinstance(moved, Mapping):
                raise ConfigError(
                    f"Controller {slot!r} must return a mapping of knob paths to values; got "
                    f"{moved!r}."
                )
            for path, value in moved.items():
                if path not in part.moves:
                    raise ConfigError(
                        f"Controller {slot!r} moved {path!r}, but declares {sorted(part.moves)}."
                    )
                if value not in (range_ := part.moves[path]):
                    raise ConfigError(
                        f"Controller {slot!r} moved {path!r} to {value!r}, outside {range_}."
                    )
                state.knobs[path] = float(value)

    @property
    def needs(self) -> frozenset[str]:
        """What its components need the learner to compute."""
        return frozenset().union(*(part.needs for part in self._token_parts()))

    @property
    def needs_of_experience(self) -> frozenset[str]:
        """The same, and what its controllers need, of the policy that the iteration began with."""
        return self.needs.union(*(c.needs for c in self.controllers))

    @property
    def with_ratio(self) -> tuple[Objective, ...]:
        """Those of its losses that use importance ratios."""
        return tuple(o for o in (self.objective, *self.regularizers) if o.uses_ratio)

    @property
    def corrects_sampling(self) -> bool:
        """Whether a transform weighs what older policies sampled."""
        return any(transform.corrects_sampling for transform in self.transforms)

    @property
    def keeps_zero_groups(self) -> bool:
        """Whether groups with equal rewards still carry gradient."""
        return any(c.keeps_zero_groups for c in self._components())

    def target_entropy(
        self, statistics: Statistics, estimator: Estimator | None = None
    ) -> float | None:
        """Return the entropy that the first controller with a target steers towards.

        estimator: only of those that steer by it.
        """
        exact = estimator == "exact"
        targets = [
            controller.target_entropy(statistics)
            for controller in self.controllers
            if estimator is None or exact == ("entropy" in controller.needs)
        ]
        return next((t for t in targets if t is not None), None)

    def _token_parts(self) -> Iterator[TokenPart]:
        yield self.objective
        yield from self.transforms
        yield from self.regularizers

    def _components(self) -> Iterator[Component]:
        yield self.advantage
        yield from self._token_parts()

    def _map(self, change: Any) -> Algorithm:
        components = [
            change(slot, part)
            for slot, part in self.slots().items()
            if not isinstance(part, Controller)
        ]
        advantage, objective, *others = components
        split = len(self.transforms)
        return attrs.evolve(
            self,
            advantage=advantage,
            objective=objective,
            transforms=others[:split],
            regularizers=others[split:],
        )

    def _check_aggregation(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise UnknownNameError("Aggregation", self.aggregation, AGGREGATIONS)
        if (self.aggregation == "seq-mean-token-sum-norm") != (self.norm_length is not None):
            raise ConfigError(
                "norm_length (tokens, a constant) goes with aggregation "
                f"'seq-mean-token-sum-norm', and only with it; got aggregation="
                f"{self.aggregation!r}, norm_length={self.norm_length!r}."
            )

    def _check_parts(self) -> None:
        for part in self._token_parts():
            _check_needs(part, NEEDS)
        for controller in self.controllers:
            _check_needs(controller, frozenset({"entropy"}))
        for loss in (self.objective, *self.regularizers):
            if loss.on_policy and (self.epochs > 1 or self.minibatch is not None):
                raise ConfigError(
                    f"{type(loss).__name__} is right only for the policy that sampled: use "
                    f"epochs=1 and minibatch=None (got epochs={self.epochs}, "
                    f"minibatch={self.minibatch}), or an objective with importance ratios."
                )

        for transform, after in pairwise(self.transforms):
            if transform.corrects_sampling:
                raise ConfigError(
                    f"{type(transform).__name__} must be the last of transforms: what "
                    f"{type(after).__name__} adds to the advantage would not be weighed."
                )

    def _check_controllers(self) -> None:
        knobs, moved_by = self.knobs(), dict[str, str]()
        names = ", ".join(type(part).__name__ for part in self._components())
        for slot, part in self.slots().items():
            if not isinstance(part, Controller):
                continue
            if not isinstance(part.moves, Mapping):
                raise ConfigError(
                    f"Controller {slot!r}: moves must map knob paths to Knob ranges; got "
                    f"{part.moves!r}."
                )
            for path, range_ in part.moves.items():
                if path not in knobs:
                    raise UnknownNameError(
                        f"Controller {slot!r} moves a knob that this algorithm does not have:",
                        path,
                        knobs,
                        hint=f" Its parts are {names}: use one with that knob, or let the "
                        "controller move another.",
                    )
                if range_.low not in knobs[path] or range_.high not in knobs[path]:
                    raise ConfigError(
                        f"Controller {slot!r} may move {path!r} within {range_}, but that knob's "
                        f"bounds are {knobs[path]}."
                    )
                begins = self.initial_state().knobs[path]
                if not part.absolute and begins not in range_:
                    raise ConfigError(
                        f"Controller {slot!r} moves {path!r} within {range_}, but it begins at "
                        f"{begins:g}: widen the one, or change the other."
                    )
                if path in moved_by:
                    raise ConfigError(
                        f"Controllers {moved_by[path]!r} and {slot!r} both move {path!r}; "
                        "a knob obeys one controller."
                    )
                moved_by[path] = slot


def name_slots(
    advantage: AdvantageEstimator, objective: Objective, others: Iterable[Part]
) -> dict[str, Part]:
    """Name the parts of a composition, as `Algorithm.slots` tells."""
    slots: dict[str, Part] = {"advantage": advantage, "objective": objective}
    for part in others:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(part).__name__).lower()
        numbered = (f"{name}_{number}" for number in count(2))
        slots[next(n for n in chain([name], numbered) if n not in slots)] = part
    return slots


def _prepare(part: _P, minibatch: TokenBatch) -> _P:
    prepared = part.prepare(minibatch)
    if not isinstance(prepared, type(part)):
        raise ConfigError(
            f"{type(part).__name__}.prepare must return the {type(part).__name__} to use; got "
            f"{prepared!r}."
        )
    return prepared


def of_tokens(values: Any, batch: TokenBatch, part: Component) -> Tensor:
    """Check that a part returned one value per token: any other shape would broadcast."""
    shape = getattr(values, "shape", None)
    if shape == batch.logp.shape:
        return values  # type: ignore[no-any-return]  # nothing else has such a shape
    got = repr(values) if shape is None else f"shape {list(shape)}"
    raise ConfigError(
        f"{type(part).__name__} must return one value per token, shape {list(batch.logp.shape)}; "
        f"got {got}."
    )


def _check_needs(part: TokenPart | Controller, known: frozenset[str]) -> None:
    name = f"{type(part).__name__}.needs"
    if not isinstance(part.needs, (set, frozenset)):
        raise ConfigError(f"{name} must be a set of names; got {part.needs!r}.")
    for need in part.needs - known:
        raise UnknownNameError(f"{name}:", need, known)


def _knob_fields(part: Part) -> list[attrs.Attribute[Any]]:
    if isinstance(part, Controller):  # which is asked as it was configured
        return []
    cls: type = type(part)
    return [a for a in attrs.fields(cls) if "knob" in a.metadata] if attrs.has(cls) else []


def _at(slot: str, part: _C, knobs: Mapping[str, float]) -> _C:
    changes = {
        path.removeprefix(f"{slot}."): value
        for path, value in knobs.items()
        if path.startswith(f"{slot}.")
    }
    return attrs.evolve(part, **changes) if changes else part  # type: ignore[misc]  # knobs: attrs
