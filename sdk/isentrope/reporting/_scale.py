"""A logarithmic axis that goes through zero: for knobs that double, halve and change sign."""

from __future__ import annotations

import math
from collections.abc import Iterable

from attrs import frozen

_WIDE = 8.0
"""Largest over smallest magnitude from which on a linear axis hides the small ones."""


@frozen
class SignedLog:
    """Linear up to `threshold` on both sides of zero, then one unit per factor of ten."""

    threshold: float

    @classmethod
    def fitting(cls, values: Iterable[float | None]) -> SignedLog | None:
        """Return the scale for these values; None where a linear one shows them as well."""
        sizes = [abs(v) for v in values if v]
        if not sizes or max(sizes) < _WIDE * min(sizes):
            return None
        return cls(min(sizes))

    def place(self, value: float) -> float:
        """Return where on the axis a value is."""
        size = abs(value) / self.threshold
        return math.copysign(size if size <= 1 else 1 + math.log10(size), value)

    def ticks(self, values: Iterable[float | None]) -> tuple[list[float], list[str]]:
        """Return places and texts of the ticks that span the values: zero and powers of ten."""
        known = [v for v in values if v is not None]
        low, high = min(known, default=0.0), max(known, default=0.0)
        first = math.floor(math.log10(self.threshold))
        last = math.ceil(math.log10(max(abs(low), abs(high), self.threshold)))
        step = max(1, (last - first) // 4)
        sizes = [10.0**e for e in range(last, first - 1, -step) if 10.0**e >= self.threshold]
        signed = [-s for s in sizes if low < 0] + [0.0] + [s for s in sizes if high > 0]
        signed.sort()
        return [self.place(v) for v in signed], [f"{v:g}" for v in signed]
