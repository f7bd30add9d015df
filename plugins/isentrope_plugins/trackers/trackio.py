"""trackio: a database on this machine, for ``trackio show``, with its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from attrs import field, frozen

from isentrope import TrackedRun
from isentrope.validation import text
from isentrope_plugins.trackers.keeping import kept_id, require


@frozen(kw_only=True)
class Trackio:
    """One run of a project in trackio's database."""

    project: str = field(default="isentrope", validator=text())

    def check(self) -> None:
        """Raise `ConfigError` where trackio is not installed."""
        require("trackio", "trackio", "isentrope[trackio]")

    def start(self, run: TrackedRun) -> _TrackioRun:
        """Begin a run, or go on with it. It is found by its name, so that must be its own."""
        import trackio

        return _TrackioRun(
            trackio.init(
                project=self.project,
                name=kept_id(run, lambda: f"{run.name}-{uuid4().hex[:6]}"),
                resume="allow",
                config=dict(run.config),
                embed=False,
            )
        )


class _TrackioRun:
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, iteration: int, metrics: Mapping[str, float | int]) -> None:
        self.run.log(dict(metrics), step=iteration)

    def close(self, failed: bool) -> None:
        del failed  # trackio knows no such thing
        self.run.finish()
