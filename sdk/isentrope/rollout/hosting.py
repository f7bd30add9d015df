"""Where environments run: in the run's own process, or each in a worker that can be killed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from attrs import define, field, frozen

from isentrope.components import env_spec, make, pool_of
from isentrope.environments import TextEnv, checked_reset, checked_step
from isentrope.errors import ConfigError, EnvironmentContractError
from isentrope.specs import EnvRef
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.pool import Caller, Pool

Step = tuple[str, float, bool, bool, dict[str, Any]]


class Hosted(Protocol):
    """An environment that somebody runs."""

    @property
    def lowest(self) -> float:
        """The least that an episode can return."""
        ...

    async def reset(self, task: str, seed: int) -> tuple[str, dict[str, Any]]:
        """Begin an episode of a task."""
        ...

    async def step(self, action: str) -> Step:
        """Answer a turn."""
        ...


class Host(ABC):
    """Runs one kind of environment, and lends it out, an episode at a time."""

    at_a_time: int | None = None
    """How many may be lent at a time; None: any number."""

    @abstractmethod
    async def borrow(self) -> Hosted:
        """Return an environment for an episode; raises what it raises where it cannot be made."""

    @abstractmethod
    async def give_back(self, env: Any, *, clean: bool) -> None:
        """Take it back; after a failure it is thrown away."""

    @abstractmethod
    async def close(self) -> None:
        """Close all that are not lent."""

    def counts(self) -> dict[str, int]:
        """Return what there is to count since the run began, for the metrics."""
        return {}


@frozen
class LocalEnv:
    """An environment in this process."""

    env: TextEnv

    @property
    def lowest(self) -> float:
        """The least that an episode can return."""
        return self.env.reward_range[0]

    async def reset(self, task: str, seed: int) -> tuple[str, dict[str, Any]]:
        """Begin an episode of a task."""
        return self.env.reset(seed=seed, options={"task": task})

    async def step(self, action: str) -> Step:
        """Answer a turn."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), terminated, truncated, info


@define
class LocalHost(Host):
    """Environments in this process: fast, and able to hang or end it."""

    make: Callable[[], TextEnv]
    _idle: list[LocalEnv] = field(factory=list, init=False)

    async def borrow(self) -> LocalEnv:
        """Return an idle one, or make one."""
        return self._idle.pop() if self._idle else LocalEnv(self.make())

    async def give_back(self, env: LocalEnv, *, clean: bool) -> None:
        """Keep it for another episode, or close it."""
        if clean:
            self._idle.append(env)
            return
        with suppress(Exception):  # it failed already, and its episode says how
            env.env.close()

    async def close(self) -> None:
        """Close all that are not lent."""
        while self._idle:
            with suppress(Exception):  # the run is over, and so is what they could spoil
                self._idle.pop().env.close()


@frozen
class WorkerEnv:
    """An environment in a worker."""

    pool: Pool
    worker: Caller

    @property
    def lowest(self) -> float:
        """The least that an episode can return."""
        return float(self.pool.about["reward_range"][0])

    async def reset(self, task: str, seed: int) -> tuple[str, dict[str, Any]]:
        """Begin an episode of a task, within the deadline."""
        result = await self.pool.ask(self.worker, "reset", task=task, seed=seed)
        observation, info = checked_reset(self.pool.name, result)
        if info.get("task", task) != task:
            raise EnvironmentContractError(
                f"Environment {self.pool.name!r}: reset() was asked for task {task!r} and posed "
                f"{info['task']!r}."
            )
        return observation, info

    async def step(self, action: str) -> Step:
        """Answer a turn, within the deadline."""
        return checked_step(self.pool.name, await self.pool.ask(self.worker, "step", action=action))


@define
class WorkerHost(Host):
    """Environments in workers."""

    pool: Pool

    def __attrs_post_init__(self) -> None:
        """Lend as many as there may be processes."""
        self.at_a_time = self.pool.limits.count

    async def borrow(self) -> WorkerEnv:
        """Return an idle worker, or start one."""
        return WorkerEnv(self.pool, await self.pool.borrow())

    async def give_back(self, env: WorkerEnv, *, clean: bool) -> None:
        """Keep the worker for another episode, or kill it."""
        await self.pool.give_back(env.worker, clean=clean)

    async def close(self) -> None:
        """End all workers that are not lent."""
        await self.pool.close()

    def counts(self) -> dict[str, int]:
        """Workers started and killed, and processes that closed environments left behind."""
        return self.pool.counts()


def host_of(ref: EnvRef, limits: WorkerConfig) -> Host:
    """Return what runs an environment: where it declares, or where `limits` say.

    Raises `ConfigError` for an interpreter or a cluster that is not there, or could not be used.
    """
    spec = env_spec(ref.id)
    isolation = limits.isolation or spec.isolation
    if spec.entry_point.startswith("__main__:") and isolation != "none":
        raise ConfigError(
            f"{ref.id!r} is defined in a script or a notebook, which a worker cannot import: put "
            "it into a module, or leave out rollout.workers.isolation."
        )
    if isolation == "none":
        if spec.python is not None:
            raise ConfigError(
                f"{ref.id!r} runs in an interpreter of its own ({spec.python}), so it cannot have "
                "isolation 'none'."
            )
        if limits.ray is not None:
            raise ConfigError(
                f"{ref.id!r} runs in the run's own process, and so not on Ray: set "
                "rollout.workers.isolation = 'process', or leave out rollout.workers.ray."
            )
        return LocalHost(lambda: make(ref.id, **ref.config))
    return WorkerHost(pool_of(spec, ref.id, {**spec.config, **ref.config}, limits))
