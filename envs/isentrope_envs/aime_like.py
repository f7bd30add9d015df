r"""Problems like AIME's, but generated, at four levels: a whole number from 0 to 999 is the answer.

Sequences, powers modulo m, and counting by inclusion and exclusion. With the level grow the steps
that a solution takes and the numbers in it: a policy of 100,000 parameters learns the first level
on one CPU core, and hardly begins the last. An answer is found as `isentrope_envs.aime` finds it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from isentrope import ConfigError, Task, TaskSet, TextEnv
from isentrope_envs.aime.extract import LONGEST, extract
from isentrope_envs.aime.integers import as_integer

LEVELS = (1, 2, 3, 4)
TRAIN, HELD_OUT = 400, 40
"""Tasks of each kind and level: in train, and in each of dev and test."""
SLIPS = (-10, -2, -1, 1, 2, 10)

Numbers = tuple[int, ...]
Slip = Callable[[int], int]


class AimeLike(TextEnv):
    r"""Solve a generated problem in one turn: the right number earns 1, all else 0.

    level: 1 to 4, or ``"all"``, whose splits hold those of every level.
    """

    def __init__(self, level: Literal[1, 2, 3, 4, "all"] = 1) -> None:
        if level != "all" and (isinstance(level, bool) or level not in LEVELS):
            raise ConfigError(f"level must be 1, 2, 3, 4 or 'all'; got {level!r}.")
        self.tasks = _tasks(LEVELS if level == "all" else (int(level),))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Pose a problem."""
        _, info = super().reset(seed=seed, options=options)
        data = self.task.data
        return POSE[data["kind"]](data["numbers"]), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Grade the answer; the episode ends."""
        answer = extract(action).answer
        read = answer is not None and len(answer) <= LONGEST
        right = read and as_integer(str(answer)) == self.task.data["answer"]
        info = {"success": right, "metrics": {"answered": float(answer is not None)}}
        return "", float(right), True, False, info

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        """Solve it step by step, each step wrong with probability `noise`."""

        def slip(value: int) -> int:
            if rng.random() >= noise:
                return value
            error = SLIPS[rng.integers(len(SLIPS))]
            return value + error if value + error >= 0 else value - error

        steps, answer = SOLVE[self.task.data["kind"]](self.task.data["numbers"], slip)
        return f"{steps} so \\boxed{{{answer}}}"


# Each kind: how it is posed, how it is solved, which numbers there are at a level.


def _pose_sequence(numbers: Numbers) -> str:
    first, step, length = numbers
    return f"A sequence begins with {first}, and each term is {step} more. Find term {length}."


def _solve_sequence(numbers: Numbers, slip: Slip) -> tuple[str, int]:
    first, step, length = numbers
    terms = [first]
    while len(terms) < length:
        terms.append(slip(terms[-1] + step))
    return ", ".join(map(str, terms)), terms[-1]


def _sequences(level: int) -> Iterator[Numbers]:
    """Term 3 to 4 of small numbers, up to term 10 to 12 of numbers of two digits."""
    lengths = {1: (3, 4), 2: (5, 6, 7), 3: (6, 7, 8), 4: (10, 11, 12)}[level]
    firsts, steps = ((range(40), range(2, 10)), (range(10, 60), range(12, 80)))[level > 2]
    yield from ((a, d, n) for a in firsts for d in steps for n in lengths)


def _pose_power(numbers: Numbers) -> str:
    base, exponent, modulus = numbers
    return f"Find the remainder when {base}^{exponent} is divided by {modulus}."


def _solve_power(numbers: Numbers, slip: Slip) -> tuple[str, int]:
    base, exponent, modulus = numbers
    powers = [base % modulus]
    while len(powers) < exponent:
        powers.append(slip(powers[-1] * base % modulus))
    return ", ".join(map(str, powers)), powers[-1]


def _powers(level: int) -> Iterator[Numbers]:
    """Powers up to the fourth modulo one digit, up to tenth powers modulo 1000."""
    exponents = {1: (2, 3, 4), 2: (5, 6, 7), 3: (5, 6, 7, 8), 4: range(5, 11)}[level]
    moduli = {1: range(3, 10), 2: range(3, 14), 3: range(20, 60), 4: range(950, 1001)}[level]
    bases = {1: range(2, 13), 2: range(2, 31), 3: range(3, 13), 4: range(6, 13)}[level]
    yield from ((b, e, m) for b in bases for e in exponents for m in moduli)


def _pose_count(numbers: Numbers) -> str:
    most, *divisors = numbers
    return f"How many of 1 to {most} are multiples of {' or '.join(map(str, divisors))}?"


def _solve_count(numbers: Numbers, slip: Slip) -> tuple[str, int]:
    most, *divisors = numbers
    counts = [slip(most // d) for d in divisors]
    steps = [f"{most}/{d}={count}" for d, count in zip(divisors, counts, strict=True)]
    if len(divisors) == 1:
        return steps[0], counts[0]
    both = math.lcm(*divisors)
    common = slip(most // both)
    answer = slip(max(0, sum(counts) - common))
    steps += [f"{most}/{both}={common}", f"{'+'.join(map(str, counts))}-{common}={answer}"]
    return ", ".join(steps), answer


def _counts(level: int) -> Iterator[Numbers]:
    """Multiples of one number up to 70; of either of two, up to 60, 300 and 999."""
    if level == 1:
        yield from ((n, d) for n in range(10, 71) for d in range(2, 7))
        return
    span = {2: range(20, 61), 3: range(100, 301), 4: range(500, 1000)}[level]
    largest = {2: 6, 3: 9, 4: 15}[level]
    yield from (
        (n, p, q)
        for n in span
        for p in range(2, largest)
        for q in range(p + 1, largest + 1)
        if q % p
    )


POSE = {"sequence": _pose_sequence, "power": _pose_power, "count": _pose_count}
SOLVE = {"sequence": _solve_sequence, "power": _solve_power, "count": _solve_count}
NUMBERS = {"sequence": _sequences, "power": _powers, "count": _counts}


@functools.cache  # task sets never change, and an iteration makes hundreds of environments
def _tasks(levels: tuple[int, ...]) -> TaskSet:
    splits: dict[str, list[Task]] = {"train": [], "dev": [], "test": []}
    for level in levels:
        for kind, numbers in NUMBERS.items():
            tasks = sorted((_task(kind, level, n) for n in numbers(level)), key=_shuffled)
            splits["dev"] += tasks[:HELD_OUT]
            splits["test"] += tasks[HELD_OUT : 2 * HELD_OUT]
            splits["train"] += tasks[2 * HELD_OUT : 2 * HELD_OUT + TRAIN]
    return TaskSet({name: sorted(tasks, key=_shuffled) for name, tasks in splits.items()})


def _shuffled(task: Task) -> bytes:
    """Sort tasks by this for an order that says nothing about them."""
    return sha256(task.id.encode()).digest()


def _task(kind: str, level: int, numbers: Numbers) -> Task:
    _, answer = SOLVE[kind](numbers, lambda value: value)
    name = f"{level}-{kind}-{'-'.join(map(str, numbers))}"
    return Task(name, {"kind": kind, "level": level, "numbers": numbers, "answer": answer})
