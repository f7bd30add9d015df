"""`NotebookEnv`: the policy writes code, turn by turn, and sees what it printed."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any, Protocol

from isentrope.environments import TextEnv
from isentrope.notebook.blocks import ALL_BLOCKS, CodeBlocks
from isentrope.notebook.notebook import Cell, Notebook, NotebookLimits, end_nursery

NO_CODE = "There was no code block in your turn. Write code between ```python and ```."
NO_OUTPUT = "(no output)"


class Cells(Protocol):
    """What runs cells: a `Notebook`, or an engine that has a shell of its own."""

    @property
    def running(self) -> bool:
        """Whether there is a process, with what earlier cells left in it."""
        ...

    def run(self, code: str, seconds: float | None = None) -> Cell:
        """Run a cell."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class NotebookEnv(TextEnv):
    """Runs the code in the policy's turns in a confined notebook, until it submits an answer.

    The notebook knows what `setup` leaves in it and ``submit(answer)``, and nothing of the task's
    solution: `grade` is called here. What a policy's code does to its notebook (hang, crash, use
    up its memory) is told to the policy, and no failure of the environment.

    Subclasses set `tasks`, and implement `opening` and `grade`.
    """

    limits: NotebookLimits = NotebookLimits()
    blocks: CodeBlocks = ALL_BLOCKS

    @abstractmethod
    def opening(self) -> str:
        """Return what the policy is told first of ``self.task``."""

    def setup(self) -> str:
        """Return code that prepares the notebook for ``self.task``; its output is not shown."""
        return ""

    def notebook(self) -> Cells:
        """Return what runs the cells of an episode."""
        return Notebook(self.limits)

    @abstractmethod
    def grade(self, answer: Any) -> float:
        """Return the reward of a submitted answer, any JSON value; the maximum is a success."""

    def end(self, answer: Any) -> tuple[float, dict[str, Any]]:
        """Return what an answer earns, and the episode's last info."""
        reward = float(self.grade(answer))
        success = reward >= self.reward_range[1]
        return reward, {"success": success, "metrics": {"cells": self._cells}}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin with a notebook of its own."""
        _, info = super().reset(seed=seed, options=options)
        self._end_notebook()
        self._cells, self._notebook = 0, self.notebook()
        return self.opening(), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run the turn's cells, up to one that submits or fails; say what they printed."""
        said: list[str] = []
        end = _now() + self.limits.seconds
        for code in self.blocks.parse(action):
            cell = self._run(code, max(0.01, end - _now()))
            if cell.answers:
                reward, info = self.end(cell.answers[0])
                return "", reward, True, False, info
            said.append(cell.output.rstrip() or ("" if cell.died else NO_OUTPUT))
            if cell.died:
                said.append(f"{cell.died} The notebook begins again; its variables are gone.")
            if not cell.ran:
                break
        return "\n".join(filter(None, said)) or NO_CODE, 0.0, False, False, {}

    def close(self) -> None:
        """End the notebook, and what starts notebooks in this process."""
        self._end_notebook()
        end_nursery()

    def _end_notebook(self) -> None:
        if (notebook := getattr(self, "_notebook", None)) is not None:
            notebook.close()

    def _run(self, code: str, seconds: float) -> Cell:
        if not self._notebook.running and (setup := self.setup()):
            prepared = self._notebook.run(setup)
            if not prepared.ran:
                raise RuntimeError(f"setup() failed: {prepared.died or prepared.output}")
        self._cells += 1
        return self._notebook.run(code, seconds)


def _now() -> float:
    """Return seconds of real time: there are engines that stop the other clocks."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
