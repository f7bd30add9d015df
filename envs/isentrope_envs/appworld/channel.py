"""Frames of JSON between a world and the code of a policy, which may send anything, or nothing.

Standard library only. Deadlines are real time: a world's clock stands still.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import Any

leave = os._exit
"""The real one: while a policy's code runs, the engine has it do nothing."""
LARGEST = 1 << 22
"""Bytes of a frame; a larger one is refused."""


def now() -> float:
    """Return seconds of real time: this clock alone the engine does not stop."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Channel:
    """One end of a pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return both ends."""
        one, other = socket.socketpair()
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any], until: float | None = None) -> None:
        """Send a frame, by then; raises `OSError`."""
        text = json.dumps(message).encode()
        self._socket.settimeout(_left(until))
        self._socket.sendall(struct.pack(">I", len(text)) + text)

    def receive(self, until: float | None = None) -> dict[str, Any]:
        """Return the next frame, which comes by then.

        Raises `TimeoutError`, another `OSError` where the other end is gone, and `ValueError` where
        it is no frame.
        """
        (size,) = struct.unpack(">I", self._exactly(4, until))
        if size > LARGEST:
            raise ValueError(f"a frame of {size} bytes")
        message = json.loads(self._exactly(size, until))
        if not isinstance(message, dict):
            raise ValueError("no object")
        return message

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _exactly(self, size: int, until: float | None) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._socket.settimeout(_left(until))
            part = self._socket.recv(min(size - len(found), 1 << 16))
            if not part:
                raise ConnectionResetError("the other end is closed")
            found += part
        return bytes(found)


def _left(until: float | None) -> float | None:
    if until is None:
        return None
    if (left := until - now()) <= 0:
        raise TimeoutError
    return left
