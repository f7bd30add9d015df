"""One worker, as the run sees it: calls with a deadline, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field, frozen

from isentrope.episodes import Status
from isentrope.errors import IsentropeError

LARGEST = 1 << 26
"""Bytes of an answer; a larger one is refused."""
PATIENCE = 6.0
"""Seconds for a keeper to report; it goes on killing for a little less."""


@frozen
class Raised:
    """An exception in a worker."""

    names: tuple[str, ...]
    """Of its class, and of that one's bases."""
    said: str
    options: tuple[str, ...] = ()
    """Of what could not be made: the names of what it takes."""


class WorkerError(IsentropeError):
    """An environment in a worker failed; `status` says how, the message holds its traceback.

    raised: what it raised, if that is how.
    """

    def __init__(self, status: Status, message: str, raised: Raised | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.raised = raised

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> WorkerError:
        """Return the error that a worker or a nursery described."""
        names, options = tuple(answer["error"]), tuple(answer.get("options", ()))
        raised = Raised(names, str(answer.get("said", "")), options)
        return cls(_status(names), str(answer.get("text", "")), raised)


@frozen
class End:
    """How a worker ended."""

    code: int | None
    """Its exit code, or less than 0: the signal. None: its keeper is gone too."""
    strays: int = 0
    """Processes that were left of it, and were killed."""
    output: str = ""
    """The end of what it printed."""

    def __str__(self) -> str:
        if self.code is None:
            how = "Its process and its keeper are gone"
        elif self.code < 0:
            known = {s.value: s.name for s in signal.Signals}
            how = f"Its process was ended by {known.get(-self.code, f'signal {-self.code}')}"
        else:
            how = f"Its process left with exit code {self.code}"
        return f"{how}.\n{self.output}".rstrip()


@define(eq=False)
class Worker:
    """A process with one environment, and its keeper.

    Calls are made one at a time, in any event loop.
    """

    _data: socket.socket
    """To the environment."""
    _control: socket.socket
    """To its keeper; closing it, at the latest when this process ends, kills the worker."""
    end: End | None = field(default=None, init=False)
    """Set when it has ended."""
    served: int = field(default=0, init=False)
    """How many episodes it had."""

    def __attrs_post_init__(self) -> None:
        """Leave waiting to the event loop."""
        for channel in (self._data, self._control):
            channel.setblocking(False)

    async def call(self, name: str, deadline: float, **arguments: Any) -> Any:
        """Return what the environment answers.

        Raises `WorkerError` where it raises, where it does not answer within `deadline` seconds,
        and where its process ends; in the two last cases it is killed, and can be called no more.
        """
        try:
            async with asyncio.timeout(deadline):
                await send(self._data, {"call": name, **arguments})
                answer = await receive(self._data)
                if not ("ok" in answer or isinstance(answer.get("error"), list)):
                    raise ValueError(f"not an answer: {answer!r}")
        except TimeoutError:
            end = await self.kill()
            raise WorkerError(
                Status.TIMEOUT,
                f"No answer to {name}() within {deadline:g} s; killed.\n{end.output}".rstrip(),
            ) from None
        except (ConnectionError, ValueError, RecursionError):  # gone, or that is no answer
            end = await self.kill()
            raise WorkerError(_status_of(end), f"It died in {name}(). {end}") from None
        except asyncio.CancelledError:
            await asyncio.shield(self.kill())
            raise
        if "error" in answer:
            raise WorkerError.of(answer)
        return answer["ok"]

    async def kill(self) -> End:
        """End the process and everything that came from it, if it has not ended; say how."""
        if self.end is None:
            with suppress(OSError):  # the keeper is gone already
                self._control.shutdown(socket.SHUT_WR)
            self.end = await self._report()
        return self.end

    async def close(self, deadline: float) -> End:
        """Let the environment close itself, within a deadline, and end the process."""
        if self.end is None:
            with suppress(WorkerError):  # the episode is over, and what is left of it is killed
                await self.call("close", deadline)
                self.end = await self._report()
        return await self.kill()

    async def _report(self) -> End:
        """Return what the keeper says, once all is gone."""
        try:
            async with asyncio.timeout(PATIENCE):
                return End(**await receive(self._control))
        except (TimeoutError, OSError, ValueError):
            return End(None)
        finally:
            self._control.close()
            self._data.close()


async def send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one frame; see `shim`."""
    text = json.dumps(message).encode()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(channel, struct.pack(">I", len(text)) + text)


async def receive(channel: socket.socket) -> dict[str, Any]:
    """Receive one frame.

    Raises `ConnectionError` at the end, and `ValueError` where it is not one of ours.
    """
    loop = asyncio.get_running_loop()
    found, size = bytearray(), 4  # one frame at most is on its way, mostly whole
    while len(found) < size:
        part = await loop.sock_recv(channel, 1 << 16)
        if not part:
            raise ConnectionResetError("the other end is closed")
        found += part
        if len(found) >= 4:
            (length,) = struct.unpack_from(">I", found)
            if length > LARGEST:
                raise ValueError(f"an answer of {length} bytes")
            size = 4 + length
    answer = json.loads(found[4:size])
    if not isinstance(answer, dict):
        raise ValueError(f"not an answer: {answer!r}")
    return answer


def _status(names: Sequence[str]) -> Status:
    """Return the status for an error, by the names of its classes."""
    if "GraderError" in names:
        return Status.GRADER_ERROR
    return Status.OUT_OF_MEMORY if "MemoryError" in names else Status.ENV_ERROR


def _status_of(end: End) -> Status:
    return Status.TIMEOUT if end.code == -signal.SIGXCPU else Status.CRASHED
