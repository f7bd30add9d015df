"""The process that forks workers: an interpreter that has imported an environment's module.

Importing may take many seconds, so pools of this process share a nursery where theirs would be the
same: of one interpreter, module, folder and environment. The last to leave it ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from attrs import define, field

from isentrope.episodes import Status
from isentrope.workers.worker import Worker, WorkerError, receive, send

SHIM = Path(__file__).with_name("shim.py")
SINGLE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
"""A fork does not take threads along."""


@define(eq=False)
class Nursery:
    """That process, and how many use it."""

    _process: subprocess.Popen[bytes]
    _channel: socket.socket
    users: int = field(default=1, init=False)

    def fork(self, limits: Mapping[str, float]) -> Worker:
        """Have it fork a worker; see `shim` for limits.

        Raises `OSError` where it is gone; then nobody is led to it any more.
        """
        control, far_control = socket.socketpair()
        data, far_data = socket.socketpair()
        with far_control, far_data:
            sockets = [far_control.fileno(), far_data.fileno()]
            try:
                socket.send_fds(self._channel, [json.dumps(limits).encode()], sockets)
            except OSError:
                with _guard:
                    _forget(self)
                raise
        return Worker(data, control)

    async def leave(self) -> None:
        """Use it no more."""
        with _guard:
            self.users -= 1
            if self.users:
                return
            if _held:
                _held[-1].append(self)
                return
            _forget(self)
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """End it; workers that are there stay."""
        self._channel.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_guard = threading.Lock()
_there: WeakValueDictionary[str, Nursery] = WeakValueDictionary()
"""By what they were started with; one whose users were never closed goes with those."""
_held: list[list[Nursery]] = []
"""For each `kept_warm` that is open, what nobody uses now."""


@contextmanager
def kept_warm() -> Iterator[None]:
    """Keep what is left meanwhile: the same will soon be wanted again."""
    with _guard:
        _held.append([])
    try:
        yield
    finally:
        with _guard:
            unused = [nursery for nursery in _held.pop() if not nursery.users]
            if _held:
                _held[-1].extend(unused)
                unused = []
            for nursery in unused:
                _forget(nursery)
        for nursery in dict.fromkeys(unused):
            nursery.end()


async def enter(python: str | None, entry_point: str, hash_seed: int, within: float) -> Nursery:
    """Return a nursery that has imported an entry point's module, to be left by the caller.

    python: its interpreter, None for this one. hash_seed: what strings hash by. within: seconds to
    start it, where it is not there.

    Raises `WorkerError` where it does not start, or the module does not import.
    """
    # For another interpreter without what is of this one.
    of_ours = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH") if python is not None else ()
    environment = {name: value for name, value in os.environ.items() if name not in of_ours}
    environment |= {**SINGLE, "PYTHONHASHSEED": str(hash_seed)}
    program = [python or sys.executable, str(SHIM)]
    about = {"entry_point": entry_point, "path": sys.path if python is None else None}
    key = json.dumps([program, about, environment, os.getcwd(), os.getpid()], sort_keys=True)
    with _guard:
        if (found := _there.get(key)) is not None:
            found.users += 1
            return found
    made = await _start(program, about, environment, within)
    with _guard:
        _there.setdefault(key, made)  # if another thread was faster, this one is not shared
    return made


async def _start(
    program: list[str], about: Mapping[str, object], environment: dict[str, str], within: float
) -> Nursery:
    own, far = socket.socketpair()
    with far:
        try:
            process = subprocess.Popen(  # noqa: S603  # an interpreter that a plugin names
                [*program, str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run alone
                env=environment,
            )
        except OSError as error:
            own.close()
            message = f"The interpreter {program[0]} does not start: {error}."
            raise WorkerError(Status.CRASHED, message) from error
    own.setblocking(False)
    try:
        async with asyncio.timeout(within):
            await send(own, about)
            answer = await receive(own)
    except BaseException as error:
        own.close()
        process.kill()
        process.wait()
        if not isinstance(error, (TimeoutError, ConnectionError, ValueError)):
            raise
        late = isinstance(error, TimeoutError)
        reason = f"within {within:g} s" if late else "at all"
        message = f"The module of {about['entry_point']} was not imported {reason}."
        raise WorkerError(Status.TIMEOUT if late else Status.CRASHED, message) from error
    own.setblocking(True)
    if "error" in answer:
        own.close()
        process.wait()
        raise WorkerError.of(answer)
    return Nursery(process, own)


def _forget(nursery: Nursery) -> None:
    for key, there in list(_there.items()):
        if there is nursery:
            del _there[key]
