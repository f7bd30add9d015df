"""The REPO controller: a signed ladder of doublings (paper, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen, validators

from isentrope import ConfigError, Controller, Knob, Statistics


@frozen(kw_only=True)
class EntropyLadder(Controller):
    """Holds entropy by doubling and halving a knob, through zero to the other sign.

    The rungs are ``... -4*low -2*low -low | +low +2*low +4*low ...``. Each iteration, entropy below
    its target moves the knob one rung up and entropy above it one rung down: double or halve, cross
    to the other sign's `low` where halving would fall below it, then clip to `high`. Entropy equal
    to its target moves nothing.
    """

    knob: str = field(validator=validators.instance_of(str))
    """Path of the knob; more of it must mean more entropy."""
    low: float = field(default=1e-4, validator=validators.gt(0.0))
    """Smallest magnitude."""
    high: float = field(default=0.05, validator=validators.gt(0.0))
    """Largest magnitude; need not be a rung."""
    target: float | None = field(
        default=None, validator=validators.optional([validators.ge(0.0), validators.lt(math.inf)])
    )
    """Entropy to hold, nats per token; None: that of the first iteration."""

    @high.validator
    def _check_range(self, _: attrs.Attribute[float], value: float) -> None:
        if value < self.low:
            raise ConfigError(f"high ({value:g}) must be at least low ({self.low:g}).")

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The one knob, to both sides of zero."""
        return {self.knob: Knob(-self.high, self.high)}

    def target_entropy(self, statistics: Statistics) -> float:
        """Return `target`, or the first iteration's entropy."""
        return statistics.initial_entropy if self.target is None else self.target

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Move the knob by one rung."""
        del memory  # the knob's value is all the state there is
        needed = self.target_entropy(statistics) - statistics.entropy
        if needed == 0:
            return {}
        return {self.knob: self._step(knobs[self.knob], up=needed > 0)}

    def _step(self, value: float, *, up: bool) -> float:
        outward = (value > 0) == up  # away from zero on the side where the knob is
        moved = value * 2 if outward else value / 2
        if abs(moved) < self.low:
            moved = self.low if up else -self.low
        return math.copysign(min(abs(moved), self.high), moved)
