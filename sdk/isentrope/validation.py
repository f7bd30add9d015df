"""Validators of fields, whose errors are sentences for users.

attrs' own check bounds but neither type nor finiteness, and word their errors for programmers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

from attrs import Attribute

from isentrope.errors import ConfigError

Validator = Callable[[Any, "Attribute[Any]", Any], None]


def whole(low: int, why: str = "") -> Validator:
    """Require a whole number of at least `low`; `why` is added to the error."""
    wanted = f"a whole number, at least {low}" + (f" ({why})" if why else "")

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            _refuse(instance, attribute, wanted, value)

    return check


def real(
    low: float = -math.inf, high: float = math.inf, *, above: float | None = None
) -> Validator:
    """Require a finite number within [low, high], and greater than `above`."""
    wanted = "a finite number"
    if above is not None:
        wanted += f", above {above:g}"
    if low > -math.inf:
        wanted += f", at least {low:g}"
    if high < math.inf:
        wanted += f", at most {high:g}"

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not is_real(value) or not low <= value <= high or (above is not None and value <= above):
            _refuse(instance, attribute, wanted, value)

    return check


def is_real(value: object) -> TypeGuard[int | float]:
    """Say whether something is a finite number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def instance_of(kind: type) -> Validator:
    """Require an instance of one of `isentrope`'s classes."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            _refuse(instance, attribute, f"of type isentrope.{kind.__name__}", value)

    return check


def _refuse(instance: object, attribute: Attribute[Any], wanted: str, value: object) -> None:
    field = f"{type(instance).__name__}.{attribute.name}"
    raise ConfigError(f"{field} must be {wanted}; got {value!r}.")
