"""Environments: Gymnasium environments over text, with tasks.

The whole contract for an author::

    class Echo(TextEnv):
        def __init__(self) -> None:
            self.tasks = TaskSet({"train": [Task("a", {"word": "hi"})]})

        def reset(self, *, seed=None, options=None):
            _, info = super().reset(seed=seed, options=options)   # sets self.task, self.np_random
            return f"Say {self.task.data['word']}", info

        def step(self, action):
            right = action == self.task.data["word"]
            return "", float(right), True, False, {"success": right}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import gymnasium
import numpy as np
from attrs import field, frozen

from isentrope.episodes import Message, StopReason
from isentrope.errors import ConfigError, EnvironmentContractError, UnknownNameError

LONGEST = 1 << 20
"""Characters of an observation or a message; tokenizing more would hold up every episode."""


@frozen
class Task:
    """One problem: a stable id and what the environment needs to pose it."""

    id: str
    data: Mapping[str, Any] = field(factory=dict)


class TaskSet(Mapping[str, tuple[Task, ...]]):
    """Named splits of tasks, in a fixed order; ids are unique over all splits.

    Raises `ConfigError` where a task is in two splits, or twice in one.
    """

    def __init__(self, splits: Mapping[str, Iterable[Task]]) -> None:
        self._splits = {name: tuple(tasks) for name, tasks in splits.items()}
        self._by_id: dict[str, Task] = {}
        split_of: dict[str, str] = {}
        for name, tasks in self._splits.items():
            for task in tasks:
                if task.id in split_of:
                    other = split_of[task.id]
                    where = (
                        f"twice in split {name!r}"
                        if other == name
                        else (f"in splits {other!r} and {name!r}")
                    )
                    raise ConfigError(
                        f"Task {task.id!r} is {where}; every task belongs to exactly one split, "
                        "or evaluation would see training tasks."
                    )
                split_of[task.id] = name
                self._by_id[task.id] = task

    def __getitem__(self, split: str) -> tuple[Task, ...]:
        try:
            return self._splits[split]
        except KeyError:
            raise UnknownNameError("Split", split, self._splits) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def find(self, task_id: str) -> Task:
        """Return the task of that id, whatever its split."""
        try:
            return self._by_id[task_id]
        except KeyError:
            raise UnknownNameError("Task", task_id, self._by_id) from None


class Info(TypedDict, total=False):
    """What an environment may say beside its observation. Every key is optional."""

    task: str
    """Id of the task; `TextEnv.reset` sets it."""
    messages: Sequence[Message]
    """The new chat messages, where one user message holding the observation is not enough."""
    success: bool
    """At the end: whether the task was solved. Left out, the episode is no success; an environment
    that never says it has no pass@k."""
    stop_reason: str
    """With ``truncated``: a `StopReason` that says which limit."""
    metrics: Mapping[str, float]
    """Numbers to log by themselves, such as the parts of a reward."""
    report: str
    """At the end: what to tell people of it, such as which tests failed. No policy sees it."""


class Unicode(gymnasium.Space[str]):
    """Any string. `gymnasium.spaces.Text` needs a finite character set, which real text has not."""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(dtype=str, seed=seed)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Draw up to 32 code points from the whole range, surrogates left out."""
        del mask, probability
        points = self.np_random.integers(1, 0x10FFFF - 0x800, size=self.np_random.integers(0, 33))
        return "".join(chr(p if p < 0xD800 else p + 0x800) for p in points)

    def contains(self, x: Any) -> bool:
        """Say whether `x` is a string."""
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed-size array form."""
        return False

    def __repr__(self) -> str:
        return "Unicode()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode)

    __hash__ = None  # type: ignore[assignment]  # as in every Gymnasium space


class TextEnv(gymnasium.Env[str, str]):
    """A Gymnasium environment whose observations and actions are text.

    Observation: what the policy is told next. Action: the assistant's whole turn. Randomness comes
    from ``self.np_random`` alone, so that the same (task, seed) gives the same episode everywhere.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium's own declaration
    observation_space: gymnasium.Space[str] = Unicode()
    action_space: gymnasium.Space[str] = Unicode()
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Bounds of an episode's return."""

    tasks: TaskSet
    """Set by the constructor."""
    task: Task
    """The task of the running episode, set by `reset`."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Choose the task and seed ``self.np_random``; subclasses extend this.

        ``options={"task": id}`` names the task, ``{"split": name}`` draws one from that split; with
        neither, one is drawn from the first split.
        """
        super().reset(seed=seed)
        choice = dict(options or {})
        task_id, split = choice.pop("task", None), choice.pop("split", None)
        for key in choice:
            raise UnknownNameError("reset option", key, ("task", "split"))
        if task_id is not None:
            self.task = self.tasks.find(task_id)
        else:
            drawn_from = self.tasks[split if split is not None else next(iter(self.tasks))]
            self.task = drawn_from[int(self.np_random.integers(len(drawn_from)))]
        return "", {"task": self.task.id}

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str | None:
        """Return a scripted solver's next action in the present state, or None if there is none.

        With ``noise=0`` following it reaches the highest reward; `noise` is the probability that a
        step of the solution is wrong. Models warm up on these, and `isentrope.testing.check_env`
        checks the environment with them.
        """
        del rng, noise
        return None


