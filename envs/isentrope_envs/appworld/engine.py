"""Runs programs in AppWorld's interpreter, for the installation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from isentrope import IsentropeError
from isentrope_envs.appworld.place import Place

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
"""All that its interpreter has, pinned: the one place that chooses AppWorld's version."""


def wanted_version() -> str:
    """Return the version of AppWorld that an installation should have."""
    (version,) = (
        line.removeprefix("appworld==").strip()
        for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()
        if line.startswith("appworld==")
    )
    return version


def run(place: Place, what: str, *command: str | Path, root: Path | None = None) -> str:
    """Run a command for a place and return what it printed; `root` is the engine's.

    Raises `IsentropeError` where it fails, which says `what` did, and its last line.
    """
    place.cache.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "APPWORLD_ROOT": str(root or place.full),
        "APPWORLD_CACHE": str(place.cache),
        "IPYTHONDIR": str(place.cache / "ipython"),
        "_TYPER_STANDARD_TRACEBACK": "1",  # whose last line is the error, whole
    }
    done = subprocess.run(  # noqa: S603  # commands of ours
        [str(part) for part in command],
        cwd=place.cache,  # a module of the user's there would hide one of the engine's
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        last = said.splitlines()[-1] if said else "it printed nothing"
        raise IsentropeError(f"{what} failed with exit status {done.returncode}: {last}")
    return done.stdout
