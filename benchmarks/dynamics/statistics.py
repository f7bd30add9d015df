"""Means and differences over seeds, with what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import frozen
from scipy import stats

LEVEL = 0.95


@frozen
class Estimate:
    """A mean over seeds and its confidence interval (Student's t)."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values, one for each seed; the interval of a single one is unbounded."""
    x = np.asarray(values, float)
    half = np.inf
    if len(x) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return the mean of `values` less `others`, paired: the same seed at the same place."""
    return estimate(np.subtract(values, others).tolist())


def correlation(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the rank correlation within seeds, and its two-sided p.

    x, y: one row for each arm, one column for each seed; ranked within each seed, so that what a
    seed raises everywhere does not count. p by shuffling the arms, all seeds of one together: what
    an arm does, it does on every seed.
    """
    ranks = [stats.rankdata(np.asarray(v, float), axis=0) for v in (x, y)]
    a, b = ((r - r.mean()) / r.std() for r in ranks)
    rng = np.random.default_rng(0)
    shuffled = [(a * b[rng.permutation(len(b))]).mean() for _ in range(5000)]
    found = float((a * b).mean())
    as_far = np.abs(shuffled) >= abs(found) - 1e-12
    return found, float((1 + as_far.sum()) / (1 + len(shuffled)))
