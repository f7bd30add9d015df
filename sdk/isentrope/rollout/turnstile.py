"""Who may run, and who may speak: the order that many episodes keep among themselves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field


@define
class Turnstile:
    """Lets so many episodes run at a time, and their turns through to the engine.

    To an engine that samples together what is pending, turns go together too: when no environment
    is at work any more, and in the episodes' order. What is sampled together, and so the last bits
    of a log-prob, then depends on no clock.
    """

    limit: int | None
    """Episodes at a time; None: all."""
    together: bool
    _running: int = field(default=0, init=False)
    _busy: int = field(default=0, init=False)
    """Running episodes that do not wait for the engine."""
    _queue: deque[asyncio.Future[None]] = field(factory=deque, init=False)
    _ready: dict[int, asyncio.Future[None]] = field(factory=dict, init=False)

    @asynccontextmanager
    async def episode(self) -> AsyncIterator[None]:
        """Run an episode, as soon as there is room."""
        if self.limit is not None and self._running >= self.limit:
            await self._queued()
        else:
            self._running += 1
            self._busy += 1
        try:
            yield
        finally:
            self._leave()

    @asynccontextmanager
    async def turn(self, place: int) -> AsyncIterator[None]:
        """Have the engine sample for the episode of that place."""
        self._busy -= 1
        try:
            if self.together:
                await self._let_through_with(place)
            yield
        finally:
            self._busy += 1

    async def _let_through_with(self, place: int) -> None:
        self._ready[place] = asyncio.get_running_loop().create_future()
        self._let_through_soon()
        try:
            await self._ready[place]
        finally:
            del self._ready[place]

    async def _queued(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it had just been let in
                self._leave()
            raise

    def _leave(self) -> None:
        """Make room; who is let in is busy at once, so that no turn goes without it."""
        while self._queue:
            if not (place := self._queue.popleft()).done():
                place.set_result(None)
                return
        self._running -= 1
        self._busy -= 1
        self._let_through_soon()

    def _let_through_soon(self) -> None:
        """Not now: the last one to be ready is not the first to speak."""
        if self._busy == 0 and self._ready:
            asyncio.get_running_loop().call_soon(self._let_through)

    def _let_through(self) -> None:
        if self._busy == 0:
            for place in sorted(self._ready):
                if not self._ready[place].done():
                    self._ready[place].set_result(None)
