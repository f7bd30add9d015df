"""Ranks: the processes of one run, as torchrun starts them; each holds a shard of the policy.

Every rank runs the same loop on the same episodes, and computes micro-batches of its own. Only the
first collects episodes and writes the run folder. The others wait for it at the rendezvous, not
inside a collective, which would time out.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from attrs import define, field
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from isentrope.errors import ConfigError, IsentropeError, OtherRankError, TrainingError
from isentrope.learner.network import choose_interface, reaching_all, this_host

T = TypeVar("T")
REST = "what was written is whole. Go on with `--resume`."
BEAT, PATIENCE = 1.0, 20.0
"""Seconds between rank 0's signs of life; seconds without one after which it is gone."""
TURN, MOMENTS = 0.02, 5.0
"""Seconds between two questions to the store; seconds that ranks may differ in meeting an error."""
LATE = 600.0
"""Seconds that ranks may differ in coming: one may read its libraries over a slow network."""
_BEAT = "beat"
_runs = itertools.count()


@define
class Ranks:
    """All processes of a run, as seen by one of them; by default, there is but one."""

    rank: int = 0
    size: int = 1
    _store: Any = field(default=None, repr=False)
    _calls: int = field(default=0, init=False)

    @property
    def first(self) -> bool:
        """Whether this is the one that collects, writes and speaks."""
        return self.rank == 0

    def by_first(self, function: Callable[[], T]) -> T:
        """Call `function` on the first rank only; return on all of them what it returned.

        Raises `OtherRankError` on the others where it raised.
        """
        if self.size == 1:
            return function()
        self._calls += 1
        key = str(self._calls)
        if not self.first:
            self._wait_for(key)
            if self._store.get(key) == b"failed":
                raise OtherRankError("Rank 0 failed, and says why.")
            return self._broadcast(None)  # type: ignore[no-any-return]  # the first one's T
        try:
            found = function()
        except BaseException:
            self._store.set(key, "failed")
            raise
        self._store.set(key, "done")
        return self._broadcast(found)  # type: ignore[no-any-return]  # itself

    def first_then_others(self, function: Callable[[], T]) -> T:
        """Call `function` on every rank, on the others after the first: it may fill a cache.

        Raises `OtherRankError` on the others where it raised on the first.
        """
        found: list[T] = []
        self.by_first(lambda: found.append(function()))
        return found[0] if found else function()

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def same(self, tensor: Tensor) -> None:
        """Give every rank's tensor the first one's values."""
        if self.size > 1:
            dist.broadcast(tensor, 0)

    def _wait_for(self, key: str) -> None:
        """Wait for what rank 0 sets, as long as it lives: under torchrun the store outlives it."""
        beat, changed = b"", time.monotonic()
        while not _there(self._store, key):
            time.sleep(TURN)
            if time.monotonic() - changed > BEAT:
                before, beat = beat, _read(self._store, _BEAT)
                if beat != before:
                    changed = time.monotonic()
                elif time.monotonic() - changed > PATIENCE:
                    raise _Rank0GoneError

    def _broadcast(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]


class _Rank0GoneError(OtherRankError):
    def __str__(self) -> str:
        return f"On rank {self.rank}: rank 0 is gone. If it did not say why, it was killed; {REST}"


def _there(store: Store, key: str) -> bool:
    """Say whether a key is there.

    Asked for now and then, not waited for: between two questions Python hears of signals.

    Raises `OtherRankError` where the store, which rank 0 keeps, is gone with it.
    """
    try:
        return bool(store.check([key]))
    except dist.DistNetworkError as error:
        raise _Rank0GoneError from error


