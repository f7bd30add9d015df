"""Say a word backwards: a toy, to be replaced by yours."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from isentrope import Task, TaskSet, TextEnv


class {{cookiecutter.class_name}}(TextEnv):
    """One turn: the policy is told a word, and says it backwards.

    letters: how long the words are. The reward is the share of letters that are right; a success is
    all of them.
    """

    def __init__(self, letters: int = 3) -> None:
        words = ["".join(found) for found in itertools.product("abcd", repeat=letters)]
        tasks = [Task(word, {"word": word}) for word in words]  # ids never change
        self.tasks = TaskSet({"train": tasks[::2], "test": tasks[1::2]})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Pose the task that is asked for, or draw one."""
        _, info = super().reset(seed=seed, options=options)  # sets self.task and self.np_random
        return f"Say {self.task.data['word']} backwards.", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge the assistant's turn: observation, reward, terminated, truncated, info."""
        wanted, said = self.task.data["word"][::-1], action.strip()
        right = sum(a == b for a, b in zip(wanted, said, strict=False))
        reward = right / max(len(wanted), len(said))
        return "", reward, True, False, {"success": said == wanted}

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        """Say what is right; with probability `noise`, the word as it is."""
        word: str = self.task.data["word"]
        return word if rng.random() < noise else word[::-1]
