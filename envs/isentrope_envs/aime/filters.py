"""Which rows of a data set are trained on: named predicates, in an order, each with its count.

All together they are how 563 problems are told to come of NuminaMath-1.5's ``amc_aime``. Nobody
says which these are, so another count is shown, and is no error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from isentrope_envs.aime.overlap import normalised
from isentrope_envs.aime.rows import Row

EXPECTED = {"AI-MO/NuminaMath-1.5": 563}
"""What is left of a data set after all filters, where somebody has told."""

_CHOICES = re.compile(r"\(A\).*\(B\).*\(C\)", re.DOTALL)
_FIGURE = re.compile(
    r"\[asy\]|\\includegraphics|<img|!\[|https?://|"
    r"\b(?:figure|diagram|pictured|as shown|shown (?:below|above|here))\b",
    re.IGNORECASE,
)


@frozen
class Filter:
    """One predicate over rows."""

    keeps: Callable[[Row], bool]
    column: str | None = None
    """Only data that has this column is asked."""


def _is(column: str, value: str, of: str = "") -> Filter:
    return Filter(lambda row: str(row.columns.get(column)).lower() == value.lower(), of or column)


FILTERS: dict[str, Filter] = {
    "amc_aime": _is("source", "amc_aime", of="question_type"),  # others have sources too
    "not_synthetic": _is("synthetic", "False"),
    "word_problem": _is("question_type", "math-word-problem"),
    "problem_valid": _is("problem_is_valid", "Yes"),
    "solution_valid": _is("solution_is_valid", "Yes"),
    "integer_answer": Filter(lambda row: row.integer is not None),
    "no_choices": Filter(lambda row: _CHOICES.search(row.problem) is None),
    "no_figure": Filter(lambda row: _FIGURE.search(row.problem) is None),
}


def apply(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows that are left, each problem once, and how many were after each filter.

    A filter that asks a column which the data has not is in the counts as None.
    """
    counts: dict[str, Any] = {"rows": len(rows)}
    left = list(rows)
    for name in names:
        chosen = FILTERS[name]
        if chosen.column is not None and not any(chosen.column in row.columns for row in left):
            counts[name] = None
            continue
        left = [row for row in left if chosen.keeps(row)]
        counts[name] = len(left)
    first: dict[tuple[str, ...], Row] = {}
    for row in left:
        first.setdefault(normalised(row.problem), row)
    counts["distinct"] = len(first)
    return list(first.values()), counts
