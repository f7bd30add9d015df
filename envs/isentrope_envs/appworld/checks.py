"""What ``isentrope doctor`` says of AppWorld."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from isentrope import Diagnosis, IsentropeError
from isentrope_envs.appworld import data, interpreter
from isentrope_envs.appworld.engine import wanted_version
from isentrope_envs.appworld.place import Place


def check() -> Iterator[Diagnosis]:
    """Say whether AppWorld is installed where environments look for it, and whether it is whole."""
    place = Place.default()
    if not place.is_ours:
        fix = "isentrope appworld install"
        yield Diagnosis("appworld", "absent", f"not in {place.root}", fix=fix)
        return
    try:
        fault = next(itertools.chain(interpreter.faults(place), data.faults(place)), None)
    except (OSError, IsentropeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault is not None:
        fix = "isentrope appworld install"
        yield Diagnosis("appworld", "broken", f"{place.root}: {fault}", fix=fix)
        return
    tasks = sum(data.count(place).values())
    message = f"{wanted_version()} with {data.kind(place)} data, {tasks} tasks, in {place.root}"
    yield Diagnosis("appworld", "ok", message)
