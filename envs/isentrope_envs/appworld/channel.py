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
        self._socket, self._found = end, bytearray()

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
        size = 4
        while len(self._found) < size:
            self._socket.settimeout(_left(until))
            part = self._socket.recv(1 << 16)
            if not part:
                raise ConnectionResetError("the other end is closed")
            self._found += part  # and stays there if somebody interrupts
            if len(self._found) >= 4:
                size = 4 + struct.unpack_from(">I", self._found)[0]
                if size > LARGEST:
                    raise ValueError(f"a frame of {size} bytes")
        text = bytes(self._found[4:size])
        del self._found[:size]
        message = json.loads(text)
        if not isinstance(message, dict):
            raise ValueError("no object")
        return message

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _left(until: float | None) -> float | None:
    if until is None:
        return None
    if (left := until - now()) <= 0:
        raise TimeoutError
    return left
