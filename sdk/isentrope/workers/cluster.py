"""Workers on the machines of a Ray cluster: an actor on each holds a pool like the one here.

So an environment has the same deadlines, limits and keepers wherever it runs, and a machine imports
it once for all of its workers. Ray brings calls to the actors, says when one is lost, and ends them
when the run ends, however that ends; their workers then go as they do here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from isentrope.episodes import Status
from isentrope.errors import ConfigError
from isentrope.workers.pool import Pool, WorkerPool
from isentrope.workers.worker import Worker, WorkerError

GRACE = 30.0
"""Seconds by which an actor's answer may be later than the deadline that it keeps by itself."""
Answer = dict[str, Any]
"""``{"ok": ...}`` or ``{"status": ..., "text": ...}``, and the ``"counts"`` of a pool: a failure is
data, since an exception would come back as one of Ray's own."""


class Outpost:
    """The pool of one machine, as a Ray actor; the run numbers its workers.

    path: where the run imports from; what of it is there, too, the environment is imported from.
    """

    def __init__(self, path: list[str], **pool: Any) -> None:
        sys.path += [folder for folder in path if folder not in sys.path and Path(folder).is_dir()]
        self._pool = WorkerPool(**pool)
        self._lent: dict[int, Worker] = {}
        self._calls: dict[int, asyncio.Task[Any]] = {}

    async def borrow(self, number: int) -> Answer:
        """Lend a worker by this number; answer what its environment says of itself."""
        return await self._answer(number, self._borrow(number))

    async def call(
        self, number: int, name: str, deadline: float, arguments: dict[str, Any]
    ) -> Answer:
        """Answer what a worker answers."""
        return await self._answer(number, self._lent[number].call(name, deadline, **arguments))

    async def give_back(self, number: int, clean: bool) -> Answer:
        """Take a worker back, out of the midst of a call or of its start if need be."""
        if (call := self._calls.get(number)) is not None:
            call.cancel()  # which kills the worker
            await asyncio.wait([call])
        return await self._answer(number, self._give_back(number, clean))

    async def close(self) -> Answer:
        """End all that are not lent."""
        return await self._answer(-1, self._pool.close())

    async def _borrow(self, number: int) -> dict[str, Any]:
        self._lent[number] = await self._pool.borrow()
        return self._pool.about

    async def _give_back(self, number: int, clean: bool) -> None:
        if (worker := self._lent.pop(number, None)) is not None:
            await self._pool.give_back(worker, clean=clean)

    async def _answer(self, number: int, action: Awaitable[Any]) -> Answer:
        call = self._calls[number] = asyncio.ensure_future(action)
        try:
            answer: Answer = {"ok": await call}
        except WorkerError as error:
            answer = {"status": error.status.value, "text": str(error)}
        except asyncio.CancelledError:
            answer = {"status": Status.CANCELLED.value, "text": "It was given back."}
        finally:
            self._calls.pop(number, None)
        return {**answer, "counts": self._pool.counts()}


@define(eq=False)
class Machine:
    """An outpost, as the run sees it."""

    _actor: Any
    lent: int = 0
    counts: dict[str, int] = field(factory=dict)
    """What its pool had counted by its last answer."""
    lost: bool = False

    async def ask(self, name: str, *arguments: Any, within: float) -> Any:
        """Return what it answers.

        Raises `WorkerError` for a failure of a worker, or of the machine, which then is lost.
        """
        from ray.exceptions import RayError

        reference = getattr(self._actor, name).remote(*arguments)
        try:
            async with asyncio.timeout(within + GRACE):
                answer = await asyncio.wrap_future(reference.future())
        except (TimeoutError, RayError) as error:
            self.end()
            silent = f"no answer to {name}() within {within + GRACE:g} s"
            reason = silent if isinstance(error, TimeoutError) else error
            raise WorkerError(Status.CRASHED, f"Its machine was lost: {reason}") from None
        self.counts = answer["counts"]
        if "ok" in answer:
            return answer["ok"]
        raise WorkerError(Status(answer["status"]), answer["text"])

    def end(self) -> None:
        """Have Ray end the actor; its workers end with it."""
        import ray

        self.lost = True
        ray.kill(self._actor)