def _launched() -> bool:
    """Whether there are ranks: what started this process says so."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if several and name not in os.environ:
            raise ConfigError(
                f"WORLD_SIZE is set, but {name} is not: start with torchrun, or unset WORLD_SIZE."
            )
    return several or "RANK" in os.environ


@contextmanager
def _said_once(store: Store, rank: int) -> Iterator[None]:
    """Turn an error that rank 0 has too, or that follows from another's, into one that only stops.

    Raises `TrainingError` where another rank is gone without a word.
    """
    try:
        yield
    except _Rank0GoneError as error:
        error.rank = rank
        raise
    except IsentropeError as error:
        if rank == 0:
            store.set("error", str(error))
            time.sleep(5 * TURN)  # the store is gone with this process: let the others look
            raise
        if isinstance(error, OtherRankError):
            raise
        store.set("failed", "")
        with suppress(_Rank0GoneError):
            if _soon(store, "error") == str(error):
                raise OtherRankError("Rank 0 says why.") from error
        error.rank = rank
        raise
    except BaseException as error:
        if not _lost_another(error):
            store.set("failed", "")
            raise
        if _soon(store, "failed") is not None or _there(store, "error"):
            raise OtherRankError("Another rank failed, and says why.") from error
        lost = TrainingError(
            f"Another rank is gone without a word: it was killed, or its machine was lost; {REST}"
        )
        if rank == 0:
            store.set("error", str(lost))
            time.sleep(5 * TURN)
        elif _soon(store, "error") is None:  # nor does rank 0 say a word
            lost.rank = rank
        raise lost from error


def _lost_another(error: BaseException) -> bool:
    """Say whether a collective failed because somebody was not there any more."""
    known = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in known)


def _soon(store: Store, key: str) -> str | None:
    """Return what a rank says within moments, or None."""
    for _ in range(int(MOMENTS / TURN)):
        if _there(store, key):
            return str(store.get(key).decode())
        time.sleep(TURN)
    return None


def _meet(store: Store, where: str, rank: int, size: int, word: str = "") -> list[str]:
    """Wait until every rank has come; return each one's word.

    Inside gloo one would wait half an hour for one that failed.

    Raises `OtherRankError` where one has failed, and `TrainingError` where one does not come.
    """
    store.set(f"{where}/{rank}", word)
    missing, until = list(range(size)), time.monotonic() + LATE
    while missing := [other for other in missing if not _there(store, f"{where}/{other}")]:
        if _there(store, "failed") or _there(store, "error"):
            raise OtherRankError("Another rank failed, and says why.")
        if time.monotonic() > until:
            late = ", ".join(map(str, missing))
            raise TrainingError(
                f"Of {size} ranks these have not come in {LATE / 60:g} minutes: {late}. Look at "
                "what they print, and whether as many were started."
            )
        time.sleep(TURN)
    return [str(store.get(f"{where}/{other}").decode()) for other in range(size)]


@contextmanager
def joined(*, sharded: bool = False) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, by its environment variables; leave them at the end.

    sharded: the policy will be sharded, which needs a process group even where there is one rank.
    """
    launched = _launched()
    if not launched and not sharded:
        yield Ranks()
        return
    if dist.is_initialized():
        raise ConfigError("There is a process group already: leave it, or start with torchrun.")
    cuda = torch.cuda.is_available()
    if cuda:
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise ConfigError(f"There are {there} GPUs for more ranks than that: start as many.")
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    store: Store
    if launched:
        store, rank, size = next(rendezvous("env://"))
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]  # not listed
        rank, size = 0, 1
    store = PrefixStore(f"isentrope/{next(_runs)}", store)
    with _said_once(store, rank):
        choose_interface(hosts=len(set(_meet(store, "hosts", rank, size, this_host()))))
        _meet(store, "ready", rank, size)
        with reaching_all():
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    calls = PrefixStore("calls", store)
    try:
        with _said_once(store, rank), _beating(calls) if rank == 0 else nullcontext():
            yield Ranks(rank, size, calls)
    finally:
        dist.destroy_process_group()


def _read(store: Store, key: str) -> bytes:
    return bytes(store.get(key)) if _there(store, key) else b""


@contextmanager
def _beating(store: Store) -> Iterator[None]:
    """Give signs of life, whatever the main thread does."""
    over = threading.Event()
    store.set(_BEAT, "0")

    def beat() -> None:
        for number in itertools.count(1):
            if over.wait(BEAT):
                return
            store.set(_BEAT, str(number))

    thread = threading.Thread(target=beat, daemon=True, name="isentrope-beat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
