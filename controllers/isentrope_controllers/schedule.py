"""A knob that follows a plan, not a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from isentrope import Controller, Knob, Schedule, Statistics, validation


def _schedule(value: Any) -> Schedule:
    return Schedule.read(value)


@frozen(kw_only=True)
class Scheduled(Controller):
    """Sets a knob to what a schedule says for the iteration."""

    absolute: ClassVar[bool] = True

    knob: str = field(validator=validation.text())
    """Path of the knob."""
    schedule: Schedule = field(converter=_schedule)
    """``{0: 0.2, 100: 0.05}``: straight lines between iterations, flat before and after."""

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The one knob, between the schedule's extremes."""
        values = [value for _, value in self.schedule.points]
        return {self.knob: Knob(min(values), max(values))}

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Return the schedule's value."""
        del knobs, memory
        return {self.knob: self.schedule(statistics.iteration)}
