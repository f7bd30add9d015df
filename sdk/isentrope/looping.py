"""Running an event loop of our own where one may be running already; torch's threads meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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
