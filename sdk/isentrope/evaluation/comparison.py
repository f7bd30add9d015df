"""Two evaluations of the same tasks, compared task by task."""

from __future__ import annotations

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
    def of(cls, first: Evaluation, second: Evaluation) -> Comparison:
        """Compare two.

        Raises `ConfigError` where they have no task in common.
        """
        if (first.env, first.split) != (second.env, second.split):
            raise ConfigError(
                f"An evaluation on {first.env} / {first.split} cannot be compared with one on "
                f"{second.env} / {second.split}: they share no task."
            )
        common = [task for task in first.by_task if task in second.by_task]
        if not common:
            raise ConfigError("The evaluations have no task in common, so nothing to compare.")
        names = [name for name in first.estimates if name in second.estimates]
        return cls(
            tasks=len(common),
            only_first=first.tasks - len(common),
            only_second=second.tasks - len(common),
            finished=(first.finished, second.finished),
            same_seeds=all(first.by_task[t][0].seed == second.by_task[t][0].seed for t in common),
            text_only=(first.text_only, second.text_only),
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


def _difference(name: str, first: Evaluation, second: Evaluation) -> Estimate:
    ours, theirs = first.values(name), second.values(name)
    paired = [value - theirs[task] for task, value in ours.items() if task in theirs]
    return estimates.mean(paired) if name == "reward" else estimates.difference(paired)
