"""Makes the interpreter that AppWorld runs in, with the environment's own packages beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import isentrope
import isentrope_envs
from isentrope_envs.appworld.engine import REQUIREMENTS, run, wanted_version
from isentrope_envs.appworld.place import Place

LINKED = {
    package.__name__: Path(str(package.__file__)).parent for package in (isentrope, isentrope_envs)
}
"""Packages of this Isentrope that the interpreter sees as links: without what else is installed
here, torch above all, and always of one version with the run that starts workers there."""


def is_current(place: Place) -> bool:
    """Say whether the interpreter is whole, and has what is required of it now."""
    return place.has(REQUIREMENTS)


def make(place: Place) -> None:
    """Make the interpreter beside its place, and put it there when it is whole."""

    def finish(python: Path) -> None:
        run(place, "appworld install", python, "-I", "-m", "appworld.cli", "install")
        (packages,) = _site_packages(python.parents[1])
        unpacked = packages / "appworld"
        run(place, "compileall", python, "-I", "-m", "compileall", "-q", unpacked)

    place.make_environment(REQUIREMENTS, finish)


def link(place: Place) -> None:
    """Let the interpreter see this Isentrope."""
    (packages,) = _site_packages(place.environment)
    for name, target in LINKED.items():
        new = packages / f".{name}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(target, target_is_directory=True)
        new.replace(packages / name)


def faults(place: Place) -> Iterator[str]:
    """Say what is wrong with the interpreter."""
    if not is_current(place):
        yield "its interpreter is not finished, or of another version of Isentrope"
        return
    program = "from importlib.metadata import version; print(version('appworld'))"
    found = run(place, "its interpreter", place.python, "-I", "-c", program).strip()
    if found != wanted_version():
        yield f"its interpreter has appworld {found}, and not {wanted_version()}"
    yield from _other_links(place)


def fault(python: str) -> str | None:
    """Say, quickly, what keeps the interpreter of an installation from running this Isentrope."""
    found = next(_other_links(Place(Path(python).parents[2])), None)
    return None if found is None else f"{found}; isentrope appworld install mends that."


def _other_links(place: Place) -> Iterator[str]:
    for packages in _site_packages(place.environment):
        for name, target in LINKED.items():
            if (seen := (packages / name).resolve()) != target.resolve():
                where = f"in {seen.parent}, and not that in {target.parent}"
                yield f"its interpreter sees the {name} {where}"


def _site_packages(folder: Path) -> list[Path]:
    return list(folder.glob("lib/python3*/site-packages"))
