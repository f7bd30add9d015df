"""`AppWorld`: everyday tasks over nine apps, done by writing Python; the real engine.

Trivedi et al. 2024, AppWorld (ACL). Runs in AppWorld's own interpreter, which ``isentrope appworld
install`` makes; importing this module there warms the engine up, and workers are forks of that.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isentrope import ConfigError, NotebookEnv, NotebookLimits, Task, TaskSet
from isentrope_envs.appworld import prompts, rewards
from isentrope_envs.appworld.place import Place
from isentrope_envs.appworld.prompts import capped
from isentrope_envs.appworld.routes import Routes
from isentrope_envs.appworld.world import World, difficulty, warm_up

SPLITS = ("train", "dev", "test_normal", "test_challenge")
PLACE = Place.of_interpreter()
SUPERVISOR = ("first_name", "last_name", "email", "phone_number")
ALL = (1, 2, 3)
OUTPUT = 12_000
"""Characters of an output that a policy sees: about 3,000 tokens."""

warm_up(PLACE)
ROUTES = Routes(PLACE.agent / "data" / "api_docs" / "standard")


class AppWorld(NotebookEnv):
    """Tasks of AppWorld's; an episode ends when the policy calls ``complete_task``.

    preset: how the policy is spoken to (`prompts.PRESETS`). reward: of `rewards.REWARDS`. turns: a
    limit of its own, at which what was done is judged all the same, as LOOP does; without, limits
    are the run's, and an episode that hits one earns nothing. difficulties: which tasks, of 1 to 3.
    seconds, memory_mib: for the code of a turn. outputs: a folder in which each episode's databases
    and logs are kept, as the engine writes them. unprotected: run even where the machine cannot
    shut files and network off.

    Success is the engine's verdict on the databases, and never that the task was called complete.
    Metrics at the end: tests, passes, difficulty, cells, failed_cells.
    """

    def __init__(
        self,
        *,
        preset: str = "appworld",
        reward: str = "fraction",
        turns: int | None = None,
        difficulties: Sequence[int] = ALL,
        seconds: float = 20.0,
        memory_mib: int = 3072,
        output: int = OUTPUT,
        outputs: str | None = None,
        unprotected: bool = False,
    ) -> None:
        self._preset, self._reward = prompts.preset(preset), rewards.reward(reward)
        self.blocks = self._preset.blocks
        self.limits = NotebookLimits(
            seconds=seconds, memory_mib=memory_mib, output=output, unprotected=unprotected
        )
        self._turns, self._outputs = turns, None if outputs is None else Path(outputs)
        self.tasks = _tasks(_levels(difficulties))

    def opening(self) -> str:
        """Return the task's instruction; the whole conversation is in ``info["messages"]``."""
        return str(self._about["instruction"])

    def notebook(self) -> World:
        """Open the task's world."""
        self._turn, self._world = 0, World(self.task.id, self.limits, PLACE, ROUTES)
        task = self._world.engine.task
        who = {name: getattr(task.supervisor, name) for name in SUPERVISOR}
        date = f"{task.datetime:%A, %d %B %Y, %H:%M}"
        self._about = {"instruction": task.instruction, "date": date, **who}
        return self._world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin a task in a world of its own."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "messages": self._preset.opening(self._about)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run the turn's code there."""
        self._turn += 1
        output, reward, terminated, truncated, info = super().step(action)
        if not terminated and self._turn == self._turns:
            reward, info = self.end(None)
            return "", reward, False, True, info
        if not terminated:
            output = self._preset.answer(capped(output, self.limits.output), self._about)
        return output, reward, terminated, truncated, info

    def grade(self, answer: Any) -> float:
        """Return what the databases are worth as they are now; the engine has the answer."""
        return self.end(answer)[0]

    def end(self, answer: Any) -> tuple[float, dict[str, Any]]:
        """Have the engine judge."""
        del answer
        verdict = self._world.judge()
        if self._outputs is not None:
            self._keep(verdict)
        numbers = {
            "tests": verdict["num_tests"],
            "passes": len(verdict["passes"]),
            "difficulty": verdict["difficulty"],
            "turns": self._turn,
            "failed_cells": self._world.failed,
        }
        lines = [f"passed: {test['requirement']}" for test in verdict["passes"]]
        for test in verdict["failures"]:
            lines.append(f"failed: {test['requirement']}\n{test['trace']}")
        report = "\n".join(lines)
        return self._reward(verdict), {
            "success": bool(verdict["success"]),
            "metrics": numbers,
            "report": report,
        }

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str | None:
        """Do what our tiny world's solution does next; real tasks have none.

        With probability `noise` do another of its turns instead.
        """
        cells = solution(PLACE, self.task.id)
        if cells is None:
            return None
        place = min(self._turn, len(cells) - 1)
        if rng.random() < noise:
            place = int(rng.integers(len(cells)))
        return f"```python\n{cells[place]}\n```"

    def _keep(self, verdict: Mapping[str, Any]) -> None:
        """Save the engine's outputs under a name that no other rollout has."""
        assert self._outputs is not None
        folder = Path(tempfile.mkdtemp(prefix=f"{self.task.id}-", dir=self._outputs))
        shutil.copytree(self._world.outputs, folder, dirs_exist_ok=True)
        (folder / "verdict.json").write_text(json.dumps(verdict, indent=1), encoding="utf-8")


def solution(place: Place, task: str) -> list[str] | None:
    """Return the cells that solve a task of our tiny world; None for a real task."""
    file = place.full / "data" / "tasks" / task / "ground_truth" / "turns.json"
    if not file.is_file():
        return None
    cells: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return cells


@functools.cache  # task sets never change
def _tasks(difficulties: tuple[int, ...]) -> TaskSet:
    splits = {}
    for split in SPLITS:
        file = PLACE.agent / "data" / "datasets" / f"{split}.txt"
        ids = file.read_text(encoding="utf-8").split() if file.is_file() else []
        chosen = [i for i in ids if difficulties == ALL or difficulty(PLACE, i) in difficulties]
        if chosen:
            splits[split] = [Task(i) for i in chosen]
    if not splits:
        raise ConfigError(f"There are no tasks of difficulty {list(difficulties)} in {PLACE.root}.")
    return TaskSet(splits)


def _levels(difficulties: Any) -> tuple[int, ...]:
    wanted = tuple(difficulties) if isinstance(difficulties, (list, tuple)) else ()
    if not wanted or any(level not in ALL for level in wanted):
        raise ConfigError(f"difficulties must be a list of {list(ALL)}; got {difficulties!r}.")
    return tuple(sorted(set(wanted)))
