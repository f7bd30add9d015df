"""What only a process of its own can tell of an environment: hangs, crashes, hidden state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen

from isentrope.episodes import Status
from isentrope.looping import off_loop
from isentrope.testing._playing import WORDS, Trace
from isentrope.testing._report import UnmetError, describe, require
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.pool import WorkerPool
from isentrope.workers.worker import Worker, WorkerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FATAL = (Status.TIMEOUT, Status.CRASHED, Status.OUT_OF_MEMORY)
"""What an environment does that no other check could survive."""


@frozen
class Elsewhere:
    """An environment in workers, each of whose calls has a deadline."""

    name: str
    entry_point: str
    config: Mapping[str, Any]
    deadline: float

    def answers(self, actions: Mapping[str, str], tasks: int) -> None:
        """Every call comes back in time; nothing crashes, and nothing is left behind.

        tasks: how many are tried. Raises `UnmetError` otherwise; exceptions are for other checks to
        find.
        """
        off_loop(lambda: asyncio.run(self._answers(actions, tasks)))

    def same(self, traces: Iterable[tuple[int, Trace]]) -> None:
        """The same actions get the same answers in other processes, whatever strings hash to.

        traces: seed and episode, as they went here. Raises `UnmetError` where one differs.
        """
        off_loop(lambda: asyncio.run(self._same(list(traces))))

    async def _answers(self, actions: Mapping[str, str], count: int) -> None:
        async with self._pool() as pool:
            if (worker := await _try(pool.borrow(), "making it")) is None:
                return
            tasks = [task for members in pool.about["tasks"].values() for task in members]
            for task in tasks[:: max(1, len(tasks) // count)][:count]:
                await self._say(worker, task, "ordinary actions", WORDS)
                for label, action in actions.items():
                    await self._say(worker, task, f"{label} as an action", [action])
            await pool.give_back(worker, clean=True)
        require(pool.leaked == 0, f"close() left {pool.leaked} processes behind")
        require(pool.killed == 0, "close() did not come back, or raised")

    async def _say(self, worker: Worker, task: str, what: str, actions: Sequence[str]) -> None:
        where = f"task {task!r}, {what}"
        begun = await _try(worker.call("reset", self.deadline, task=task, seed=0), where)
        for action in actions if begun is not None else ():
            answer = await _try(worker.call("step", self.deadline, action=action), where)
            if answer is None or not isinstance(answer, list) or any(answer[2:4]):
                return

    async def _same(self, traces: list[tuple[int, Trace]]) -> None:
        for hash_seed in (1, 2):
            async with self._pool(hash_seed) as pool:
                worker = await pool.borrow()
                for seed, trace in traces:
                    steps = [await worker.call("reset", self.deadline, task=trace.task, seed=seed)]
                    for action in trace.actions:
                        steps.append(await worker.call("step", self.deadline, action=action))
                    _compare(seed, trace, steps)
                await pool.give_back(worker, clean=True)

    @asynccontextmanager
    async def _pool(self, hash_seed: int = 0) -> AsyncIterator[WorkerPool]:
        limits = WorkerConfig(count=1, start_deadline=60 + self.deadline, deadline=self.deadline)
        pool = WorkerPool(self.name, self.entry_point, self.config, limits, hash_seed=hash_seed)
        try:
            yield pool
        except WorkerError as error:
            raise UnmetError(f"in a process of its own: {_last_line(error)}") from error
        finally:
            await pool.close()


async def _try(call: Any, where: str) -> Any:
    """Return what a call answers; None where it raises, which is not this check's business."""
    try:
        return await call
    except WorkerError as error:
        if error.status in FATAL:
            raise UnmetError(f"{where}: {_first_line(error)}") from error
        return None


def _compare(seed: int, trace: Trace, found: list[Any]) -> None:
    for index, (here, there) in enumerate(zip(trace.steps, found, strict=True)):
        where = f"step {index}" if index else "reset"
        for name, mine, theirs in zip(("observation", "reward"), here, there, strict=False):
            if name == "reward" and not index:
                continue
            require(
                mine == theirs,
                f"task {trace.task!r} with seed {seed} went another way in another process: the "
                f"{name} of {where} was {describe(mine, 60)}, and there {describe(theirs, 60)}",
            )


def _first_line(error: WorkerError) -> str:
    return str(error).splitlines()[0]


def _last_line(error: WorkerError) -> str:
    return str(error).strip().splitlines()[-1]
