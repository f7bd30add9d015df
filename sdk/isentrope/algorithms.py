"""Algorithms: a composition of an estimator, transforms, an objective and controllers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args

import attrs
from attrs import define, field, frozen, validators

from isentrope.errors import ConfigError, UnknownNameError
from isentrope.parts import (
    NEEDS,
    AdvantageEstimator,
    AdvantageTransform,
    Component,
    Controller,
    Knob,
    Objective,
    Part,
    Statistics,
    TokenBatch,
)

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


_C = TypeVar("_C")


def _sequence_of(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, (Component, Controller)) else tuple(value)


@frozen(kw_only=True)
class Algorithm:
    """A composition, checked when it is made.

    Raises `ConfigError` for a combination that cannot work.
    """

    advantage: AdvantageEstimator = field(validator=validators.instance_of(AdvantageEstimator))
    objective: Objective = field(validator=validators.instance_of(Objective))
    transforms: tuple[AdvantageTransform, ...] = field(
        default=(),
        converter=_sequence_of,
        validator=validators.deep_iterable(validators.instance_of(AdvantageTransform)),
    )
    """Applied in order."""
    controllers: tuple[Controller, ...] = field(
        default=(),
        converter=_sequence_of,
        validator=validators.deep_iterable(validators.instance_of(Controller)),
    )
    aggregation: Aggregation = "seq-mean-token-mean"
    """The denominators are global: the nominal `minibatch` (or all episodes) for the ``seq-``
    kinds, whatever filtering left in it, and the minibatch's token count for ``token-mean``."""
    norm_length: int | None = field(
        default=None, validator=validators.optional(validators.instance_of(int))
    )
    """Tokens that ``seq-mean-token-sum-norm`` divides each episode's sum by."""
    epochs: int = field(default=1, validator=validators.instance_of(int))
    """Passes over an iteration's experience."""
    minibatch: int | None = field(
        default=None, validator=validators.optional(validators.instance_of(int))
    )
    """Episodes per optimizer step; None, or more than an iteration collects: all of them."""

    def __attrs_post_init__(self) -> None:
        """Check the composition."""
        self._check_numbers()
        self._check_parts()
        self._check_controllers()

    def slots(self) -> dict[str, Part]:
        """Return every part by the name that knob paths and overrides use.

        ``advantage``, ``objective``, and for transforms and controllers their class names in
        snake case (``repo_r``, ``entropy_ladder``).
        """
        slots: dict[str, Part] = {"advantage": self.advantage, "objective": self.objective}
        named: tuple[Part, ...] = (*self.transforms, *self.controllers)
        for part in named:
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(part).__name__).lower()
            if name in slots:
                raise ConfigError(
                    f"The algorithm has two parts named {name!r}; knob paths would be ambiguous. "
                    "Keep one, or subclass it under another name."
                )
            slots[name] = part
        return slots

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
        """Return this algorithm with every component prepared for one minibatch."""
        return self._map(lambda _, part: part.prepare(minibatch))

    def control(self, statistics: Statistics, state: AlgorithmState) -> None:
        """Let every controller move its knobs in `state`.

        Raises `ConfigError` where one moves a knob that it did not declare, or out of its bounds.
        """
        bounds = self.knobs()
        for slot, part in self.slots().items():
            if not isinstance(part, Controller):
                continue
            moved = part.update(statistics, dict(state.knobs), state.memory.setdefault(slot, {}))
            for path, value in moved.items():
                if path not in part.moves:
                    raise ConfigError(
                        f"Controller {slot!r} moved {path!r}, but declares {sorted(part.moves)}."
                    )
                if not bounds[path].low <= value <= bounds[path].high:
                    raise ConfigError(
                        f"Controller {slot!r} moved {path!r} to {value!r}, outside "
                        f"[{bounds[path].low:g}, {bounds[path].high:g}]."
                    )
                state.knobs[path] = float(value)

    @property
    def needs(self) -> frozenset[str]:
        """What its components need the learner to compute."""
        return frozenset().union(*(c.needs for c in self._components()))

    @property
    def keeps_zero_groups(self) -> bool:
        """Whether groups with equal rewards still carry gradient."""
        return any(c.keeps_zero_groups for c in self._components())

    def target_entropy(self, statistics: Statistics) -> float | None:
        """Return the entropy that the controllers steer towards; None where none has a target."""
        targets = [c.target_entropy(statistics) for c in self.controllers]
        return next((t for t in targets if t is not None), None)

    def _components(self) -> Iterator[Component]:
        yield self.advantage
        yield self.objective
        yield from self.transforms

    def _map(self, change: Any) -> Algorithm:
        slots = {id(part): slot for slot, part in self.slots().items()}
        return attrs.evolve(
            self,
            advantage=change("advantage", self.advantage),
            objective=change("objective", self.objective),
            transforms=tuple(change(slots[id(t)], t) for t in self.transforms),
        )

    def _check_numbers(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise UnknownNameError("Aggregation", self.aggregation, AGGREGATIONS)
        if (self.aggregation == "seq-mean-token-sum-norm") != (self.norm_length is not None):
            raise ConfigError(
                "norm_length (tokens, a constant) goes with aggregation "
                f"'seq-mean-token-sum-norm', and only with it; got aggregation="
                f"{self.aggregation!r}, norm_length={self.norm_length!r}."
            )
        for name, value in (
            ("epochs", self.epochs),
            ("minibatch", self.minibatch),
            ("norm_length", self.norm_length),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}.")

    def _check_parts(self) -> None:
        for part in self._components():
            for need in part.needs - NEEDS:
                raise UnknownNameError(f"{type(part).__name__}.needs:", need, NEEDS)
        if self.objective.on_policy and (self.epochs > 1 or self.minibatch is not None):
            raise ConfigError(
                f"{type(self.objective).__name__} is right only for the policy that sampled: use "
                f"epochs=1 and minibatch=None (got epochs={self.epochs}, "
                f"minibatch={self.minibatch}), or an objective with importance ratios."
            )

    def _check_controllers(self) -> None:
        knobs, moved_by = self.knobs(), dict[str, str]()
        for slot, part in self.slots().items():
            if not isinstance(part, Controller):
                continue
            for path in part.moves:
                if path not in knobs:
                    raise UnknownNameError(
                        f"Controller {slot!r} moves a knob that this algorithm does not have:",
                        path,
                        knobs,
                        hint=f" Knobs here: {', '.join(sorted(knobs)) or 'none'}.",
                    )
                if path in moved_by:
                    raise ConfigError(
                        f"Controllers {moved_by[path]!r} and {slot!r} both move {path!r}; "
                        "a knob obeys one controller."
                    )
                moved_by[path] = slot


def _knob_fields(part: Part) -> list[attrs.Attribute[Any]]:
    cls: type = type(part)
    return [a for a in attrs.fields(cls) if "knob" in a.metadata] if attrs.has(cls) else []


def _at(slot: str, part: _C, knobs: Mapping[str, float]) -> _C:
    changes = {
        path.removeprefix(f"{slot}."): value
        for path, value in knobs.items()
        if path.startswith(f"{slot}.")
    }
    return attrs.evolve(part, **changes) if changes else part  # type: ignore[misc]  # knobs: attrs