class Guard(gymnasium.Wrapper[str, str, str, str], TextEnv):
    """Checks everything that goes into and comes out of an environment; `make` wraps every one.

    Raises `EnvironmentContractError` at a wrong type, a reward that is not a finite number, or a
    step before `reset` or after the end.
    """

    def __init__(self, env: TextEnv, name: str) -> None:
        gymnasium.Wrapper.__init__(self, env)
        self.inner = env
        self._name = name
        self._running = False

    @property
    def tasks(self) -> TaskSet:  # type: ignore[override]  # the wrapped environment's
        """The wrapped environment's tasks."""
        return self.inner.tasks

    @property
    def task(self) -> Task:  # type: ignore[override]  # the wrapped environment's
        """The wrapped environment's present task."""
        return self.inner.task

    @property
    def reward_range(self) -> tuple[float, float]:  # type: ignore[override]
        """The wrapped environment's bounds of a return."""
        return self.inner.reward_range

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Reset the environment and check what it returns."""
        self._running = False
        observation, info = checked_reset(self._name, self.inner.reset(seed=seed, options=options))
        if (wanted := (options or {}).get("task")) is not None:
            posed = getattr(self.inner, "task", None)
            if posed is None or posed.id != wanted:
                raise _broken(
                    self._name,
                    f"reset() was asked for task {wanted!r} and posed {posed!r}; call "
                    "super().reset(seed=seed, options=options) first, and pose self.task",
                )
        self._running = True
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Step the environment and check what goes in and comes out."""
        if not self._running:
            raise _broken(
                self._name,
                "step() was called before reset() or after the episode's end; reset first",
            )
        if not isinstance(action, str):
            raise _broken(self._name, f"an action must be a str, not {_describe(action)}")
        self._running = False
        result = checked_step(self._name, self.inner.step(action))
        self._running = not (result[2] or result[3])
        return result

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str | None:
        """Ask the wrapped environment's scripted solver."""
        return self.inner.demonstrate(rng, noise)


def checked_reset(name: str, result: Any) -> tuple[str, dict[str, Any]]:
    """Return what `reset` of the environment of that name returned, if it is what it must be.

    Raises `EnvironmentContractError` where it is not.
    """
    if not (isinstance(result, tuple) and len(result) == 2):
        raise _broken(name, f"reset() must return (observation, info), not {_describe(result)}")
    observation, info = result
    _check_texts(name, "reset()", observation, info)
    return observation, info


def checked_step(name: str, result: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """Return what `step` of the environment of that name returned, if it is what it must be.

    Raises `EnvironmentContractError` where it is not.
    """
    if not (isinstance(result, tuple) and len(result) == 5):
        raise _broken(
            name,
            "step() must return (observation, reward, terminated, truncated, info), "
            f"not {_describe(result)}",
        )
    observation, reward, terminated, truncated, info = result
    _check_texts(name, "step()", observation, info)
    if not (isinstance(reward, (int, float, np.integer, np.floating)) and math.isfinite(reward)):
        raise _broken(
            name, f"step() must return a finite number as the reward, not {_describe(reward)}"
        )
    for flag_name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, (bool, np.bool_)):
            raise _broken(name, f"step() must return a bool as {flag_name}, not {_describe(flag)}")
    return observation, float(reward), bool(terminated), bool(truncated), info


def _check_texts(name: str, call: str, observation: Any, info: Any) -> None:
    if not isinstance(observation, str):
        raise _broken(
            name, f"{call} must return a str as the observation, not {_describe(observation)}"
        )
    if not isinstance(info, dict):
        raise _broken(name, f"{call} must return a dict as info, not {_describe(info)}")
    _check_length(name, call, observation)
    for message in info.get("messages", ()):
        if not (
            isinstance(message, Mapping)
            and message.get("role") in ("system", "user", "assistant", "tool")
            and isinstance(message.get("content"), str)
        ):
            raise _broken(
                name,
                f'{call}: info["messages"] must hold {{"role": "system" | "user" | "assistant" | '
                f'"tool", "content": str}}, not {_describe(message)}',
            )
        _check_length(name, call, message["content"])
    if not isinstance(success := info.get("success", False), (bool, np.bool_)):
        raise _broken(
            name,
            f'{call}: info["success"] must be a bool, not {_describe(success)}; a partial reward '
            "is not a success",
        )
    if (reason := info.get("stop_reason", StopReason.TERMINATED)) not in _REASONS:
        raise _broken(
            name,
            f'{call}: info["stop_reason"] must be one of {[r.value for r in StopReason]}, '
            f"not {_describe(reason)}",
        )
    if not isinstance(report := info.get("report", ""), str):
        raise _broken(name, f'{call}: info["report"] must be a str, not {_describe(report)}')
    _check_length(name, call, report)
    for key, value in info.get("metrics", {}).items():
        if not (isinstance(value, (int, float, np.number)) and math.isfinite(value)):
            raise _broken(
                name,
                f'{call}: info["metrics"][{key!r}] must be a finite number, not {_describe(value)}',
            )


def _check_length(name: str, call: str, text: str) -> None:
    if len(text) > LONGEST:
        raise _broken(name, f"{call} must say at most {LONGEST:,} characters, not {len(text):,}")


_REASONS = tuple(StopReason)


def _broken(name: str, sentence: str) -> EnvironmentContractError:
    return EnvironmentContractError(f"Environment {name!r}: {sentence}.")


def _describe(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
