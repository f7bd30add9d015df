"""The workers of one environment: a nursery that forks them, and which of them are free."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field

from isentrope.episodes import Status
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.worker import Worker, WorkerError, receive, send

SHIM = Path(__file__).with_name("shim.py")
SINGLE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
"""A fork does not take threads along."""


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
    _nursery: tuple[subprocess.Popen[bytes], socket.socket] | None = field(default=None, init=False)
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
        """End every worker that is not borrowed, and the nursery."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(self._end(worker, clean=True) for worker in idle))
        if self._nursery is not None:
            process, channel = self._nursery
            self._nursery = None
            channel.close()
            await asyncio.to_thread(_end_nursery, process)

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
            self.about = await worker.call("make", self.limits.start_deadline)
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
                raise WorkerError(self._broken.status, str(self._broken))
            if self._nursery is None:
                try:
                    self._nursery = await self._open()
                except WorkerError as error:
                    self._broken = error
                    raise
            _, channel = self._nursery
            control, far_control = socket.socketpair()
            data, far_data = socket.socketpair()
            with far_control, far_data:
                try:
                    socket.send_fds(channel, [b"."], [far_control.fileno(), far_data.fileno()])
                except OSError as error:
                    self._nursery = None  # another one may have more luck
                    message = f"What starts workers of {self.name!r} is gone: {error}."
                    raise WorkerError(Status.CRASHED, message) from error
            return Worker(data, control)

    async def _open(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start an interpreter that has imported the environment's module."""
        own, far = socket.socketpair()
        with far:
            try:
                process = subprocess.Popen(  # noqa: S603  # an interpreter that a plugin names
                    [self.python or sys.executable, str(SHIM), str(far.fileno())],
                    pass_fds=[far.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the run alone
                    env={**self._environment(), **SINGLE, "PYTHONHASHSEED": str(self.hash_seed)},
                )
            except OSError as error:
                own.close()
                message = f"The interpreter of {self.name!r} does not start: {error}."
                raise WorkerError(Status.CRASHED, message) from error
        own.setblocking(False)
        try:
            async with asyncio.timeout(self.limits.start_deadline):
                await send(own, self._about())
                answer = await receive(own)
        except BaseException as error:
            own.close()
            process.kill()
            process.wait()
            if not isinstance(error, (TimeoutError, ConnectionError, ValueError)):
                raise
            late = isinstance(error, TimeoutError)
            reason = f"within {self.limits.start_deadline:g} s" if late else "at all"
            message = f"The module of {self.name!r} ({self.entry_point}) was not imported {reason}."
            raise WorkerError(Status.TIMEOUT if late else Status.CRASHED, message) from error
        own.setblocking(True)
        if "error" in answer:
            own.close()
            process.wait()
            raise WorkerError(Status.ENV_ERROR, str(answer["text"]))
        return process, own

    def _environment(self) -> dict[str, str]:
        """Return the run's environment; for another interpreter without what is of this one."""
        of_ours = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH") if self.python is not None else ()
        return {name: value for name, value in os.environ.items() if name not in of_ours}

    def _about(self) -> dict[str, Any]:
        limits = self.limits
        return {
            "entry_point": self.entry_point,
            "config": dict(self.config),
            "path": sys.path if self.python is None else None,
            "limits": {
                "memory_bytes": int(limits.memory_gib * 2**30),
                "cpu_seconds": limits.cpu_seconds,
                "processes": limits.processes,
                "processes_in_all": limits.count * (limits.processes + 2),
            },
        }


def _end_nursery(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
