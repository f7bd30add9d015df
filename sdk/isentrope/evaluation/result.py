"""What an evaluation found: attempts, and the numbers that follow from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import field, fields_dict, frozen

from isentrope.episodes import Episode, Message, Status, StopReason
from isentrope.errors import ConfigError
from isentrope.evaluation import estimates
from isentrope.evaluation.estimates import Estimate
from isentrope.runs import episode_record

Values = Mapping[str, float]
"""One number for each task."""


@frozen
class Attempt:
    """One rollout of one task, as an evaluation keeps it: everything of its episode but tokens."""

    task: str
    rollout: int
    """0 .. k-1."""
    seed: int
    """The environment's, which is the same for all attempts at a task and for every policy."""
    reward: float
    success: bool
    judged: bool
    """False where the environment ended it and did not say whether that was a success."""
    status: Status = field(converter=Status)
    stop_reason: StopReason = field(converter=StopReason)
    turns: int
    tokens: int
    """That the policy sampled."""
    metrics: Mapping[str, float] = field(repr=False)
    messages: Sequence[Message] = field(repr=False)
    error: str | None = field(repr=False)

    @classmethod
    def of(cls, episode: Episode) -> Attempt:
        """Keep an episode."""
        return cls(**episode_record(episode))

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Attempt:
        """Read what was written of one; raises `KeyError` or `ValueError` where it is none."""
        return cls(**{name: record[name] for name in fields_dict(cls)})

    @property
    def failed(self) -> bool:
        """Whether its environment, grader or engine failed: it is then neither right nor wrong."""
        return self.status is not Status.OK

    @property
    def truncated(self) -> bool:
        """Whether a limit ended it."""
        return self.stop_reason not in (StopReason.TERMINATED, StopReason.FAILED)


