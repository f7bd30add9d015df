"""Running an event loop of our own where one may be running already; torch's threads meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

T = TypeVar("T")


class Runner(Protocol):
    """An event loop that runs coroutines, one after the other: `asyncio.Runner`, say."""

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run it to its end, and return its result."""
        ...


class LoopThread:
    """An event loop in a thread of its own, which can be left to work."""

    def __enter__(self) -> Self:
        """Start the thread."""
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: self._serve(started), name="isentrope-loop")
        self._thread.daemon = True  # whoever leaves without us does not wait for it
        self._thread.start()
        self._loop = started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel what is left, and end the thread."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run it to its end, and return its result."""
        return self.result(self.start(coro))

    def start(self, coro: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin to run it, and return at once."""
        return asyncio.run_coroutine_threadsafe(coro, self._loop)

    def result(self, started: Future[T]) -> T:
        """Wait for it; it is cancelled where the waiting is interrupted."""
        try:
            return started.result()
        except BaseException:
            started.cancel()
            raise

    def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def serve() -> None:
            self._ended = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._ended.wait()

        asyncio.run(serve())  # which cancels what still runs


def off_loop(function: Callable[[], T]) -> T:
    """Call `function`, which runs an event loop: here, or where one is running, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    if not running:
        return function()
    with ThreadPoolExecutor(1, thread_name_prefix="isentrope") as pool:
        return pool.submit(function).result()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set how many threads a tensor operation of torch's may use, and set it back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
