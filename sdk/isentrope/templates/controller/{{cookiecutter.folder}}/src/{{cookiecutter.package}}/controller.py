"""Integral control of entropy: a toy, to be replaced by yours.

``knob += gain * (target - entropy)``, within [low, high].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from isentrope import EntropyController, Knob, Statistics, validation


@frozen(kw_only=True)
class {{cookiecutter.class_name}}(EntropyController):
    """Moves one knob, of which more must mean more entropy."""

    knob: str = field(validator=validation.text())
    """Its path, such as ``"objective.eps_high"``."""
    low: float = field(validator=validation.real())
    high: float = field(validator=validation.real())
    gain: float = field(default=0.1, validator=validation.real(low=0))
    """Knob per nat of error and iteration."""

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The knob, between its bounds."""
        return {self.knob: Knob(self.low, self.high)}

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Return the knob's next value; what is in `memory` is there the next time."""
        del memory
        wanted = knobs[self.knob] + self.gain * self.target.missing(statistics)
        return {self.knob: min(max(wanted, self.low), self.high)}
