"""Runs that differ in the seed alone: one run in the mean, and how far its seeds are apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from attrs import evolve

from isentrope.reporting._history import History, Record, number_or_none
from isentrope.reporting._series import mean

_SEPARATORS = "-_. "


def pooled(runs: Sequence[History]) -> list[History]:
    """Join the runs that differ in the seed alone, if that leaves two or more to compare.

    A run of a configuration and seed that were there already is joined with nothing before it.
    """
    groups: dict[str, list[History]] = {}
    met: Counter[str] = Counter()
    for run in runs:
        met[repr(run.config)] += 1
        key = repr((met[repr(run.config)], {k: v for k, v in run.config.items() if k != "seed"}))
        groups.setdefault(key, []).append(run)
    if len(groups) == 1:
        return list(runs)
    return [group[0] if len(group) == 1 else _mean(group) for group in groups.values()]


def _mean(seeds: Sequence[History]) -> History:
    """Return the mean of runs, as far as all of them have come."""
    return evolve(
        seeds[0],
        name=_name(seeds),
        config={**seeds[0].config, "seed": [one.config.get("seed") for one in seeds]},
        metrics=tuple(map(_mean_record, zip(*(one.metrics for one in seeds), strict=False))),
        seeds=tuple(seeds),
    )


def _mean_record(records: Sequence[Record]) -> dict[str, Any]:
    """Average the numbers that all seeds have at an iteration."""
    first = records[0]
    shared = [key for key in first if all(key in record for record in records)]
    return {key: mean(number_or_none(record[key]) for record in records) for key in shared} | {
        "iteration": first.get("iteration")
    }


def _name(seeds: Sequence[History]) -> str:
    """Name runs by what their names begin with alike, else by the folder that they are all in."""
    names = [one.name for one in seeds]
    shared = commonprefix(names)  # noqa: RUF071  # of words, not of paths
    if any(name[len(shared) :][:1] not in _SEPARATORS for name in names):  # "s" of "s1" and "s2"
        shared = shared[: max(map(shared.rfind, _SEPARATORS)) + 1].rstrip(_SEPARATORS)
    parents = {one.path.resolve().parent.name for one in seeds}
    return shared or (parents.pop() if len(parents) == 1 else f"{names[0]} and others")
