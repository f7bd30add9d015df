"""Weights & Biases, with its own settings: ``WANDB_MODE=offline``, ``WANDB_API_KEY``, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from attrs import field, frozen, validators

from isentrope import TrackedRun
from isentrope.validation import text
from isentrope_plugins.trackers.keeping import kept_id, require


@frozen(kw_only=True)
class Wandb:
    """One run of a project; its files are in ``RUN/trackers/wandb``."""

    project: str = field(default="isentrope", validator=text())
    entity: str | None = field(default=None, validator=validators.optional(text()))
    """User or team; None: who is logged in."""
    group: str | None = field(default=None, validator=validators.optional(text()))
    """Runs that are shown together, such as seeds."""

    def check(self) -> None:
        """Raise `ConfigError` where wandb is not installed."""
        require("wandb", "wandb", "isentrope[wandb]")

    def start(self, run: TrackedRun) -> _WandbRun:
        """Begin a run, or go on with it."""
        import wandb

        return _WandbRun(
            wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                name=run.name,
                id=kept_id(run, lambda: uuid4().hex[:8]),
                resume="allow",
                config=dict(run.config),
                dir=run.folder,
            )
        )


class _WandbRun:
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, iteration: int, metrics: Mapping[str, float | int]) -> None:
        self.run.log(dict(metrics), step=iteration)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
