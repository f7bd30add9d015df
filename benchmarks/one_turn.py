"""The environment of `environments.py`; a module of its own, as light as an author's would be."""

from __future__ import annotations

import os
import time
from typing import Any

from isentrope import Task, TaskSet, TextEnv


class OneTurn(TextEnv):
    """Asks, and is content with any answer.

    hangs, crashes: share of tasks on which it does that.
    """

    def __init__(self, hangs: float = 0.0, crashes: float = 0.0) -> None:
        self.tasks = TaskSet({"train": [Task(str(i)) for i in range(100)]})
        self.hangs, self.crashes = hangs, crashes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Ask."""
        _, info = super().reset(seed=seed, options=options)
        return "How are you?", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Be content, or else."""
        del action
        place = int(self.task.id) / 100
        if place < self.hangs:
            time.sleep(3600)
        elif place < self.hangs + self.crashes:
            os._exit(1)
        return "", 1.0, True, False, {"success": True}
