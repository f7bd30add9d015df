"""Proportional-integral control of entropy.

With the error ``e_k = target - entropy_k`` (nats per token), the knob is

    u_k = u_{k-1} + kp * (e_k - e_{k-1}) + ki * e_k,  e_{-1} = 0,  clipped to [low, high]:

the textbook's incremental form. As long as nothing is clipped, the knob is where it started plus
``kp * e_k + ki * (e_0 + ... + e_k)``. It adds to the clipped value, so that no integral winds up
behind a bound.

Source: EntroPIC (arXiv 2511.15248), which controls the loss coefficients of positive and negative
samples in this way. Here the same law moves any knob of which more means more entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from isentrope import ConfigError, EntropyController, Knob, Statistics, validation


@frozen(kw_only=True)
class EntropyPI(EntropyController):
    """Holds entropy by moving a knob in proportion to the error and to the sum of all errors."""

    knob: str = field(validator=validation.text())
    """Path of the knob; more of it must mean more entropy."""
    low: float = field(validator=validation.real())
    high: float = field(validator=validation.real())
    kp: float = field(default=0.2, validator=validation.real(low=0))
    """Knob per nat of error."""
    ki: float = field(default=0.05, validator=validation.real(low=0))
    """Knob per nat of error and iteration."""

    def __attrs_post_init__(self) -> None:
        """Check the range."""
        if self.high < self.low:
            raise ConfigError(f"high ({self.high:g}) must be at least low ({self.low:g}).")

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The one knob, between the bounds."""
        return {self.knob: Knob(self.low, self.high)}

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Return the knob's next value; remember the error."""
        error = self.target.missing(statistics)
        change = self.kp * (error - memory.get("error", 0.0)) + self.ki * error
        memory["error"] = error
        return {self.knob: min(max(knobs[self.knob] + change, self.low), self.high)}
