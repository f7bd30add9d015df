"""`check_env`: what an environment must do, carried out."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import gymnasium.utils.env_checker
import numpy as np
from attrs import frozen

from isentrope.environments import Guard, TaskSet, TextEnv
from isentrope.errors import EnvironmentContractError
from isentrope.testing._elsewhere import Elsewhere
from isentrope.testing._playing import (
    SOLVER_TURNS,
    TURNS,
    Actor,
    Source,
    Trace,
    moves,
    play,
    says,
    solver,
    source_of,
    words,
)
from isentrope.testing._report import Inspection, Listener, Report, describe, require
from isentrope.workers.nursery import kept_warm

SAMPLED_TASKS = 8
HOSTILE: dict[str, str] = {
    "nothing": "",
    "white space": " \t\r\n\u2028\u00a0",
    "garbage": "}{][)(*&^%$#@!~`|\\/<>\"'",
    "words": "lorem ipsum dolor sit amet",
    "100 kB of a letter": "x" * 100_000,
    "100 kB of a digit": "9" * 100_000,  # int() refuses more than 4,300 digits
    "100 kB of brackets": "(" * 50_000 + "[" * 50_000,
    "emoji": "\U0001f98a \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a raised 2": "\u00b2",  # a digit to str.isdigit, none to int
    "NUL": "\0",
    "JSON": '{"action": null}',
    # What a notebook's policy may submit, whatever its grader expects.
    "None, submitted": "```python\nsubmit(None)\n```",
    "a list, submitted": "```python\nsubmit([[], {}])\n```",
    "not a number, submitted": "```python\nsubmit(float('nan'))\n```",
    "a text, submitted": "```python\nsubmit('9' * 5_000)\n```",  # see 100 kB of a digit
}
"""Actions that no environment may choke on, or take for a solution."""


def check_env(
    env: str | TextEnv | Callable[..., TextEnv],
    *,
    deadline: float | None = 30.0,
    on_finding: Listener | None = None,
    **config: Any,
) -> Report:
    """Check an environment against its contract; ``config`` goes to its constructor.

    env: an id, a class or factory, or an instance. Most checks need fresh instances: an instance
    stands for deep copies of itself as it is now, which share its tasks; give a factory where it
    holds what cannot be copied (a process, a socket), or where two constructions might differ.

    deadline: seconds for a call. First in processes of its own, where what hangs, crashes or leaves
    processes behind is found out, if it can be imported there: an id, or a class or function of a
    module. None: not that, which saves a second or two, and what hangs, hangs the check.

    on_finding: called with the outcome of each check as it ends.

    Plays some dozens of short episodes on a sample of the tasks.

    Raises `TypeError` where `env` is none of these.
    """
    source = source_of(env, config)
    inspection = Inspection(f"Environment {source.name!r}", on_finding)
    with kept_warm() if source.apart else nullcontext():  # else each is wanted once
        _inspect(inspection, _Probe(source, deadline))
    return inspection.report()


def _inspect(inspection: Inspection, probe: _Probe) -> None:
    foundations: dict[str, Callable[[], str | None]] = {
        "answers": probe.answers,
        "constructed": probe.constructed,
        "tasks": probe.tasks,
        "stable-tasks": probe.stable_tasks,
        "task-choice": probe.task_choice,
        "contract": probe.contract,
    }
    for check, method in foundations.items():
        if not inspection.run(check, method):
            return
    others: dict[str, Callable[[], str | None]] = {
        "gymnasium": probe.gymnasium,
        "deterministic": probe.deterministic,
        "across-processes": probe.across_processes,
        "reusable": probe.reusable,
        "isolated": probe.isolated,
        "global-rng": probe.global_rng,
        "demonstration": probe.demonstration,
        "hostile-actions": probe.hostile_actions,
        "reward-range": probe.rewards_in_range,
        "truncation": probe.truncation,
        "order-of-calls": probe.order_of_calls,
        "close": probe.close,
    }
    for check, probe_it in others.items():
        inspection.run(check, probe_it)


@frozen
class _Probe:
    """The checks, by name."""

    source: Source
    deadline: float | None

    @property
    def elsewhere(self) -> Elsewhere | str:
        """The environment in a process of its own; or why it cannot be there."""
        source, deadline = self.source, self.deadline
        if source.apart:
            return "it runs in another interpreter, each instance in a process of its own"
        if source.entry_point is None:
            return "another process could not import it"
        if deadline is None:
            return "no deadline was given"
        if sys.platform != "linux":
            return "it needs Linux"
        return Elsewhere(source.name, source.entry_point, source.config, deadline)

    def answers(self) -> str | None:
        """In a process of its own every call comes back in time, and nothing is left behind."""
        if isinstance(elsewhere := self.elsewhere, str):
            return elsewhere
        elsewhere.answers(HOSTILE, SAMPLED_TASKS // 2)
        return None

    def across_processes(self) -> str | None:
        """The same (task, seed) and actions give the same episode in another process."""
        if isinstance(elsewhere := self.elsewhere, str):
            return elsewhere
        tasks = enumerate(self.sample())
        elsewhere.same(
            (s, self.trace(task, s, script())) for s, task in tasks for script in _SCRIPTS
        )
        return None

    @contextmanager
    def env(self) -> Iterator[Guard]:
        """Lend a fresh instance."""
        with closing(self.source.fresh()) as env:
            yield env

    def sample(self, limit: int = SAMPLED_TASKS) -> list[str]:
        """Return ids spread evenly over every split."""
        with self.env() as env:
            each = max(1, limit // len(env.tasks))
            return [
                split[i * len(split) // each].id
                for split in env.tasks.values()
                for i in range(min(each, len(split)))
            ]

    def constructed(self) -> None:
        """It can be made, and is a `TextEnv`."""
        with self.env():
            pass

    def tasks(self) -> None:
        """It has tasks: ids are unique strings, splits are disjoint and not empty."""
        with self.env() as env:
            tasks = getattr(env.inner, "tasks", None)
            require(isinstance(tasks, TaskSet), f"tasks must be a TaskSet, not {describe(tasks)}")
            require(env.tasks, "there is no split")
            for split, members in env.tasks.items():
                require(members, f"split {split!r} has no tasks")
            ids = [task.id for members in env.tasks.values() for task in members]
            for task_id in ids:
                require(isinstance(task_id, str) and task_id, f"a task has the id {task_id!r}")
            twice = [i for i, count in Counter(ids).items() if count > 1]
            require(not twice, f"task {twice[:1]} is there twice")

    def task_choice(self) -> None:
        """Reset obeys its options, and refuses what does not exist."""
        sampled = self.sample()
        with self.env() as env:
            for task in sampled:
                _, info = env.reset(seed=0, options={"task": task})
                _require_task(env, info, {task}, f"options={{'task': {task!r}}}")
            for split, members in env.tasks.items():
                _, info = env.reset(seed=0, options={"split": split})
                ids = {task.id for task in members}
                _require_task(env, info, ids, f"options={{'split': {split!r}}}")
            for key, value in (("task", "\0 no such task"), ("split", "\0 no such split")):
                refused = _raises(Exception, env.reset, seed=0, options={key: value})
                require(refused, f"reset accepted the {key} {value!r}, which does not exist")

    def contract(self) -> None:
        """Everything that it returns has the right type, for ordinary actions."""
        for task in self.sample():
            for actor in (solver(0.0), solver(0.5), words()):
                self.trace(task, 0, actor)

    def gymnasium(self) -> None:
        """Gymnasium's own checker passes."""
        with self.env() as env, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of render modes and specs, never of us
            gymnasium.utils.env_checker.check_env(env.inner)

    def stable_tasks(self) -> None:
        """Two instances have the same tasks in the same order."""
        with self.env() as one, self.env() as other:
            require(list(one.tasks) == list(other.tasks), "two instances have different splits")
            for split, members in one.tasks.items():
                for mine, theirs in zip(members, other.tasks[split], strict=False):
                    require(
                        mine.id == theirs.id,
                        f"two instances disagree about split {split!r}: {mine.id!r}, {theirs.id!r}",
                    )
                require(
                    len(members) == len(other.tasks[split]),
                    f"two instances have splits {split!r} of different lengths",
                )

    def deterministic(self) -> None:
        """The same (task, seed) and actions give the same episode on two fresh instances."""
        for seed, task in enumerate(self.sample()):
            for script in _SCRIPTS:
                _require_same(
                    self.trace(task, seed, script()), self.trace(task, seed, script()), seed
                )

    def reusable(self) -> None:
        """They do on an instance that played other episodes, or left one in the middle."""
        sampled = self.sample()
        for script in _SCRIPTS:
            alone = [self.trace(task, seed, script()) for seed, task in enumerate(sampled)]
            with self.env() as env:
                for seed, task in reversed(list(enumerate(sampled))):
                    again = play(env, task, seed, script())
                    _require_same(alone[seed], again, seed, " on an instance used before")
                    for _ in zip(moves(env, task, seed, words()), range(2), strict=False):
                        pass  # and leaves this one after its first step

    def isolated(self) -> None:
        """Two instances that take turns do not disturb each other."""
        sampled = self.sample()
        for script in _SCRIPTS:
            first, last = sampled[0], sampled[-1]
            alone = [self.trace(first, 1, script()), self.trace(last, 2, script())]
            with self.env() as one, self.env() as other:
                games = [moves(one, first, 1, script()), moves(other, last, 2, script())]
                traces = [Trace(first), Trace(last)]
                while sum(_advance(game, traces, i) for i, game in enumerate(games)):
                    pass
            for seed, (expected, found) in enumerate(zip(alone, traces, strict=True), 1):
                _require_same(expected, found, seed, " with another instance beside it")

    def global_rng(self) -> None:
        """Nothing draws from, or seeds, the process's own random generators."""
        sampled = self.sample()
        before = _rng_states()
        for seed, task in enumerate(sampled):
            for script in _SCRIPTS:
                self.trace(task, seed, script())
        for name, state in _rng_states().items():
            require(
                state == before.get(name, state),
                f"playing changed the state of {name}; draw from self.np_random alone",
            )

    def demonstration(self) -> str | None:
        """The solver without noise earns all there is, and succeeds."""
        with self.env() as env:
            highest = env.reward_range[1]
            env.reset(seed=0)
            if env.demonstrate(np.random.default_rng(0), 0.0) is None:
                return "it has no scripted solver"
        for seed, task in enumerate(self.sample()):
            trace = self.trace(task, seed, solver(0.0, seed), SOLVER_TURNS)
            said = f"the solver without noise, on task {task!r} with seed {seed},"
            require(trace.ended, f"{said} did not end in {SOLVER_TURNS} steps")
            require(
                math.isclose(trace.total, highest, rel_tol=1e-6, abs_tol=1e-9),
                f"{said} earned {trace.total:g} of {highest:g}",
            )
            require(trace.succeeded, f"{said} was no success")
        return None

    def hostile_actions(self) -> None:
        """No action raises, or passes for a solution by being strange."""
        for task in self.sample(2):
            for name, action in HOSTILE.items():
                try:
                    trace = self.trace(task, 0, says(action))
                except Exception as error:
                    require(False, f"{name} as the action raised {describe(error)}")
                require(not trace.succeeded, f"{name} as the action solved task {task!r}")

    def rewards_in_range(self) -> None:
        """A whole episode's return is within `reward_range`, and the range is one."""
        with self.env() as env:
            low, high = env.reward_range
        require(
            math.isfinite(low) and math.isfinite(high) and low < high,
            f"reward_range must be two finite numbers, the lower first, not {(low, high)}",
        )
        actors = [solver(0.0), solver(0.3), solver(0.9), words(), *map(says, HOSTILE.values())]
        for task in self.sample(4):
            for actor in actors:
                trace = self.trace(task, 0, actor)
                require(
                    not trace.ended or low - 1e-9 <= trace.total <= high + 1e-9,
                    f"an episode of task {task!r} earned {trace.total:g}, outside "
                    f"[{low:g}, {high:g}]; its first action was {describe(trace.actions[:1], 60)}",
                )

    def truncation(self) -> None:
        """No limit of its own cuts an episode off at the first step."""
        for task in self.sample():
            for actor in (solver(0.0), words()):
                trace = self.trace(task, 0, actor, 1)
                require(not trace.steps[1][3], f"task {task!r} was truncated at its first step")

    def order_of_calls(self) -> None:
        """Stepping before reset or after the end is an error; resetting twice is none."""
        (task, *_) = self.sample()
        with self.env() as env:
            refused = _raises(EnvironmentContractError, env.step, "yes")
            require(refused, "step() before reset() was accepted")
            env.reset(seed=0)
            trace = play(env, task, 0, solver(0.0), SOLVER_TURNS)
            refused = not trace.ended or _raises(EnvironmentContractError, env.step, "yes")
            require(refused, "step() after the episode's end was accepted")
            play(env, task, 0, words(), 1)

    def close(self) -> None:
        """Closing twice is allowed, at any time."""
        (task, *_) = self.sample()
        for steps in (0, 1, TURNS):
            env = self.source.fresh()
            if steps:
                play(env, task, 0, words(), steps)
            env.close()
            env.close()

    def trace(self, task: str, seed: int, actor: Actor, limit: int = TURNS) -> Trace:
        """Play one episode on a fresh instance."""
        with self.env() as env:
            return play(env, task, seed, actor, limit)


