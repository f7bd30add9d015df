r"""Linear equations with small whole solutions, solved in words: ``Solve 7x-1=34``.

An answer is any text whose last ``\boxed{...}`` holds the solution. Many derivations lead there
(steps may be left out or spelt out, joined by any connective), so that a policy's entropy is real
diversity. Small enough that a policy of 100,000 parameters learns it on one CPU core.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from isentrope import ConfigError, Task, TaskSet, TextEnv

CONNECTIVES = (" so ", " thus ", " hence ", " then ", "; ", " => ")
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
COEFFICIENTS = {"all": range(2, 10), "small": range(2, 6), "large": range(6, 10)}
HELD_OUT = 128  # tasks in each of dev and test
LONGEST = 40  # characters of one side of an equation that are read

_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"-?[0-9]{1,9}")
EQUATION = re.compile(r"(?<![0-9x+\-*/])[0-9x+\-*/]++(?:=[0-9x+\-*/]++)+")
_TERM = re.compile(r"[+-]?[^+-]+")
_FACTOR = re.compile(r"([*/])([0-9]{0,9})(x?)(?=[*/]|$)")


class Arithmetic(TextEnv):
    r"""Solve ``Ax+b=c`` or ``Ax-b=c`` in one turn.

    grading: ``"answer"`` rewards the right box with 1, whatever stands before it, so that a policy
    may guess the solution and write nonsense in front. ``"derivation"`` also wants at least one
    equation, and every equation true of the solution: otherwise the right box earns 0.5 and is no
    success.

    coefficients: which tasks there are, those with A in 2 .. 5 (``"small"``), in 6 .. 9
    (``"large"``) or all of them. A task is in the same split whichever is chosen.

    However it is graded, ``info["metrics"]`` says whether the box was right (``right_answer``) and
    the derivation too (``right_derivation``), 0 or 1, and the share of equations that are true
    (``true_equations``).
    """

    def __init__(
        self,
        grading: Literal["answer", "derivation"] = "answer",
        coefficients: Literal["all", "small", "large"] = "all",
    ) -> None:
        if grading not in ("answer", "derivation"):
            raise ConfigError(f"grading must be 'answer' or 'derivation'; got {grading!r}.")
        if coefficients not in COEFFICIENTS:
            raise ConfigError(
                f"coefficients must be 'all', 'small' or 'large'; got {coefficients!r}."
            )
        self.grading = grading
        self.tasks = _tasks(coefficients)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Pose an equation."""
        _, info = super().reset(seed=seed, options=options)
        return f"Solve {self.task.id}", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Grade the answer; the episode ends."""
        solution = int(self.task.data["x"])
        boxes = _BOX.findall(action)
        right = bool(boxes) and _is_number(boxes[-1], solution)
        verdicts = [_is_true(equation, solution) for equation in EQUATION.findall(action)]
        derived = bool(verdicts) and all(verdicts)
        success = right and (derived or self.grading == "answer")
        reward = 1.0 if success else 0.5 * right
        metrics = {
            "right_answer": float(right),
            "right_derivation": float(right and derived),
            "true_equations": sum(verdicts) / len(verdicts) if verdicts else 0.0,
        }
        return "", reward, True, False, {"success": success, "metrics": metrics}

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        """Solve the equation step by step, each step wrong with probability `noise`."""
        a, b, c = (int(self.task.data[k]) for k in "abc")

        def slip(value: int) -> int:
            if rng.random() >= noise:
                return value
            return max(0, value + SLIPS[rng.integers(len(SLIPS))])

        def join() -> str:
            return CONNECTIVES[rng.integers(len(CONNECTIVES))]

        text = ""
        if rng.random() < 0.25:
            text += f"{a}x={c}{-b:+d}{join()}"
        product = slip(c - b)
        text += f"{a}x={product}{join()}"
        solution = slip(round(product / a))
        if rng.random() < 0.25:
            text += f"x={product}/{a}{join()}"
        return text + f"x={solution}{join()}\\boxed{{{solution}}}"


@functools.cache  # task sets never change, and an iteration makes hundreds of environments
def _tasks(coefficients: str) -> TaskSet:
    """Every equation with one-digit numbers and a positive right side, in a fixed order."""
    chosen = COEFFICIENTS[coefficients]
    tasks = [
        Task(f"{a}x{b:+d}={a * x + b}", {"a": a, "b": b, "c": a * x + b, "x": x})
        for a in range(2, 10)
        for x in range(1, 10)
        for b in range(-9, 10)
        if b != 0 and a * x + b > 0
    ]
    tasks.sort(key=lambda task: sha256(task.id.encode()).digest())
    splits = {
        "train": tasks[2 * HELD_OUT :],
        "dev": tasks[:HELD_OUT],
        "test": tasks[HELD_OUT : 2 * HELD_OUT],
    }
    return TaskSet(
        {name: [t for t in split if t.data["a"] in chosen] for name, split in splits.items()}
    )


def _is_number(text: str, number: int) -> bool:
    return _NUMBER.fullmatch(text) is not None and int(text) == number


def _is_true(equation: str, x: int) -> bool:
    """Say whether an equation in x, such as ``7x=5+30=35``, holds; an unreadable one does not."""
    first, *others = (_value(side, x) for side in equation.split("="))
    return first is not None and all(other == first for other in others)


def _value(expression: str, x: int) -> Fraction | None:
    """Value of a sum of products such as ``7x-34/2`` at x; None where it is not one."""
    terms = _TERM.findall(expression)
    if len(expression) > LONGEST or "".join(terms) != expression:
        return None
    total = Fraction(0)
    for term in terms:
        value = Fraction(-1 if term[0] == "-" else 1)
        product = "*" + term.lstrip("+-")
        factors = list(_FACTOR.finditer(product))
        if "".join(f.group(0) for f in factors) != product:
            return None
        for factor in factors:
            operator, digits, variable = factor.groups()
            if not digits and not variable:
                return None
            number = Fraction(digits or 1) * (x if variable else 1)
            if operator == "/" and number == 0:
                return None
            value = value / number if operator == "/" else value * number
        total += value
    return total
