"""The three splits: which problems they hold, and how they came to."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from isentrope import ConfigError, Task, TaskSet, UnknownNameError
from isentrope_envs.aime.filters import EXPECTED, FILTERS, apply
from isentrope_envs.aime.overlap import same
from isentrope_envs.aime.rows import Row, read

SOURCES = {
    "train": "AI-MO/NuminaMath-1.5",
    "aime24": "HuggingFaceH4/aime_2024",
    "aime25": "math-ai/aime25",
}
"""Where each split comes from, if nothing else is said."""
PROBLEMS = 30
"""In a year's two papers."""


@frozen
class Corpus:
    """Tasks, and how they were chosen."""

    tasks: TaskSet
    manifest: Mapping[str, Any]
    """For each split its source and counts; for ``train`` the rows left after each filter, and
    which were left out because they are problems of the other two."""


@functools.cache  # an iteration makes hundreds of environments of the same data
def load(train: str, aime24: str, aime25: str, filters: tuple[str, ...]) -> Corpus:
    """Read the splits from their sources; an empty source leaves its split out.

    Raises `ConfigError` where a source cannot be read, an evaluation split has not its 30 problems
    with answers 0 .. 999, or nothing is left to train on; `UnknownNameError` for a filter.
    """
    for name in filters:
        if name not in FILTERS:
            raise UnknownNameError("Filter", name, FILTERS)
    held_out = {
        split: _evaluation(split, source)
        for split, source in (("aime24", aime24), ("aime25", aime25))
        if source
    }
    splits: dict[str, list[Task]] = {}
    manifest: dict[str, Any] = {}
    if train:
        splits["train"], manifest["train"] = _training(train, filters, held_out)
    for split, rows in held_out.items():
        splits[split] = [_task(row) for row in rows]
        source = aime24 if split == "aime24" else aime25
        manifest[split] = {"source": source, "problems": len(rows)}
    if not splits:
        raise ConfigError("Every split was left out: give a source for train, aime24 or aime25.")
    return Corpus(TaskSet(splits), manifest)


def _evaluation(split: str, source: str) -> list[Row]:
    rows = read(source, split)
    if len(rows) != PROBLEMS:
        raise ConfigError(f"{split}: {source} has {len(rows)} problems; a year has {PROBLEMS}.")
    for row in rows:
        if row.integer is None:
            raise ConfigError(
                f"{split}: {source} has the answer {row.answer!r} for {row.id}; it must be a whole "
                "number from 0 to 999."
            )
    return rows


def _training(
    source: str, filters: Sequence[str], held_out: Mapping[str, Sequence[Row]]
) -> tuple[list[Task], dict[str, Any]]:
    """Return what is left after filters and without problems of the other splits, and counts."""
    names = filters if "integer_answer" in filters else [*filters, "integer_answer"]
    rows, counts = apply(read(source, "train"), names)
    others = {row.id: row.problem for members in held_out.values() for row in members}
    twins = same([row.problem for row in rows], others)
    left = [row for row, twin in zip(rows, twins, strict=True) if twin is None]
    counts["not_evaluated"] = len(left)
    overlap = {row.id: twin for row, twin in zip(rows, twins, strict=True) if twin is not None}
    if not left:
        raise ConfigError(f"train: nothing of {source} is left after its filters: {counts}.")
    expected = EXPECTED.get(source)
    if expected is not None and set(filters) == set(FILTERS) and len(left) != expected:
        warnings.warn(
            f"train: {len(left)} problems of {source} are left, where {expected} are told of; "
            f"after each filter: {counts}.",
            stacklevel=4,
        )
    return [_task(row) for row in left], {"source": source, "left": counts, "overlap": overlap}


def _task(row: Row) -> Task:
    return Task(row.id, {"problem": row.problem.strip(), "answer": row.integer})