_SCRIPTS: tuple[Callable[[], Actor], ...] = (words, lambda: solver(0.5))


def _require_task(env: TextEnv, info: Any, expected: set[str], options: str) -> None:
    found = info.get("task"), getattr(getattr(env, "task", None), "id", None)
    require(
        found[0] in expected and found[1] == found[0],
        f"after reset({options}), info['task'] was {found[0]!r} and env.task {found[1]!r}; "
        "hand options to super().reset() and return its info",
    )


def _require_same(expected: Trace, found: Trace, seed: int, where: str = "") -> None:
    difference = expected.difference(found)
    require(
        not difference,
        f"task {expected.task!r} with seed {seed} went another way the second time{where}: "
        f"{difference}",
    )


def _advance(game: Iterator[Trace], traces: list[Trace], index: int) -> bool:
    """Play one step; say whether there was one."""
    trace = next(game, None)
    if trace is not None:
        traces[index] = trace
    return trace is not None


def _raises(kind: type[Exception], call: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    try:
        call(*args, **kwargs)
    except kind:
        return True
    return False


def _rng_states() -> dict[str, Any]:
    """State of every random generator that a process shares, in a form that compares."""
    states: dict[str, Any] = {
        "random": random.getstate(),
        "numpy.random": _numpy_state(),
    }
    if "torch" in sys.modules:
        states["torch"] = bytes(sys.modules["torch"].get_rng_state().tolist())
    return states


def _numpy_state() -> tuple[Any, ...]:
    _, keys, *position = np.random.get_state()
    return np.asarray(keys).tobytes(), *position
