"""Controllers that hold entropy by moving one knob, of which more means more entropy."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from isentrope import ConfigError, EntropyController, Knob, Statistics, validation


@frozen(kw_only=True)
class Stepwise(EntropyController):
    """What they share: a knob, its range, and a step up or down.

    Entropy equal to its target moves nothing.
    """

    knob: str = field(validator=validation.text())
    """Path of the knob; more of it must mean more entropy."""
    low: float = field(validator=validation.real(above=0))
    high: float = field(validator=validation.real(above=0))

    def __attrs_post_init__(self) -> None:
        """Check the range."""
        if self.high < self.low:
            raise ConfigError(
                f"{type(self).__name__}.high ({self.high:g}) must be at least low ({self.low:g})."
            )

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Move the knob one step up where entropy is missing, and down where there is too much."""
        del memory  # the knob's value is all the state there is
        missing = self.target.missing(statistics)
        return {self.knob: self._step(knobs[self.knob], up=missing > 0)} if missing else {}

    @abstractmethod
    def _step(self, value: float, *, up: bool) -> float:
        """Return the knob's next value."""


@frozen(kw_only=True)
class EntropyLadder(Stepwise):
    """Doubles and halves a knob, through zero to the other sign (REPO; paper, section 5.1).

    The rungs are ``... -4*low -2*low -low | +low +2*low +4*low ...``. Each iteration, entropy below
    its target moves the knob one rung up and entropy above it one rung down: double or halve, cross
    to the other sign's `low` where halving would fall below it, then clip to `high`, which need not
    be a rung. `low` and `high` bound its magnitude.
    """

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The one knob, to both sides of zero."""
        return {self.knob: Knob(-self.high, self.high)}

    def _step(self, value: float, *, up: bool) -> float:
        outward = (value > 0) == up  # away from zero on the side where the knob is
        moved = value * 2 if outward else value / 2
        if abs(moved) < self.low:
            moved = self.low if up else -self.low
        return math.copysign(min(abs(moved), self.high), moved)


@frozen(kw_only=True)
class EntropyScale(Stepwise):
    """Multiplies and divides a positive knob by a factor, within [low, high] (ADAPO; paper, 5.2).

    The paper moves the upper clip bound within a range in this way; factor and range are ours.
    """

    factor: float = field(default=1.2, validator=validation.real(above=1))

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The one knob, between the bounds."""
        return {self.knob: Knob(self.low, self.high)}

    def _step(self, value: float, *, up: bool) -> float:
        moved = value * self.factor if up else value / self.factor
        return min(max(moved, self.low), self.high)
