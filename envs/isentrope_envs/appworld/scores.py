"""TGC and SGC: AppWorld's own two scores, of attempts that an evaluation keeps.

Task goal completion is the share of tasks that are solved; scenario goal completion the share of
scenarios of which every task is (Trivedi et al. 2024, section 4). With k attempts at each task both
are means over k complete passes, each of which AppWorld would score alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from attrs import frozen

from isentrope import Attempt, ConfigError
from isentrope_envs.appworld.place import Place

LEVELS = (1, 2, 3)


@frozen
class Score:
    """Of some tasks, in per cent."""

    tasks: int
    scenarios: int
    tgc: float
    sgc: float


def scores(attempts: Sequence[Attempt], place: Place) -> dict[str, Score]:
    """Return the scores of ``"all"``, and by difficulty, ``"1"`` to ``"3"``, of those there are.

    An attempt that failed, or that a limit of the run cut off, solved nothing. Difficulties are
    those of the data at `place`; tasks that are not there are in ``"all"`` alone.

    Raises `ConfigError` where there are none, or where tasks have different numbers of attempts.
    """
    counts = set(Counter(attempt.task for attempt in attempts).values())
    if len(counts) != 1:
        raise ConfigError(
            "TGC and SGC need attempts, and as many at every task; got "
            f"{sorted(counts) or 'none'}: evaluate again, which makes what is missing."
        )
    level = {attempt.task: place.difficulty(attempt.task) for attempt in attempts}
    of_level = {str(n): [a for a in attempts if level[a.task] == n] for n in LEVELS}
    chosen = {"all": attempts, **of_level}
    return {name: _score(found) for name, found in chosen.items() if found}


def scenario_of(task: str) -> str:
    """Return the scenario of which a task is a variant."""
    return task.rpartition("_")[0]


def _score(attempts: Sequence[Attempt]) -> Score:
    passes: dict[int, dict[str, bool]] = defaultdict(dict)
    for attempt in attempts:
        passes[attempt.rollout][attempt.task] = attempt.success and not attempt.failed
    tasks = {attempt.task for attempt in attempts}
    return Score(
        tasks=len(tasks),
        scenarios=len({scenario_of(task) for task in tasks}),
        tgc=100 * fmean(fmean(solved.values()) for solved in passes.values()),
        sgc=100 * fmean(fmean(_whole(solved)) for solved in passes.values()),
    )


def _whole(solved: dict[str, bool]) -> Iterable[bool]:
    """Say of each scenario whether all of its tasks are solved."""
    scenarios: dict[str, bool] = {}
    for task, right in solved.items():
        name = scenario_of(task)
        scenarios[name] = scenarios.get(name, True) and right
    return scenarios.values()
