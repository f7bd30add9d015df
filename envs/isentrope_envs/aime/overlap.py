"""Which problems are the same problem: equal when normalised, or nearly.

Shared phrases prove nothing here: runs of 13 words, as language models' data is checked by, are in
194 of 975 problems, all of them "where m and n are relatively prime positive integers. Find m + n".
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

SHARED = 0.5
"""Jaccard similarity of two problems' runs of four words from which on they are the same. Among all
pairs of AIME 1983-2023 with 2024 and 2025 the highest is 0.26."""

_SPACING = re.compile(r"\\(?:[,;:!> ]|quad|qquad|left|right|displaystyle)(?![a-zA-Z])")
_WORD = re.compile(r"[a-z]+|\d+|[^\sa-z\d${}]")


def normalised(problem: str) -> tuple[str, ...]:
    """Return the words, numbers and signs of a problem, without its spacing and typesetting."""
    return tuple(_WORD.findall(_SPACING.sub(" ", problem).lower()))


def same(problems: Iterable[str], others: Mapping[str, str]) -> list[str | None]:
    """Return for each problem the key of the first of `others` that it is, or None."""
    runs = {key: _runs(text) for key, text in others.items()}
    holders = defaultdict(list)
    for key, of_key in runs.items():
        for run in of_key:
            holders[run].append(key)
    found: list[str | None] = []
    for problem in problems:
        mine = _runs(problem)
        shared = Counter(key for run in mine for key in holders.get(run, ()))
        found.append(
            next(
                (
                    key
                    for key, count in shared.items()
                    if count >= SHARED * (len(mine) + len(runs[key]) - count)
                ),
                None,
            )
        )
    return found


def _runs(problem: str) -> frozenset[tuple[str, ...]]:
    """Return a problem's runs of four words; all of it, where it has fewer."""
    words = normalised(problem)
    return frozenset(words[i : i + 4] for i in range(max(1, len(words) - 3)))
