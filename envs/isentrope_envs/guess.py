"""Find a number by asking: the answer to each guess decides what the next should be.

The policy is told a range and how many guesses it has, exactly as many as halving needs. After a
wrong guess it hears "higher" or "lower". Repeating a fixed list of guesses fails for most numbers.
"""

from __future__ import annotations

import functools
import re
from hashlib import sha256
from typing import Any

import numpy as np

from isentrope import Task, TaskSet, TextEnv

LOWEST, WIDTHS = range(1, 21), (7, 15)
HELD_OUT = 64  # tasks in each of dev and test

_NUMBER = re.compile(r"0*([0-9]{1,9})[0-9]*")  # nine digits are far out of every range


class Guess(TextEnv):
    """Guess a whole number between two bounds, one guess a turn; the turn's last number counts.

    Finding it earns 1. Running out of guesses earns up to 0.5, by the share of the range that the
    answers excluded, and is no success.
    """

    def __init__(self) -> None:
        self.tasks = _tasks()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Think of a number and name its bounds."""
        _, info = super().reset(seed=seed, options=options)
        self._low, self._high = int(self.task.data["low"]), int(self.task.data["high"])
        self._guesses_left = (self._high - self._low + 1).bit_length()
        opening = f"A number from {self._low} to {self._high}. {self._guesses_left} guesses."
        return opening, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer a guess."""
        secret = int(self.task.data["secret"])
        numbers = _NUMBER.findall(action)
        self._guesses_left -= 1
        if not numbers:
            answer = "Guess one whole number."
        elif (guess := int(numbers[-1])) == secret:
            return "", 1.0, True, False, {"success": True}
        elif guess < secret:
            answer, self._low = "higher", max(self._low, guess + 1)
        else:
            answer, self._high = "lower", min(self._high, guess - 1)
        if self._guesses_left > 0:
            return answer, 0.0, False, False, {}
        width = int(self.task.data["high"]) - int(self.task.data["low"]) + 1
        excluded = 1 - (self._high - self._low + 1) / width
        return answer, 0.5 * excluded, True, False, {"success": False}

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        """Halve what is left; with probability `noise` guess anywhere in the first range."""
        if rng.random() < noise:
            return str(rng.integers(self.task.data["low"], self.task.data["high"] + 1))
        return str((self._low + self._high) // 2)


@functools.cache  # task sets never change, and an iteration makes hundreds of environments
def _tasks() -> TaskSet:
    """Every number in every range, in a fixed order."""
    tasks = [
        Task(
            f"{low}-{low + width - 1}:{secret}",
            {"low": low, "high": low + width - 1, "secret": secret},
        )
        for low in LOWEST
        for width in WIDTHS
        for secret in range(low, low + width)
    ]
    tasks.sort(key=lambda task: sha256(task.id.encode()).digest())
    return TaskSet(
        {
            "train": tasks[2 * HELD_OUT :],
            "dev": tasks[:HELD_OUT],
            "test": tasks[HELD_OUT : 2 * HELD_OUT],
        }
    )
