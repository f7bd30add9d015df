"""Environments that others wrote: any Gymnasium environment with text in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from isentrope.environments import Task, TaskSet, TextEnv
from isentrope.errors import ConfigError
from isentrope.specs import load_entry_point

SPLITS: Mapping[str, int] = {"train": 1000, "dev": 100, "test": 100}
KNOWN = ("success", "messages", "metrics")
"""What of the other environment's info is passed on; the rest is its own business."""


class GymText(TextEnv):
    """A Gymnasium environment whose observations and actions are text; a task is a seed of it.

    make: a Gymnasium id, ``"package.module:factory"``, or a callable. options: arguments for it.
    splits: how many tasks each has. reward_range: bounds of an episode's return. An episode is a
    success if its last info says so, or, where that says nothing, if its return is the highest.

    Raises `ConfigError` where it cannot be made, or is not of text.
    """

    def __init__(
        self,
        make: str | Callable[..., gymnasium.Env[Any, Any]],
        *,
        options: Mapping[str, Any] | None = None,
        splits: Mapping[str, int] = SPLITS,
        reward_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        low, high = reward_range
        self.reward_range = (float(low), float(high))  # type: ignore[misc]  # this one's own
        self.env = _made(make, options or {})
        tasks: dict[str, list[Task]] = {}
        first = 0
        for split, count in splits.items():
            tasks[split] = [Task(f"{split}-{i}", {"seed": first + i}) for i in range(count)]
            first += count
        self.tasks = TaskSet(tasks)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Reset it with the task's seed."""
        _, info = super().reset(seed=seed, options=options)
        observation, found = self.env.reset(seed=self.task.data["seed"])
        self._return = 0.0
        return observation, {**_passed_on(found), **info}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Hand it the turn."""
        observation, reward, terminated, truncated, found = self.env.step(action)
        self._return += float(reward)
        info = _passed_on(found)
        if terminated:
            info.setdefault("success", self._return >= self.reward_range[1])
        return observation, float(reward), terminated, truncated, info

    def close(self) -> None:
        """Close it."""
        self.env.close()


def _made(make: Any, options: Any) -> gymnasium.Env[Any, Any]:
    if not isinstance(make, str) and not callable(make):
        raise ConfigError(
            f"make must be a Gymnasium id, 'package.module:factory' or a callable; got {make!r}."
        )
    if not isinstance(options, Mapping):
        raise ConfigError(f"options must be a table of arguments for {make!r}; got {options!r}.")
    env: gymnasium.Env[Any, Any]
    try:
        if not isinstance(make, str):
            env = make(**options)
        elif ":" in make:
            env = load_entry_point(make)(**options)
        else:
            env = gymnasium.make(make, **options)
        samples = {name: getattr(env, f"{name}_space", None) for name in ("observation", "action")}
        samples = {name: space and space.sample() for name, space in samples.items()}
    except (Exception, SystemExit) as error:  # a stranger's factory
        raise ConfigError(f"{make!r} cannot be made: {type(error).__name__}: {error}") from error
    for name, sample in samples.items():
        if not isinstance(sample, (str, type(None))):
            raise ConfigError(f"{make!r} is not of text: its {name}s are such as {sample!r}.")
    return env


def _passed_on(info: Mapping[str, Any]) -> dict[str, Any]:
    return {key: info[key] for key in KNOWN if key in info}
