"""What an evaluation found: attempts, and the numbers that follow from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import field, frozen

from isentrope.config import read_toml
from isentrope.episodes import TEXT_ONLY, Episode, Status, StopReason
from isentrope.errors import ConfigError
from isentrope.evaluation import estimates
from isentrope.evaluation.attempts import Attempt
from isentrope.evaluation.comparison import Comparison
from isentrope.evaluation.estimates import Estimate, known
from isentrope.evaluation.records import EvaluationFolder
from isentrope.runs import Run

Values = Mapping[str, float]
"""One number for each task."""


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
    kept; of an endpoint always."""
    path: Path | None = None
    """The folder that it is kept in."""
    finished: bool = True
    """Whether all attempts have ended; False for a folder whose evaluation was interrupted."""
    episodes: tuple[Episode, ...] = field(default=(), eq=False, repr=False)
    """The episodes that were rolled out for it, tokens and all; not what the folder had already."""

    @classmethod
    def read(cls, path: str | Path) -> Evaluation:
        """Read the folder of one: all attempts that there are, whether it has come to its end.

        Raises `ConfigError` where there is none.
        """
        folder = EvaluationFolder(Path(path))
        written, attempts = folder.written(), folder.attempts()
        if not attempts:
            raise ConfigError(f"{path} has no attempts yet: evaluate again to go on.")
        about = written["about"]
        return cls(
            env=about["env"]["id"],
            split=about["split"],
            k=1 + max(rollout for _, rollout in attempts),
            attempts=tuple(attempts.values()),
            policy=written["policy"],
            about=about,
            path=folder.path,
            finished=folder.finished,
        )

    @classmethod
    def during(cls, run: Run | str | Path) -> dict[int, Evaluation]:
        """Read what a run evaluated while it trained, by iteration; empty where nothing was.

        Raises `ConfigError` where there is no run.
        """
        run = run if isinstance(run, Run) else Run(Path(run))
        kept: dict[int, list[Attempt]] = {}
        for record in run.evaluations:
            kept.setdefault(record["iteration"], []).append(Attempt.read(record))
        config = read_toml(run.path / "config.toml")  # of plugins that may not be installed
        return {
            iteration: cls(
                env=config["env"]["id"],
                split=config["evaluation"]["split"],
                k=1 + max(attempt.rollout for attempt in attempts),
                attempts=tuple(attempts),
                policy=f"{run.path.resolve().name}, iteration {iteration}",
            )
            for iteration, attempts in kept.items()
        }

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
    def text_only(self) -> bool:
        """Whether the policy was reached through an endpoint, so that no token of it was seen."""
        return "endpoint" in self.about

    @property
    def retried(self) -> int:
        """How many requests to an endpoint were made again, in attempts that ended."""
        return sum(a.retried for a in self.attempts)

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
        """Mean number of tokens that the policy sampled; NaN where nobody counted all of them."""
        tokens = [a.tokens for attempts in self.by_task.values() for a in attempts]
        counted = [n for n in tokens if n is not None]
        return _mean(counted) if len(counted) == len(tokens) else math.nan

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
        return Comparison.of([self], [other])

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
            "tokens_per_episode": known(self.tokens_per_episode),
            **({"text_only": TEXT_ONLY, "retried": self.retried} if self.text_only else {}),
            "estimates": {name: e.plain() for name, e in self.estimates.items()},
        }

    def notes(self) -> list[str]:
        """Say in sentences what the numbers leave out, or stand on."""
        said = []
        ends = self.counts()
        total = f"{len(self.attempts):,} attempts"
        if self.text_only:
            said.append(f"{self.policy}: {TEXT_ONLY}. Tokens are as the endpoint counts them.")
        if self.retried:
            said.append(f"{self.retried:,} requests to the endpoint were made again.")
        if not self.finished:
            said.append(
                f"It is not finished: the numbers are those of the {total} that have ended, and "
                "evaluating again goes on."
            )
        if not self.says_success:
            said.append(
                f"{self.env} never says info['success'], so there is no pass@k: only its reward."
            )
        elif self.unjudged:
            said.append(
                f"{self.unjudged} of {total} ended without info['success']: they count as no "
                "success."
            )
        if self.failed:
            kinds = _listed({status: ends[status] for status in Status if status in ends})
            said.append(
                f"{self.failed} of {total} failed ({kinds}) and count as nothing; evaluating again "
                "makes them anew."
            )
        posed = len({a.task for a in self.attempts})
        if short := posed - sum(len(found) >= self.k for found in self.by_task.values()):
            said.append(
                f"{short} of {posed} tasks have fewer than {self.k} attempts that did not fail: "
                "pass@j and pass^j are over those that have j."
            )
        if self.truncated:
            kinds = _listed({reason: ends[reason] for reason in _LIMITS if reason in ends})
            said.append(
                f"{self.truncated} of {total} were cut off by a limit ({kinds}) and count as they "
                "stood."
            )
        return said

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


_LIMITS = tuple(r for r in StopReason if r not in (StopReason.TERMINATED, StopReason.FAILED))


def summarize(episodes: Iterable[Episode], *, env: str, split: str, k: int) -> Evaluation:
    """Return what episodes, k of each task, came to."""
    kept = tuple(episodes)
    return Evaluation(env, split, k, tuple(map(Attempt.of, kept)), episodes=kept)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
