"""Evaluating: rolling a policy out k times on every task of a split."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import define, field

from isentrope.config import RolloutConfig
from isentrope.engines import EngineConfig
from isentrope.episodes import Episode
from isentrope.errors import ConfigError
from isentrope.evaluation.attempts import Attempt
from isentrope.evaluation.plan import Plan, key_of
from isentrope.evaluation.records import EvaluationFolder
from isentrope.evaluation.result import Evaluation
from isentrope.looping import off_loop, torch_threads
from isentrope.models import LanguageModel, ModelConfig
from isentrope.rollout.collector import Request, RolloutCollector
from isentrope.rollout.endpoint import Endpoint
from isentrope.runs import Run
from isentrope.seeding import derive
from isentrope.specs import EnvRef
from isentrope.workers.nursery import kept_warm

Listener = Callable[[Attempt, int, int], object]
_WAVE = 256
"""Episodes that are begun together where they are kept as they end. An engine that samples together
what is pending ends them together, and an interruption loses what has not ended; fewer are slower.
"""


@kept_warm()  # to list its tasks, to warm up on, to be played
def evaluate(
    policy: Run | ModelConfig | Endpoint | str | Path,
    env: EnvRef | str | dict[str, Any] | None = None,
    *,
    split: str = "test",
    k: int = 1,
    tasks: int | None = None,
    rollout: RolloutConfig | dict[str, Any] | None = None,
    engine: EngineConfig | str | dict[str, Any] | None = None,
    seed: int = 0,
    threads: int = 1,
    out: str | Path | None = None,
    on_attempt: Listener | None = None,
) -> Evaluation:
    """Roll a policy out k times on every task of a split.

    policy: a run or its folder, a `ModelConfig`, or the id of one; or an `Endpoint`, which is
    reached by text alone, and marked so.
    env, engine: None for the run's own; a table without an id changes keys of those.
    tasks: only the split's first so many. rollout: limits and sampling that differ from the run's.
    out: the folder to keep it in; None: nothing is kept. ``{env}``, ``{split}`` and ``{key}`` in it
    are filled in; the key is a digest of everything that changes results. Attempts that are there
    already, and did not fail, are not made again: an evaluation that was interrupted goes on, and
    one with a larger `k` or more `tasks` adds to it.
    on_attempt: called with each attempt that is there or ends, how many there are by then, and how
    many there will be.

    Raises `ConfigError` for a wrong name or number, where `out` holds something else, and where an
    endpoint is not there, or refuses the key or the model. Failed attempts are counted in the
    result.
    """
    for name, number in (("k", k), ("tasks", 1 if tasks is None else tasks), ("threads", threads)):
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name} must be a whole number, at least 1; got {number!r}.")
    plan = Plan.of(policy, env, rollout, engine)
    every = plan.tasks(split)
    work = _Work(requests([task.id for task in every[:tasks]], k, seed), on_attempt)
    about: dict[str, Any] = {}
    remote = isinstance(plan.model, Endpoint)
    with ExitStack() as held:
        if not remote:  # which computes nothing here
            held.enter_context(torch_threads(threads))
        built = plan.build()
        if remote or out is not None:  # a digest of weights takes a while
            about = plan.about(built, every, split, seed)
        if out is not None:
            work.folder = EvaluationFolder(_filled(out, plan, split, about))
            work.append = held.enter_context(work.folder.writing(about, plan.policy))
            work.found = work.folder.attempts()
        episodes = work.finish(plan, built)
        result = Evaluation(
            env=plan.env.id,
            split=split,
            k=k,
            attempts=work.attempts(),
            policy=plan.policy,
            about=about,
            path=work.folder.path if work.folder is not None else None,
            episodes=tuple(episodes),
        )
        if work.folder is not None:
            work.folder.save(result.summary())
    return result


def requests(tasks: Sequence[str], k: int, seed: int) -> list[Request]:
    """Return k rollouts of each task, the same for every policy."""
    return [
        Request(
            task=task,
            seed=derive(seed, "eval-env", task) % 2**31,
            rollout=rollout,
            sampling_seed=derive(seed, "eval", task, rollout),
        )
        for task in tasks
        for rollout in range(k)
    ]


@define
class _Work:
    """The attempts that are wanted, and those that there are."""

    wanted: Sequence[Request]
    listener: Listener | None
    folder: EvaluationFolder | None = None
    append: Callable[[Attempt], None] | None = None
    """Writes an attempt to the folder."""
    found: dict[tuple[str, int], Attempt] = field(factory=dict)
    done: int = 0

    def finish(self, plan: Plan, built: LanguageModel | Endpoint) -> list[Episode]:
        """Make what is missing."""
        missing = []
        for request in self.wanted:
            attempt = self.found.get((request.task, request.rollout))
            if attempt is None or attempt.failed:
                missing.append(request)
            else:
                self._tell(attempt)
        if not missing:
            return []
        size = len(missing) if self.folder is None else _WAVE
        waves = [missing[i : i + size] for i in range(0, len(missing), size)]
        try:
            return off_loop(lambda: asyncio.run(_roll_out(plan, built, waves, self._end)))
        except KeyboardInterrupt as interrupt:
            if self.folder is not None:
                interrupt.add_note(
                    f"{self.done} of {len(self.wanted)} attempts are kept in {self.folder.path}; "
                    "evaluating again goes on with the others."
                )
            raise

    def attempts(self) -> tuple[Attempt, ...]:
        """Return all, in the order in which they are wanted."""
        return tuple(self.found[r.task, r.rollout] for r in self.wanted)

    def _end(self, episode: Episode) -> None:
        attempt = Attempt.of(episode)
        if self.append is not None:
            self.append(attempt)
        self.found[attempt.task, attempt.rollout] = attempt
        self._tell(attempt)

    def _tell(self, attempt: Attempt) -> None:
        self.done += 1
        if self.listener is not None:
            self.listener(attempt, self.done, len(self.wanted))


async def _roll_out(
    plan: Plan,
    built: LanguageModel | Endpoint,
    waves: Sequence[Sequence[Request]],
    on_episode: Callable[[Episode], object],
) -> list[Episode]:
    collector = plan.collector(built)
    if not collector.together:
        waves = [[request for wave in waves for request in wave]]
    try:
        if isinstance(collector, RolloutCollector) and not isinstance(built, Endpoint):
            from isentrope.learner.proof import prove

            await prove(collector, plan.engine, built, plan.dtype)
        return [e for wave in waves for e in await collector.collect(wave, on_episode=on_episode)]
    finally:
        await collector.close()


def _filled(out: str | Path, plan: Plan, split: str, about: dict[str, Any]) -> Path:
    """Fill in the placeholders of a path; other braces stay as they are."""
    values = {"env": plan.env.id.replace("/", "-"), "split": split, "key": key_of(about)}
    path = str(out)
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return Path(path)
