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

import attrs
from attrs import field, frozen, validators

from isentrope import (
    ConfigError,
    Controller,
    EntropyTarget,
    Knob,
    Statistics,
    entropy_target,
)

_finite = [validators.gt(float("-inf")), validators.lt(float("inf"))]


@frozen(kw_only=True)
class EntropyPI(Controller):
    """Holds entropy by moving a knob in proportion to the error and to the sum of all errors."""

    knob: str = field(validator=validators.instance_of(str))
    """Path of the knob; more of it must mean more entropy."""
    low: float = field(validator=_finite)
    high: float = field(validator=_finite)
    kp: float = field(default=0.2, validator=[validators.ge(0.0), *_finite])
    """Knob per nat of error."""
    ki: float = field(default=0.05, validator=[validators.ge(0.0), *_finite])
    """Knob per nat of error and iteration."""
    target: EntropyTarget = entropy_target()
    """Entropy to hold; a number is nats per token. Default: the first iteration's."""

    @high.validator
    def _check_range(self, _: attrs.Attribute[float], value: float) -> None:
        if value < self.low:
            raise ConfigError(f"high ({value:g}) must be at least low ({self.low:g}).")

    @property
    def needs(self) -> frozenset[str]:
        """What the target's estimator needs."""
        return self.target.needs

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The one knob, between the bounds."""
        return {self.knob: Knob(self.low, self.high)}

    def target_entropy(self, statistics: Statistics) -> float:
        """Return the target in this iteration, nats per token."""
        return self.target(statistics)

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Return the knob's next value; remember the error."""
        error = self.target.missing(statistics)
        change = self.kp * (error - memory.get("error", 0.0)) + self.ki * error
        memory["error"] = error
        return {self.knob: min(max(knobs[self.knob] + change, self.low), self.high)}
