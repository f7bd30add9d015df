"""What ``isentrope doctor`` says of AppWorld."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from isentrope import Diagnosis, IsentropeError
from isentrope_envs.appworld import data, interpreter
from isentrope_envs.appworld.engine import wanted_version
from isentrope_envs.appworld.installation import is_ours
from isentrope_envs.appworld.place import Place


def check() -> Iterator[Diagnosis]:
    """Say whether AppWorld is installed where environments look for it, and whether it is whole."""
    place = Place.default()
    if not is_ours(place):
        message = f"not in {place.root}; to install it: isentrope appworld install"
        yield Diagnosis("appworld", "absent", message)
        return
    try:
        fault = next(itertools.chain(interpreter.faults(place), data.faults(place)), None)
    except (OSError, IsentropeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault is not None:
        message = f"{place.root}: {fault}; to repair it: isentrope appworld install"
        yield Diagnosis("appworld", "broken", message)
        return
    tasks = sum(data.count(place).values())
    message = f"{wanted_version()} with {data.kind(place)} data, {tasks} tasks, in {place.root}"
    yield Diagnosis("appworld", "ok", message)
