"""What runs evaluated while they trained, compared task by task."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from isentrope.errors import ConfigError
from isentrope.evaluation.comparison import Comparison, over_seeds
from isentrope.evaluation.estimates import Estimate
from isentrope.evaluation.result import Evaluation
from isentrope.reporting._history import History


@frozen
class Evaluated:
    """A run's evaluations, by iteration: of each of its seeds."""

    name: str
    during: dict[int, list[Evaluation]]

    @classmethod
    def of(cls, run: History) -> Evaluated:
        """Read those that all seeds have."""
        first, *others = (Evaluation.during(one.path) for one in run.seeds or (run,))
        shared = [i for i in first if all(i in other for other in others)]
        return cls(run.name, {i: [first[i], *(other[i] for other in others)] for i in shared})

    @property
    def last(self) -> int | None:
        """The iteration of the last one; None where there is none."""
        return max(self.during, default=None)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The last one's numbers."""
        return {} if self.last is None else over_seeds(self.during[self.last])


@frozen
class Paired:
    """One run's evaluation less another's, at the last iteration at which both have one."""

    name: str
    base: str
    iteration: int | None
    found: Comparison | None
    problem: str = ""
    """Why there is none."""

    @classmethod
    def of(cls, run: Evaluated, base: Evaluated) -> Paired:
        """Compare two runs' evaluations."""
        shared = max(run.during.keys() & base.during.keys(), default=None)
        if shared is None:
            problem = f"{run.name} and {base.name} share no iteration with an evaluation."
            return cls(run.name, base.name, None, None, problem)
        try:
            found = Comparison.of(run.during[shared], base.during[shared])
        except ConfigError as error:
            return cls(run.name, base.name, shared, None, str(error))
        return cls(run.name, base.name, shared, found)


def paired(runs: Sequence[Evaluated]) -> list[Paired]:
    """Subtract the first run's evaluation from the others', if any run has one."""
    if not any(run.during for run in runs):
        return []
    return [Paired.of(run, runs[0]) for run in runs[1:]]