@frozen(slots=False)  # cached_property needs a __dict__
class Evaluation:
    """What k attempts at every task of a split came to. Failures are apart from wrong answers.

    Every number is a mean over tasks, each weighing the same, of the attempts that did not fail.
    """

    env: str
    split: str
    k: int
    attempts: tuple[Attempt, ...] = field(repr=False)
    """One for each task and rollout, failed ones too."""
    policy: str = ""
    """What was evaluated, as it was named."""
    about: Mapping[str, Any] = field(factory=dict, repr=False)
    """Everything that changes results (weights, environment, limits, sampling, seed), where it is
    kept."""
    path: Path | None = None
    """The folder that it is kept in."""
    episodes: tuple[Episode, ...] = field(default=(), eq=False, repr=False)
    """The episodes that were rolled out for it, tokens and all; not what the folder had already."""

    @cached_property
    def by_task(self) -> dict[str, list[Attempt]]:
        """The attempts at each task that did not fail; a task without any is left out."""
        found: dict[str, list[Attempt]] = {}
        for attempt in self.attempts:
            if not attempt.failed:
                found.setdefault(attempt.task, []).append(attempt)
        return found

    @property
    def tasks(self) -> int:
        """How many tasks have an attempt that did not fail."""
        return len(self.by_task)

    @property
    def failed(self) -> int:
        """How many attempts failed: their environment, grader or engine did."""
        return sum(a.failed for a in self.attempts)

    @property
    def truncated(self) -> int:
        """How many attempts a limit ended; they count as they stand, which is no success."""
        return sum(a.truncated for a in self.attempts)

    @property
    def unjudged(self) -> int:
        """How many attempts their environment ended without saying whether that was a success."""
        return sum(not a.judged for a in self.attempts if not a.failed)

    @property
    def says_success(self) -> bool:
        """Whether the environment ever says what a success is; if not, there is no pass@k."""
        ended = [a for a in self.attempts if a.stop_reason is StopReason.TERMINATED]
        return not ended or any(a.judged for a in ended)

    @property
    def success(self) -> float:
        """avg@k: the mean share of successes, which pass@1 and pass^1 estimate too."""
        return self.estimates["success"].value

    @property
    def reward(self) -> float:
        """Mean return."""
        return self.estimates["reward"].value

    @property
    def pass_at(self) -> dict[int, float]:
        """pass@j for j = 1 .. k: the chance that at least one of j attempts succeeds."""
        return {j: self.estimates[f"pass@{j}"].value for j in range(1, self.k + 1)}

    @property
    def pass_all(self) -> dict[int, float]:
        """pass^j for j = 1 .. k: the chance that all of j attempts succeed."""
        return {j: self.estimates[f"pass^{j}"].value for j in range(1, self.k + 1)}

    @property
    def tokens_per_episode(self) -> float:
        """Mean number of tokens that the policy sampled."""
        return _mean([a.tokens for attempts in self.by_task.values() for a in attempts])

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """``success``, ``reward``, ``pass@j`` and ``pass^j``, each with its confidence interval."""
        found = {"success": self._share(1, estimates.pass_at)}
        found["reward"] = estimates.mean([*self.values("reward").values()])
        for j in range(1, self.k + 1):
            found[f"pass@{j}"] = self._share(j, estimates.pass_at)
            found[f"pass^{j}"] = self._share(j, estimates.pass_all)
        return found

    def values(self, name: str) -> Values:
        """Return one of the `estimates`, task by task, where a task has attempts enough for it."""
        if name == "reward":
            return {task: _mean([a.reward for a in found]) for task, found in self.by_task.items()}
        chance = estimates.pass_all if "^" in name else estimates.pass_at
        return self._chances(1 if name == "success" else int(name[5:]), chance)

    def against(self, other: Evaluation) -> Comparison:
        """Subtract another evaluation of the same environment and split, task by task.

        Raises `ConfigError` where they have no task in common.
        """
        if (self.env, self.split) != (other.env, other.split):
            raise ConfigError(
                f"An evaluation on {self.env} / {self.split} cannot be compared with one on "
                f"{other.env} / {other.split}: they share no task."
            )
        return Comparison.of(self, other)

    def counts(self) -> dict[str, int]:
        """Return how many attempts ended how: by stop reason, failed ones by status."""
        return dict(
            Counter(a.status.value if a.failed else a.stop_reason.value for a in self.attempts)
        )

    def summary(self) -> dict[str, Any]:
        """Return every number as plain data, ready for JSON; what is unknown is None."""
        return {
            "env": self.env,
            "split": self.split,
            "k": self.k,
            "tasks": self.tasks,
            "attempts": len(self.attempts),
            "failed": self.failed,
            "truncated": self.truncated,
            "unjudged": self.unjudged,
            "ends": self.counts(),
            "tokens_per_episode": _known(self.tokens_per_episode),
            "estimates": {name: _plain(e) for name, e in self.estimates.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write the `summary` as JSON."""
        text = json.dumps(self.summary(), indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def _share(self, j: int, chance: Callable[[int, int, int], float]) -> Estimate:
        values = self._chances(j, chance)
        tries = sum(len(self.by_task[task]) for task in values)
        return estimates.share([*values.values()], tries / j)

    def _chances(self, j: int, chance: Callable[[int, int, int], float]) -> Values:
        """Return pass@j or pass^j of every task with at least j attempts that did not fail."""
        if not self.says_success:
            return {}
        return {
            task: chance(sum(a.success for a in found), len(found), j)
            for task, found in self.by_task.items()
            if len(found) >= j
        }


@frozen
class Comparison:
    """What one evaluation has more than another, over the tasks that both have."""

    tasks: int
    """How many tasks both have."""
    only_first: int
    only_second: int
    """How many only one of them has, or has without an attempt that did not fail."""
    same_seeds: bool
    """Whether their environments were seeded alike, so that only the policies differ."""
    differences: dict[str, Estimate]
    """The first's less the second's: ``success``, ``reward``, ``pass@j`` and ``pass^j``."""

    @classmethod
    def of(cls, first: Evaluation, second: Evaluation) -> Comparison:
        """Compare two; raises `ConfigError` where they have no task in common."""
        common = [task for task in first.by_task if task in second.by_task]
        if not common:
            raise ConfigError("The evaluations have no task in common, so nothing to compare.")
        names = [name for name in first.estimates if name in second.estimates]
        return cls(
            tasks=len(common),
            only_first=first.tasks - len(common),
            only_second=second.tasks - len(common),
            same_seeds=all(first.by_task[t][0].seed == second.by_task[t][0].seed for t in common),
            differences={name: _difference(name, first, second) for name in names},
        )

    def summary(self) -> dict[str, Any]:
        """Return every number as plain data, ready for JSON; what is unknown is None."""
        return {
            "tasks": self.tasks,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "same_seeds": self.same_seeds,
            "differences": {name: _plain(e) for name, e in self.differences.items()},
        }


def summarize(episodes: Iterable[Episode], *, env: str, split: str, k: int) -> Evaluation:
    """Return what episodes, k of each task, came to."""
    kept = tuple(episodes)
    return Evaluation(env, split, k, tuple(map(Attempt.of, kept)), episodes=kept)


def _difference(name: str, first: Evaluation, second: Evaluation) -> Estimate:
    ours, theirs = first.values(name), second.values(name)
    paired = [value - theirs[task] for task, value in ours.items() if task in theirs]
    return estimates.mean(paired) if name == "reward" else estimates.difference(paired)


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {
        "value": _known(estimate.value),
        "low": _known(estimate.low),
        "high": _known(estimate.high),
        "tasks": estimate.tasks,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
