"""Series of numbers over iterations. None is a number that was not measured: always a gap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

Values = Sequence[float | None]

POINTS = 900
"""More than these are not drawn: no screen has the pixels."""


def mean(values: Iterable[float | None]) -> float | None:
    """Average what was measured; None where nothing was."""
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def change(first: float | None, last: float | None) -> float | None:
    """Return the change in percent of where it began; None where that has no meaning."""
    return None if first is None or last is None or first <= 0 else 100 * (last - first) / first


def span_of_ends(count: int) -> int:
    """How many iterations "first" and "last" mean: ten, or half of a short run."""
    return max(1, min(10, count // 2))


def window(count: int) -> int:
    """How many neighbours a moving average takes in: a tenth of the series, odd, at most 101."""
    return 1 if count < 10 else min(101, count // 10 | 1)


def smooth(values: Values, width: int) -> list[float | None]:
    """Return the centred moving average over what was measured; narrower at both ends."""
    sums = [0.0, *accumulate(v or 0.0 for v in values)]
    known = [0, *accumulate(int(v is not None) for v in values)]
    averages: list[float | None] = []
    for i, value in enumerate(values):
        low, high = max(0, i - width // 2), min(len(values), i + width // 2 + 1)
        count = known[high] - known[low]
        averages.append(None if value is None else (sums[high] - sums[low]) / count)
    return averages


def thin(values: Values, points: int = POINTS) -> list[int]:
    """Choose the indices to draw: of every stretch the lowest, the highest and a gap, if any."""
    if len(values) <= points:
        return list(range(len(values)))
    stretches = _stretches(len(values), points // 3)
    return sorted({i for part in stretches for i in _telling(part, values)})


def thin_means(values: Values, points: int = POINTS) -> list[float | None]:
    """Average every stretch; for series that are stacked, which must share their places."""
    if len(values) <= points:
        return list(values)
    return [mean(values[i] for i in part) for part in _stretches(len(values), points)]


def thin_places(places: Sequence[int], points: int = POINTS) -> list[int]:
    """Return the first place of every stretch of `thin_means`."""
    if len(places) <= points:
        return list(places)
    return [places[part[0]] for part in _stretches(len(places), points)]


def evenly(count: int, most: int) -> list[int]:
    """Choose at most so many indices, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _stretches(count: int, parts: int) -> list[range]:
    edges = [count * i // parts for i in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


def _telling(part: range, values: Values) -> Iterable[int]:
    known = [(v, i) for i in part if (v := values[i]) is not None]
    if known:
        yield min(known)[1]
        yield max(known)[1]
    if len(known) < len(part):
        yield next(i for i in part if values[i] is None)
