"""Validators for the fields of a plugin's classes, whose errors are sentences for users.

``low: float = attrs.field(validator=validation.real(above=0))``. attrs' own check bounds but not
types or finiteness, and word their errors for programmers. All raise `ConfigError`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from attrs import Attribute

from isentrope.errors import ConfigError, UnknownNameError

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


def text() -> Validator:
    """Require a string that is not empty."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, str) or not value:
            _refuse(instance, attribute, "a string, not empty", value)

    return check


def flag() -> Validator:
    """Require true or false."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, bool):
            _refuse(instance, attribute, "true or false", value)

    return check


def one_of(values: Iterable[object]) -> Validator:
    """Require one of some values, names mostly; the error has the nearest."""
    known = tuple(values)

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if value not in known:
            what = f"{type(instance).__name__}.{attribute.name}:"
            raise UnknownNameError(what, str(value), map(str, known))

    return check


def is_real(value: object) -> TypeGuard[int | float]:
    """Say whether something is a finite number, and no bool."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def instance_of(kind: type) -> Validator:
    """Require an instance of one of Isentrope's classes."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            _refuse(instance, attribute, f"of type isentrope.{kind.__name__}", value)

    return check


def _refuse(instance: object, attribute: Attribute[Any], wanted: str, value: object) -> None:
    field = f"{type(instance).__name__}.{attribute.name}"
    raise ConfigError(f"{field} must be {wanted}; got {value!r}.")
