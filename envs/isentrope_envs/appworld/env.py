"""`AppWorld`: everyday tasks over nine apps, done by writing Python; the engine on this machine.

Trivedi et al. 2024, AppWorld (ACL). Runs in AppWorld's own interpreter, which ``isentrope appworld
install`` makes; importing this module there warms the engine up, and workers are forks of that.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isentrope import ConfigError, Task, TaskSet
from isentrope_envs.appworld.base import AppWorldEnv
from isentrope_envs.appworld.judge import Judge
from isentrope_envs.appworld.place import Place
from isentrope_envs.appworld.routes import Routes
from isentrope_envs.appworld.world import LocalWorld, warm_up

SPLITS = ("train", "dev", "test_normal", "test_challenge")
LEVELS = (1, 2, 3)
GIVE_UP = "apis.supervisor.complete_task(answer=0)"
PLACE = Place.of_interpreter()

warm_up(PLACE)
ROUTES = Routes(PLACE.agent / "data" / "api_docs" / "standard")


class AppWorld(AppWorldEnv):
    """Tasks of the data that are installed here.

    difficulties: which tasks, of 1 to 3. outputs: a folder in which every episode's databases and
    logs are kept as the engine writes them, finished or not. options: see `AppWorldEnv`.
    """

    def __init__(
        self,
        *,
        difficulties: Sequence[int] = LEVELS,
        outputs: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.tasks = _tasks(_levels(difficulties))
        self._outputs = None if outputs is None else _folder(outputs)
        self._judge = Judge(PLACE.full)

    def open_world(self) -> LocalWorld:
        """Open the task's world, in this process."""
        return LocalWorld(self.task.id, self.limits, ROUTES, self._judge, self._outputs)

    def close(self) -> None:
        """Leave the world, and end the judge."""
        super().close()
        self._judge.close()

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str | None:
        """Do what our tiny world's solution does next; real tasks have none.

        With probability `noise` give up with an answer that is wrong.
        """
        cells = _solution(self.task.id)
        if cells is None:
            return None
        code = GIVE_UP if rng.random() < noise else cells[min(self._turn, len(cells) - 1)]
        return f"```python\n{code}\n```"


def _folder(path: str) -> Path:
    """Return a folder that can be written, or made: which is done once there is what to keep."""
    folder = Path(path).absolute()
    there = next(found for found in (folder, *folder.parents) if found.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return folder
    except OSError as error:
        raise ConfigError(
            f"outputs: {path} cannot be written: {there}: {error.strerror}."
        ) from error


def _solution(task: str) -> list[str] | None:
    """Return the cells that solve a task of our tiny world."""
    file = PLACE.full / "data" / "tasks" / task / "ground_truth" / "turns.json"
    if not file.is_file():
        return None
    cells: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return cells


@functools.cache  # task sets never change
def _tasks(levels: tuple[int, ...]) -> TaskSet:
    splits = {}
    for split in SPLITS:
        file = PLACE.agent / "data" / "datasets" / f"{split}.txt"
        ids = file.read_text(encoding="utf-8").split() if file.is_file() else []
        chosen = [i for i in ids if levels == LEVELS or PLACE.difficulty(i) in levels]
        if chosen:
            splits[split] = [Task(i) for i in chosen]
    if not splits:
        raise ConfigError(f"There are no tasks of difficulty {list(levels)} in {PLACE.root}.")
    return TaskSet(splits)


def _levels(difficulties: Any) -> tuple[int, ...]:
    wanted = tuple(difficulties) if isinstance(difficulties, (list, tuple)) else ()
    if not wanted or any(level not in LEVELS for level in wanted):
        raise ConfigError(f"difficulties must be a list of {list(LEVELS)}; got {difficulties!r}.")
    return tuple(sorted(set(wanted)))
