"""Makes the interpreter that AppWorld runs in, with the environment's own packages beside it."""

from __future__ import annotations

import shutil
import sys
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
    stamp = _stamp(place.root / "python")
    return stamp.is_file() and stamp.read_bytes() == REQUIREMENTS.read_bytes()


def make(place: Place) -> None:
    """Make the interpreter beside its place, and put it there when it is whole."""
    folder = place.building / "python"
    python = folder / "bin" / "python"
    run(place, "python -m venv", sys.executable, "-I", "-m", "venv", folder)
    pip = (python, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(place, "pip install", *pip, "--requirement", REQUIREMENTS)
    run(place, "appworld install", python, "-I", "-m", "appworld.cli", "install")
    (packages,) = _site_packages(folder)
    unpacked = packages / "appworld"
    run(place, "compileall", python, "-I", "-m", "compileall", "-q", unpacked)
    shutil.copyfile(REQUIREMENTS, _stamp(folder))
    _rename(folder, place.root / "python")


def link(place: Place) -> None:
    """Let the interpreter see this Isentrope."""
    (packages,) = _site_packages(place.root / "python")
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
    for packages in _site_packages(place.root / "python"):
        for name, target in LINKED.items():
            if (seen := (packages / name).resolve()) != target.resolve():
                where = f"in {seen.parent}, and not that in {target.parent}"
                yield f"its interpreter sees the {name} {where}"


def _stamp(folder: Path) -> Path:
    """Return the copy of the requirements that says that all of them are installed."""
    return folder / "requirements.txt"


def _site_packages(folder: Path) -> list[Path]:
    return list(folder.glob("lib/python3*/site-packages"))


def _rename(folder: Path, to: Path) -> None:
    """Move a virtual environment; scripts in its bin name the folder that they are in."""
    for script in (folder / "bin").iterdir():
        if not script.is_symlink():
            text = script.read_bytes()
            script.write_bytes(text.replace(bytes(folder), bytes(to)))
    if to.exists():
        to.rename(folder.with_name("old-python"))
    folder.rename(to)
