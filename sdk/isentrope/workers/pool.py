"""The workers of one environment, and which of them are free."""

from __future__ import annotations

import asyncio
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from attrs import define, field

from isentrope.episodes import Status
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.nursery import Nursery, enter
from isentrope.workers.worker import Worker, WorkerError


class Caller(Protocol):
    """A worker that was borrowed, wherever it is."""

    async def call(self, name: str, deadline: float, **arguments: Any) -> Any:
        """Return what its environment answers; see `Worker.call`."""
        ...


@define(eq=False)
class Pool(ABC):
    """Workers of one environment, reused while they are clean."""

    name: str
    """Of the environment, for errors."""
    entry_point: str
    config: Mapping[str, Any]
    limits: WorkerConfig
    python: str | None = None
    """An interpreter, if it is not this one."""
    episodes: int | None = None
    """How many a worker serves before it is replaced; None: any number."""
    about: dict[str, Any] = field(factory=dict, init=False)
    """What the environment says of itself, once a worker was borrowed."""

    @abstractmethod
    async def borrow(self) -> Any:
        """Return a worker whose environment is made.

        Raises `WorkerError` where it cannot be made.
        """

    @abstractmethod
    async def give_back(self, worker: Any, *, clean: bool) -> None:
        """Take a worker back; one that is not clean is killed."""

    @abstractmethod
    async def close(self) -> None:
        """End every worker that is not borrowed."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Return workers started and killed, and processes that closed environments left behind."""

    async def ask(self, worker: Caller, name: str, **arguments: Any) -> Any:
        """Return what a worker's environment returns, within the deadline."""
        result = await worker.call(name, self.limits.deadline, **arguments)
        return tuple(result) if isinstance(result, list) else result  # JSON has no tuples


@define(eq=False)
class WorkerPool(Pool):
    """Workers on this machine."""

    hash_seed: int = 0
    """What strings hash by, so that sets come in the same order in every worker."""
    started: int = field(default=0, init=False)
    killed: int = field(default=0, init=False)
    """Workers that had to be."""
    leaked: int = field(default=0, init=False)
    """Processes that closed environments left behind; they were killed."""
    _nursery: Nursery | None = field(default=None, init=False)
    _broken: WorkerError | None = field(default=None, init=False)
    _opening: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _idle: list[Worker] = field(factory=list, init=False)

    async def borrow(self) -> Worker:
        """Return an idle worker, or start one."""
        return self._idle.pop() if self._idle else await self._start()

    async def give_back(self, worker: Worker, *, clean: bool) -> None:
        """Take a worker back; one that is not clean is killed."""
        worker.served += 1
        if clean and worker.end is None and worker.served != self.episodes:
            self._idle.append(worker)
        else:
            await self._end(worker, clean=clean)

    async def close(self) -> None:
        """End every worker that is not borrowed, and leave the nursery."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(self._end(worker, clean=True) for worker in idle))
        if self._nursery is not None:
            nursery, self._nursery = self._nursery, None
            await nursery.leave()

    def counts(self) -> dict[str, int]:
        """Return workers started and killed, and processes that closed environments left behind."""
        return {"started": self.started, "killed": self.killed, "leaked": self.leaked}

    async def _end(self, worker: Worker, *, clean: bool) -> None:
        end = await (worker.close(self.limits.deadline) if clean else worker.kill())
        if clean and end.code == 0:
            self.leaked += end.strays
        else:
            self.killed += 1

    async def _start(self) -> Worker:
        """Have the nursery fork a worker, and have it make the environment."""
        worker = await self._fork()
        try:
            config = dict(self.config)
            self.about = await worker.call("make", self.limits.start_deadline, config=config)
        except BaseException:
            await worker.kill()
            self.killed += 1
            raise
        if not self.started and not self.about.get("counted", True):
            warnings.warn(
                f"Environment {self.name!r}: this machine does not let root change to another user "
                "in a worker, so workers.processes does not limit it.",
                stacklevel=2,
            )
        self.started += 1
        return worker

    async def _fork(self) -> Worker:
        async with self._opening:
            if self._broken is not None:  # waiting for it once is enough
                raise WorkerError(self._broken.status, str(self._broken), self._broken.raised)
            if self._nursery is None:
                within = self.limits.start_deadline
                try:
                    self._nursery = await enter(
                        self.python, self.entry_point, self.hash_seed, within
                    )
                except WorkerError as error:
                    self._broken = error
                    raise
            try:
                return self._nursery.fork(self._limits())
            except OSError as error:
                lost, self._nursery = self._nursery, None  # another one may have more luck
                await lost.leave()
                message = f"What starts workers of {self.name!r} is gone: {error}."
                raise WorkerError(Status.CRASHED, message) from error

    def _limits(self) -> dict[str, float]:
        limits = self.limits
        return {
            "memory_bytes": int(limits.memory_gib * 2**30),
            "cpu_seconds": limits.cpu_seconds,
            "processes": limits.processes,
            "processes_in_all": limits.count * (limits.processes + 2),
        }
