"""What an AppWorld environment is, wherever its engine runs: prompts, rewards, and a verdict."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from isentrope import Cell, ConfigError, NotebookEnv, NotebookLimits
from isentrope_envs.appworld import prompts, rewards

OUTPUT = 12_000
"""Characters of an output that a policy sees: about 3,000 tokens."""


class World(Protocol):
    """An open task."""

    @property
    def about(self) -> dict[str, str]:
        """Its instruction, date, and who asks: first_name, last_name, email, phone_number."""
        ...

    @property
    def failed(self) -> int:
        """Cells that raised, or ended their process."""
        ...

    @property
    def running(self) -> bool:
        """Whether there is what runs cells."""
        ...

    def run(self, code: str, seconds: float | None = None) -> Cell:
        """Run a cell; it has an answer, whatever that is, once the task was called complete."""
        ...

    def judge(self) -> dict[str, Any]:
        """Return the engine's verdict; raises `GraderError` where there is none."""
        ...

    def close(self) -> None:
        """Leave it."""
        ...


class AppWorldEnv(NotebookEnv):
    """An episode ends when the policy calls ``complete_task``.

    preset: how the policy is spoken to (`prompts.PRESETS`). reward: of `rewards.REWARDS`. turns: a
    limit of its own, at which what was done is judged all the same; None: the preset's, 40 of
    ``loop`` and none of the others. An episode that hits a limit of the run earns nothing. seconds,
    memory_mib: for the code of a turn. output: characters of it that the policy is shown.
    unprotected: run even where the machine cannot shut files and network off.

    Success is the engine's verdict on the databases, and never that the task was called complete.
    Metrics at the end: tests, passes, difficulty, turns, failed_cells.

    Subclasses set `tasks`, and implement `open_world`.
    """

    def __init__(
        self,
        *,
        preset: str = "appworld",
        reward: str = "fraction",
        turns: int | None = None,
        seconds: float = 20.0,
        memory_mib: int = 3072,
        output: int = OUTPUT,
        unprotected: bool = False,
    ) -> None:
        self._preset, self._reward = prompts.preset(preset), rewards.reward(reward)
        self.blocks = self._preset.blocks
        self.limits = NotebookLimits(
            seconds=seconds, memory_mib=memory_mib, output=output, unprotected=unprotected
        )
        if turns is not None and (not isinstance(turns, int) or turns < 1):
            raise ConfigError(f"turns must be a whole number, at least 1; got {turns!r}.")
        self._turns, self._turn = turns or self._preset.turns, 0

    @abstractmethod
    def open_world(self) -> World:
        """Open the world of `self.task`."""

    def opening(self) -> str:
        """Return the task's instruction; the whole conversation is in ``info["messages"]``."""
        return self._world.about["instruction"]

    def notebook(self) -> World:
        """Open the task's world."""
        self._turn, self._world = 0, self.open_world()
        return self._world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin a task in a world of its own."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "messages": self._preset.opening(self._world.about)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run the turn's code there."""
        self._turn += 1
        output, reward, terminated, truncated, info = super().step(action)
        if not terminated and self._turn == self._turns:
            reward, info = self.end(None)
            return "", reward, False, True, info
        if not terminated:
            output = prompts.capped(output, self.limits.output)
            output = self._preset.answer(output, self._world.about)
        return output, reward, terminated, truncated, info

    def grade(self, answer: Any) -> float:
        """Return what the databases are worth as they are now; the engine has the answer."""
        return self.end(answer)[0]

    def end(self, answer: Any) -> tuple[float, dict[str, Any]]:
        """Have the engine judge."""
        del answer
        verdict = self._world.judge()
        passed = [f"passed: {test['requirement']}" for test in verdict["passes"]]
        failed = [f"failed: {t['requirement']}\n{t['trace']}" for t in verdict["failures"]]
        return self._reward(verdict), {
            "success": bool(verdict["success"]),
            "metrics": {
                "tests": verdict["num_tests"],
                "passes": len(passed),
                "difficulty": verdict["difficulty"],
                "turns": self._turn,
                "failed_cells": self._world.failed,
            },
            "report": "\n".join(passed + failed),
        }
