"""What the trackers have in common: is their library there, and which of its runs is this one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from isentrope import ConfigError, TrackedRun


def require(tracker: str, package: str, requirement: str) -> None:
    """Raise `ConfigError` where a package is not installed."""
    if find_spec(package) is None:
        raise ConfigError(
            f"The tracker {tracker!r} needs the package {package}, which is not installed: "
            f"pip install '{requirement}'."
        )


def kept_id(run: TrackedRun, make: Callable[[], str]) -> str:
    """Return the id of the run with its tracker: made once, and then the same."""
    file = run.folder / "id"
    if not file.exists():
        draft = file.with_name("id.draft")
        draft.write_text(make(), encoding="utf-8")
        draft.replace(file)
    return file.read_text(encoding="utf-8")
