"""The run's side of its trackers: each is started in a process of its own, and never waited for.

Nothing that a tracker does reaches the run: it may raise, print, exit, crash, hang, draw random
numbers or change what is global to a process. One that failed is warned of once and left out.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from isentrope.components import id_of
from isentrope.config import TrainConfig
from isentrope.errors import ConfigError, within
from isentrope.structuring import unstructure
from isentrope.tracker_host import file_stem, told_of
from isentrope.trackers import TrackerConfig

PATIENCE = 60.0
"""Seconds that trackers have after the run's end; then they are killed."""
_MARGIN = 5.0
_START = "import sys; sys.path[:] = {path!r}; from isentrope.tracker_host import main; main()"


def check_trackers(trackers: Sequence[TrackerConfig]) -> None:
    """Raise `ConfigError` where a tracker cannot work."""
    for tracker in trackers:
        cls = type(tracker)
        with within("trackers"):
            if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
                raise ConfigError(
                    f"The tracker {cls.__qualname__} runs in a process of its own, which must be "
                    "able to import it: move it into a module, or use on_iteration."
                )
            check = getattr(tracker, "check", None)
            if check is not None:
                check()


@define
class Tracking:
    """A run's trackers; a context manager, at whose end they finish."""

    folder: Path
    """The run's."""
    config: TrainConfig
    trackers: Sequence[TrackerConfig]
    """Of the first rank; none on the others."""
    failed: int = field(default=0, init=False)
    _at_work: list[_Process] = field(factory=list, init=False)
    _left_out: list[_Process] = field(factory=list, init=False)

    def start(self, iteration: int) -> None:
        """Start them; the run begins, or goes on, with `iteration`."""
        if not self.trackers:
            return
        config = unstructure(self.config)
        for tracker in self.trackers:
            self._at_work.append(_Process(self.folder, tracker, config, iteration))

    def metrics(self) -> dict[str, int]:
        """Count those that have failed so far; warn of each, once."""
        for process in [p for p in self._at_work if p.failure() is not None]:
            self._leave_out(process)
        return {"trackers/failed": self.failed} if self.trackers else {}

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Tell them of an iteration, without waiting for them."""
        for process in self._at_work:
            process.tell({"metrics": dict(metrics)})

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        deadline = time.monotonic() + PATIENCE + _MARGIN
        for process in self._at_work:
            process.tell({"end": {"failed": kind is not None}})
        for process in list(self._at_work):
            process.finish(deadline)
            if process.failure() is not None:
                self._leave_out(process)
        for process in self._left_out:  # no process outlives the run
            process.finish(deadline)

    def _leave_out(self, process: _Process) -> None:
        self._at_work.remove(process)
        self._left_out.append(process)
        self.failed += 1
        process.abandon()
        warnings.warn(
            f"The tracker {process.id!r} is left out from now on, with {process.known} iterations "
            f"tracked: {process.failure()} The run is none the worse; {process.log} has more.",
            stacklevel=3,
        )


class _Process:
    """One tracker's process, as the run sees it: a pipe that is never waited for."""

    def __init__(
        self, run: Path, tracker: TrackerConfig, config: Mapping[str, Any], iteration: int
    ) -> None:
        self.id = id_of(tracker)
        place = run / "trackers" / file_stem(self.id)
        self.log = place.with_suffix(".log")
        self._told = place.with_suffix(".json")
        self._failure: str | None = None
        self._waiting, self._said = b"", b""
        self._process: subprocess.Popen[bytes] | None = None
        cls = type(tracker)
        try:
            place.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603  # this interpreter
                    [sys.executable, "-P", "-c", _START.format(path=sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the run
                )
        except OSError as error:
            self._failure = f"it cannot be started ({error})."
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # asked for above
            os.set_blocking(pipe.fileno(), False)
        about = {
            "entry_point": f"{cls.__module__}:{cls.__qualname__}",
            "options": {k: v for k, v in unstructure(tracker).items() if k != "id"},
            "run": {"name": run.resolve().name, "folder": str(place.resolve()), "config": config},
            "iteration": iteration,
            "patience": PATIENCE,
        }
        self.tell(about)

    @property
    def known(self) -> int:
        """How many iterations it has."""
        return told_of(self._told)

    def failure(self) -> str | None:
        """Say what went wrong, in a sentence; None: nothing that is known."""
        if self._failure is None and self._process is not None:
            ended = self._process.poll()  # before what it said is read: it may say it just then
            self._read()
            if self._failure is None and ended:
                self._failure = f"its process ended with status {ended}."
        return self._failure

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with suppress(BlockingIOError):
            while part := os.read(self._process.stdout.fileno(), 1 << 16):
                self._said += part
        if self._said.endswith(b"\n"):
            self._failure = json.loads(self._said)["failed"]

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message, or keep it until there is room in the pipe."""
        self._waiting += json.dumps(message, default=str).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._stdin, self._waiting) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._waiting = b""

    @property
    def _stdin(self) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def finish(self, deadline: float) -> None:
        """Send what is waiting, and wait for the end; kill what has not ended by then."""
        if self._process is None:
            return
        while self._waiting and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._stdin], [], left)
            self._send()
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            killed = self._process.wait()
        else:
            killed = self._process.returncode == -signal.SIGALRM  # by its own clock
        if killed:
            self._failure = f"it had not finished {PATIENCE:g} s after the run's end."
        self.failure()  # reads what it said last
        self.abandon()

    def abandon(self) -> None:
        """Let go of its pipes: it then ends by itself."""
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.stdin = self._process.stdout = None
        self._waiting = b""