@define(eq=False)
class FarWorker:
    """A worker of some machine."""

    machine: Machine
    number: int

    async def call(self, name: str, deadline: float, **arguments: Any) -> Any:
        """Return what its environment answers; see `Worker.call`."""
        call = (self.number, name, deadline, arguments)
        return await self.machine.ask("call", *call, within=deadline)


@define(eq=False)
class RayPool(Pool):
    """Workers on the machines of a Ray cluster, spread evenly; a machine that is lost is replaced.

    Raises `ConfigError` where Ray is not installed, or its cluster cannot be reached.
    """

    _machines: list[Machine] = field(factory=list, init=False)
    _past: Counter[str] = field(factory=Counter, init=False)
    """What machines had counted that are no more."""
    _numbers: Iterator[int] = field(factory=itertools.count, init=False)

    def __attrs_post_init__(self) -> None:
        """Join the cluster."""
        _join(str(self.limits.ray))

    async def borrow(self) -> FarWorker:
        """Return a worker of the machine that lends fewest."""
        worker = FarWorker(self._least_busy(), next(self._numbers))
        worker.machine.lent += 1
        within = 2 * self.limits.start_deadline  # the nursery's start, and the worker's
        try:
            self.about = await worker.machine.ask("borrow", worker.number, within=within)
        except BaseException:
            await asyncio.shield(self._release(worker, clean=False))
            raise
        return worker

    async def give_back(self, worker: FarWorker, *, clean: bool) -> None:
        """Take a worker back; one that is not clean is killed."""
        await self._release(worker, clean=clean)
        if worker.machine.lost:
            self._past["killed"] += 1

    async def close(self) -> None:
        """End what is not lent, and every machine's actor."""
        await asyncio.gather(*(self._tell(machine, "close") for machine in self._machines))
        while self._machines:
            self._drop(self._machines[0])

    def counts(self) -> dict[str, int]:
        """Return workers started and killed, and processes that closed environments left behind."""
        total = self._past.copy()
        for machine in self._machines:
            total.update(machine.counts)
        return {name: total[name] for name in ("started", "killed", "leaked")}

    async def _release(self, worker: FarWorker, *, clean: bool) -> None:
        worker.machine.lent -= 1
        if not worker.machine.lost:
            await self._tell(worker.machine, "give_back", worker.number, clean)

    async def _tell(self, machine: Machine, name: str, *arguments: Any) -> None:
        """Ask for what has no answer; a machine that is lost by then has ended its workers."""
        try:
            await machine.ask(name, *arguments, within=2 * self.limits.deadline)
        except WorkerError:
            assert machine.lost

    def _least_busy(self) -> Machine:
        import ray

        for machine in [m for m in self._machines if m.lost]:
            self._drop(machine)
        there = sum(node["Alive"] for node in ray.nodes())
        if len(self._machines) < min(there, self.limits.count):
            # It reserves nothing: workers mostly wait for the policy.
            actor = ray.remote(Outpost).options(num_cpus=0, scheduling_strategy="SPREAD")
            self._machines.append(
                Machine(
                    actor.remote(
                        sys.path,
                        name=self.name,
                        entry_point=self.entry_point,
                        config=dict(self.config),
                        limits=self.limits,
                        python=self.python,
                        episodes=self.episodes,
                    )
                )
            )
        return min(self._machines, key=lambda machine: machine.lent)

    def _drop(self, machine: Machine) -> None:
        self._machines.remove(machine)
        self._past.update(machine.counts)
        if not machine.lost:
            machine.end()


def _join(address: str) -> None:
    """Connect this program to a Ray cluster, unless it is connected."""
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "rollout.workers.ray needs Ray, which is not installed: pip install 'isentrope[ray]', "
            "or leave rollout.workers.ray out to run workers on this machine."
        ) from None
    if ray.is_initialized():
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray ends the whole program where nobody answers
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray's own are of many kinds
        raise ConfigError(
            f"rollout.workers.ray: there is no Ray cluster at {address!r} ({error}). Expected "
            "'auto', 'host:port', or 'local' for one on this machine."
        ) from error
