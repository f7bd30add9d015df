"""An environment in another interpreter, as an ordinary one: every call goes to a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np

from isentrope.environments import Task, TaskSet, TextEnv, checked_reset, checked_step
from isentrope.looping import off_loop
from isentrope.workers.pool import Pool
from isentrope.workers.worker import WorkerError

T = TypeVar("T")


class RemoteEnv(TextEnv):
    """The environment of a pool's worker; its tasks are known by their ids alone.

    Raises `WorkerError` where it cannot be made, or fails.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        try:
            self._worker = _run(pool.borrow())
        except BaseException:
            self.close()
            raise
        tasks, bounds = pool.about["tasks"], pool.about["reward_range"]
        self.tasks = TaskSet({split: map(Task, ids) for split, ids in tasks.items()})
        self.reward_range = (float(bounds[0]), float(bounds[1]))  # type: ignore[misc]  # its own

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode there."""
        _, info = super().reset(seed=seed, options=options)
        self._change_worker()
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        observation, found = checked_reset(
            self._pool.name, self._call("reset", task=info["task"], seed=drawn)
        )
        return observation, {**found, **info}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer a turn there."""
        return checked_step(self._pool.name, self._call("step", action=action))

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str | None:
        """Ask the solver there."""
        said = self._call("demonstrate", seed=int(rng.integers(2**31)), noise=noise)
        return None if said is None else str(said)

    def close(self) -> None:
        """End the worker."""
        if (worker := getattr(self, "_worker", None)) is not None:
            del self._worker
            _run(self._pool.give_back(worker, clean=True))
        _run(self._pool.close())

    def _change_worker(self) -> None:
        """Have the pool replace the worker, where it has served its number of episodes."""
        worker = self._worker
        del self._worker
        _run(self._pool.give_back(worker, clean=True))
        self._worker = _run(self._pool.borrow())

    def _call(self, name: str, **arguments: Any) -> Any:
        try:
            return _run(self._pool.ask(self._worker, name, **arguments))
        except WorkerError as error:
            raised = error.raised
            what = f"{raised.names[0]} in {name}(): {raised.said}\n" if raised is not None else ""
            said = f"Environment {self._pool.name!r} failed: {what}{error}"
            raise WorkerError(error.status, said, raised) from error


def _run(call: Coroutine[Any, Any, T]) -> T:
    return off_loop(lambda: asyncio.run(call))
