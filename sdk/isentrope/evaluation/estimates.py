"""Means over tasks, with 95 % confidence intervals: the mathematics of evaluation.

Of n tries at a task c succeeded. Chen et al. (2021, arXiv 2107.03374) and tau-bench (Yao et al.
2024, arXiv 2406.12045) estimate without bias the chance that of j tries

    at least one succeeds    pass@j = 1 - C(n - c, j) / C(n, j)
    all succeed              pass^j = C(c, j) / C(n, j)

The tries at one task say little about other tasks, so every interval is clustered by task (Miller
2024, arXiv 2411.00640): the tasks are a sample of the tasks that there could be, each is one value
v, and its spread from task to task, which the luck of the tries is part of, is what is uncertain:
``SE^2 = var(v) / T``.

Shares are near 0 and 1 too often for ``p +- t SE``. They get Wilson's interval (1927) for the
*effective sample size* ``n = p (1 - p) / SE^2``: how many independent tries would be as uncertain
(Korn and Graubard 1998; Dean and Pagano 2015 compare such intervals), with Student's t of T - 1
degrees of freedom in place of the normal quantile, because SE is an estimate. n is at most the
number of separate tries; where every task is at 0, or every one at 1, it is the number of tasks, as
if all tries at a task were one. So no interval has width zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, variance

from attrs import frozen

LEVEL = 0.95
"""How often an interval holds what it estimates, nominally."""
_SAME = 1e-12
"""Values that differ by no more are equal: they came from different sums of the same numbers."""


@frozen
class Estimate:
    """A mean over tasks, or of differences between them, and its 95 % confidence interval."""

    value: float
    """NaN where no task has what it needs."""
    low: float
    high: float
    """NaN where fewer than two tasks, or equal ones without known bounds, leave it unknown."""
    tasks: int
    """How many tasks it is the mean of."""

    def plain(self) -> dict[str, float | None]:
        """Return it as plain data, ready for JSON; what is unknown is None."""
        return {
            "value": known(self.value),
            "low": known(self.low),
            "high": known(self.high),
            "tasks": self.tasks,
        }


def pass_at(successes: int, tries: int, j: int) -> float:
    """Estimate the chance that at least one of j tries succeeds; j is at most `tries`."""
    return 1 - math.comb(tries - successes, j) / math.comb(tries, j)


def pass_all(successes: int, tries: int, j: int) -> float:
    """Estimate the chance that all of j tries succeed; j is at most `tries`."""
    return math.comb(successes, j) / math.comb(tries, j)


def share(values: Sequence[float], tries: float) -> Estimate:
    """Return the mean of one value in [0, 1] per task, with Wilson's interval.

    tries: how many separate tries there were, over all tasks.
    """
    tasks = len(values)
    if tasks < 2:
        return _without_interval(values)
    p, spread = fmean(values), variance(values)
    effective = tries
    if max(values) <= _SAME or min(values) >= 1 - _SAME:
        effective = tasks
    elif not _equal(values):
        effective = min(tries, tasks * p * (1 - p) / spread)
    low, high = _wilson(p, effective, student_t(tasks - 1))
    return Estimate(p, max(0.0, min(low, p)), min(1.0, max(high, p)), tasks)


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean of one number per task, with Student's interval; none if all are equal."""
    if len(values) < 2 or _equal(values):
        return _without_interval(values)
    return _student(values)


def difference(values: Sequence[float]) -> Estimate:
    """Return the mean of one difference of shares, in [-1, 1], per task, with Student's interval.

    Where all are equal it is that of Bonett and Price (2012): as if there were two tasks more, one
    with a difference of 1 and one of -1. What is beyond -1 or 1 is cut off.
    """
    if len(values) < 2:
        return _without_interval(values)
    found = _student([*values, 1.0, -1.0] if _equal(values) else values)
    return Estimate(fmean(values), max(-1.0, found.low), min(1.0, found.high), len(values))


def some(k: int) -> list[int]:
    """Return the j of pass@j that are worth a row: powers of two up to k, and k itself.

    Not 1: that is the success.
    """
    return sorted(({1 << n for n in range(k.bit_length())} | {k}) - {1})


def shown(value: float, sign: str = "") -> str:
    """Return a number as a person reads it; with `sign` "+", always with its sign."""
    return f"{round(value, 3) + 0.0:{sign}.3f}" if math.isfinite(value) else "\u2013"


def known(value: float) -> float | None:
    """Return a number; None for NaN, which JSON has not."""
    return value if math.isfinite(value) else None


def _wilson(p: float, n: float, quantile: float) -> tuple[float, float]:
    square = quantile**2 / n
    middle = (p + square / 2) / (1 + square)
    half = math.sqrt(p * (1 - p) * square + square**2 / 4) / (1 + square)
    return middle - half, middle + half


def _student(values: Sequence[float]) -> Estimate:
    half = student_t(len(values) - 1) * math.sqrt(variance(values) / len(values))
    middle = fmean(values)
    return Estimate(middle, middle - half, middle + half, len(values))


def _without_interval(values: Sequence[float]) -> Estimate:
    return Estimate(fmean(values) if values else math.nan, math.nan, math.nan, len(values))


def _equal(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= _SAME


@cache
def student_t(freedom: int) -> float:
    """Return the quantile of Student's t that leaves `LEVEL` between it and its negative."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings of the angle: more than a float can tell apart
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Return P(|t| < tan(angle) sqrt(freedom)); Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for i in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (i - 1) / i
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
