"""Evaluations of the same tasks, compared task by task."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attrs import frozen

from isentrope.episodes import TEXT_ONLY
from isentrope.errors import ConfigError
from isentrope.evaluation import estimates
from isentrope.evaluation.estimates import Estimate

if TYPE_CHECKING:
    from isentrope.evaluation.result import Evaluation


@frozen
class Comparison:
    """What one evaluation has more than another, over the tasks that both have."""

    tasks: int
    """How many tasks both have."""
    only_first: int
    only_second: int
    """How many only one of them has, or has without an attempt that did not fail."""
    finished: tuple[bool, bool]
    """Whether each is; one that was interrupted has fewer tasks, or attempts at them."""
    same_seeds: bool
    """Whether their environments were seeded alike, so that only the policies differ."""
    text_only: tuple[bool, bool]
    """Whether the first, and the second, was reached through an endpoint, by text alone."""
    differences: dict[str, Estimate]
    """The first's less the second's: ``success``, ``reward``, ``pass@j`` and ``pass^j``."""

    @classmethod
    def of(cls, first: Sequence[Evaluation], second: Sequence[Evaluation]) -> Comparison:
        """Compare two, or two of several seeds each, of whose numbers a task gets the mean.

        Raises `ConfigError` where they have no task in common.
        """
        one, other = first[0], second[0]
        if (one.env, one.split) != (other.env, other.split):
            raise ConfigError(
                f"An evaluation on {one.env} / {one.split} cannot be compared with one on "
                f"{other.env} / {other.split}: they share no task."
            )
        every = [*first, *second]
        common = [task for task in one.by_task if all(task in e.by_task for e in every)]
        if not common:
            raise ConfigError("The evaluations have no task in common, so nothing to compare.")
        names = [name for name in one.estimates if all(name in e.estimates for e in every)]
        return cls(
            tasks=len(common),
            only_first=len({task for e in first for task in e.by_task}) - len(common),
            only_second=len({task for e in second for task in e.by_task}) - len(common),
            finished=(all(e.finished for e in first), all(e.finished for e in second)),
            same_seeds=all(_seeds(t, first) == _seeds(t, second) for t in common),
            text_only=(any(e.text_only for e in first), any(e.text_only for e in second)),
            differences={name: _difference(name, first, second) for name in names},
        )

    def notes(self, first: str = "the first", second: str = "the second") -> list[str]:
        """Say in sentences what the differences leave out, or stand on; names of the two."""
        unfinished = [
            name for name, whole in zip((first, second), self.finished, strict=True) if not whole
        ]
        said = [f"{name} is not finished: evaluating it again goes on." for name in unfinished]
        for count, which in ((self.only_first, first), (self.only_second, second)):
            if count:
                said.append(f"Tasks that only {which} has, which are left out: {count}.")
        if not self.same_seeds:
            said.append(
                "The environments were seeded differently: part of a difference is of their making."
            )
        if by_text := [n for n, so in zip((first, second), self.text_only, strict=True) if so]:
            said.append(f"{' and '.join(by_text)}: {TEXT_ONLY}.")
        return said

    def summary(self) -> dict[str, Any]:
        """Return every number as plain data, ready for JSON; what is unknown is None."""
        return {
            "tasks": self.tasks,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "same_seeds": self.same_seeds,
            "text_only": list(self.text_only),
            "differences": {name: e.plain() for name, e in self.differences.items()},
        }


def _seeds(task: str, of: Sequence[Evaluation]) -> set[int]:
    return {one.by_task[task][0].seed for one in of}


def _difference(name: str, first: Sequence[Evaluation], second: Sequence[Evaluation]) -> Estimate:
    ours, theirs = means(name, first), means(name, second)
    paired = [value - theirs[task] for task, value in ours.items() if task in theirs]
    return estimates.mean(paired) if name == "reward" else estimates.difference(paired)


def means(name: str, seeds: Sequence[Evaluation]) -> dict[str, float]:
    """Return one of the estimates, task by task: its mean over evaluations that all have it."""
    found = [one.values(name) for one in seeds]
    return {
        task: fmean(values[task] for values in found)
        for task in found[0]
        if all(task in values for values in found)
    }


def over_seeds(seeds: Sequence[Evaluation]) -> dict[str, Estimate]:
    """Return the estimates of one evaluation, or of the mean over several at the same tasks."""
    if len(seeds) == 1:
        return seeds[0].estimates
    names = [name for name in seeds[0].estimates if all(name in one.estimates for one in seeds)]
    return {name: _estimate(name, seeds) for name in names}


def _estimate(name: str, seeds: Sequence[Evaluation]) -> Estimate:
    values = means(name, seeds)
    if name == "reward":
        return estimates.mean([*values.values()])
    attempts = sum(len(one.by_task[task]) for one in seeds for task in values)
    return estimates.share(
        [*values.values()], attempts / (1 if name == "success" else int(name[5:]))
    )
