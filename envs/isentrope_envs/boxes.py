"""Data puzzles in a notebook: what is asked for is known only to who looks.

The policy is told of a variable, `box`, and not what is in it: numbers, and what to do with them.
It has to look in one turn, and to submit in another. Code that does whatever a box may ask for
would do in one.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from isentrope import NotebookEnv, NotebookLimits, Task, TaskSet

KINDS: dict[str, Callable[[list[int]], int]] = {
    "max": max,
    "min": min,
    "first": lambda numbers: numbers[0],
    "last": lambda numbers: numbers[-1],
    "count": len,
}
SIZES = {"train": 60, "dev": 20, "test": 20}
"""Boxes of each kind, by split."""
NEAR = 0.2


class Boxes(NotebookEnv):
    """Submit what the box asks for.

    Right, it earns 1, which alone is a success; one of the box's numbers, or how many there are,
    earns 0.2; anything else nothing. A turn without code, or whose code fails, says so and is lost.
    """

    limits = NotebookLimits(seconds=2.0, memory_mib=256, output=1000)

    def __init__(self) -> None:
        self.tasks = _tasks()

    def opening(self) -> str:
        """Say that there is a box."""
        return "Look at `box`, then submit(...) what it asks for."

    def setup(self) -> str:
        """Put it into the notebook."""
        return f"box = {self.task.data['box']!r}"

    def grade(self, answer: Any) -> float:
        """Compare with what the kind makes of the numbers."""
        box = self.task.data["box"]
        if isinstance(answer, bool) or not isinstance(answer, int):
            return 0.0
        if answer == KINDS[box["do"]](box["of"]):
            return 1.0
        return NEAR if answer in (*box["of"], len(box["of"])) else 0.0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run the turn's code."""
        self._turns += 1
        return super().step(action)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Close the box."""
        self._turns = 0
        return super().reset(seed=seed, options=options)

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        """Look, then submit; with probability `noise` any of the numbers."""
        box = self.task.data["box"]
        if self._turns == 0:
            return "```python\nbox\n```"
        wrong = rng.random() < noise
        answer = rng.choice(box["of"]) if wrong else KINDS[box["do"]](box["of"])
        return f"```python\nsubmit({answer})\n```"


@functools.cache  # task sets never change
def _tasks() -> TaskSet:
    splits: dict[str, list[Task]] = {}
    for split, size in SIZES.items():
        tasks = [_task(kind, split, i) for i in range(size) for kind in KINDS]
        splits[split] = tasks
    return TaskSet(splits)


def _task(kind: str, split: str, number: int) -> Task:
    rng = random.Random(f"{kind} {split} {number}")
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    return Task(f"{split}-{kind}-{number}", {"box": {"do": kind, "of": numbers}})
