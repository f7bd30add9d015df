"""Runs programs in AppWorld's interpreter, for the installation."""

from __future__ import annotations

from pathlib import Path

from isentrope.installations import pinned
from isentrope_envs.appworld.place import Place

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
"""All that its interpreter has, pinned: the one place that chooses AppWorld's version."""


def wanted_version() -> str:
    """Return the version of AppWorld that an installation should have."""
    return pinned(REQUIREMENTS, "appworld")


def run(place: Place, doing: str, *command: str | Path, root: Path | None = None) -> str:
    """Run a command for a place and return what it printed; `root` is the engine's.

    Raises `IsentropeError` where it fails, which says what it was `doing`, and its last line.
    """
    place.cache.mkdir(parents=True, exist_ok=True)
    variables = {
        "APPWORLD_ROOT": str(root or place.full),
        "APPWORLD_CACHE": str(place.cache),
        "IPYTHONDIR": str(place.cache / "ipython"),
        "_TYPER_STANDARD_TRACEBACK": "1",  # whose last line is the error, whole
    }
    return place.run(doing, *command, variables=variables)
