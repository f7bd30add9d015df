"""Sort letters by swapping two of them a turn.

Before each turn the policy is told the present order and how many swaps it has left, such as
``Sort c a b e d in 3 swaps.``: at first exactly as many as are needed, so that no turn can be
wasted. Mostly several swaps are equally right, so that a policy which solves every task can still
have entropy.
"""

from __future__ import annotations

import functools
import re
from hashlib import sha256
from itertools import combinations, permutations
from typing import Any

import numpy as np

from isentrope import ConfigError, Task, TaskSet, TextEnv

FEWEST, MOST = 3, 7  # letters

_SWAP = re.compile(r"\s*([a-z])\s+([a-z])\s*")


class Swaps(TextEnv):
    """Sort letters; a turn names the two to swap: ``a c``. Anything else wastes the turn.

    letters: how many there are.

    Sorting them earns 1. Running out of swaps earns up to 0.5, by the share of the way that was
    gone, and is no success. ``info["metrics"]["swaps_missing"]`` is what was left of the way.
    """

    def __init__(self, letters: int = 5) -> None:
        if not FEWEST <= letters <= MOST:
            raise ConfigError(f"letters must be {FEWEST} to {MOST}; got {letters}.")
        self.tasks = _tasks(letters)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Lay out the letters."""
        _, info = super().reset(seed=seed, options=options)
        self._order = str(self.task.data["order"])
        self._left = fewest_swaps(self._order)
        return self._observation(), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Swap two letters."""
        named = _SWAP.fullmatch(action)
        if named and set(named.groups()) <= set(self._order):
            self._order = swapped(self._order, *named.groups())
        self._left -= 1
        missing = fewest_swaps(self._order)
        if missing and self._left:
            return self._observation(), 0.0, False, False, {}
        way = fewest_swaps(str(self.task.data["order"]))
        reward = 1.0 if missing == 0 else 0.5 * max(0.0, 1 - missing / way)
        info = {"success": missing == 0, "metrics": {"swaps_missing": missing}}
        return "", reward, True, False, info

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        """Name any swap that helps; with probability `noise`, any at all."""
        pairs = list(combinations(self._order, 2))
        if rng.random() >= noise:
            missing = fewest_swaps(self._order)
            pairs = [p for p in pairs if fewest_swaps(swapped(self._order, *p)) < missing]
        return " ".join(pairs[rng.integers(len(pairs))])

    def _observation(self) -> str:
        return f"Sort {' '.join(self._order)} in {self._left} swaps."


def swapped(order: str, one: str, other: str) -> str:
    """Return the letters with two of them in each other's place."""
    return order.translate(str.maketrans(one + other, other + one))


def fewest_swaps(order: str) -> int:
    """Return how many swaps sort the letters: their number less that of their cycles.

    A swap of two letters of one cycle splits it, and sorted letters are cycles of one.
    """
    place = {letter: i for i, letter in enumerate(sorted(order))}
    cycles, seen = 0, set[str]()
    for letter in order:
        cycles += letter not in seen
        while letter not in seen:
            seen.add(letter)
            letter = order[place[letter]]
    return len(order) - cycles


@functools.cache  # task sets never change, and an iteration makes hundreds of environments
def _tasks(letters: int) -> TaskSet:
    """Every order but the sorted one, in a fixed sequence; a fifth each for dev and test."""
    _, *orders = map("".join, permutations("abcdefg"[:letters]))
    orders.sort(key=lambda order: sha256(order.encode()).digest())
    tasks = [Task(order, {"order": order}) for order in orders]
    held_out = len(tasks) // 5
    return TaskSet(
        {
            "train": tasks[2 * held_out :],
            "dev": tasks[:held_out],
            "test": tasks[held_out : 2 * held_out],
        }
    )
