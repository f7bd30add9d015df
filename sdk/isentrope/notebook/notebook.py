"""A notebook: a confined process that runs cells, and is killed where one does not come back."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from typing import Any

from attrs import define, field, frozen

from isentrope.errors import ConfigError
from isentrope.validation import flag, real, whole
from isentrope.workers.shim import send

START = 30.0
"""Seconds for a notebook to start."""
GONE = 5.0
"""Seconds to wait for the end of what was killed."""
LARGEST = 1 << 22
"""Bytes of a reply."""
PROTECTIONS = ("files", "network")
"""Without these nothing that a policy wrote is run, unless `NotebookLimits.unprotected`."""


@frozen(kw_only=True)
class NotebookLimits:
    """What a notebook's cells may use."""

    seconds: float = field(default=10.0, validator=real(above=0))
    """Wall time of a turn's cells; then the notebook is killed, and begins again empty. Less than
    ``rollout.workers.deadline``, or that comes first."""
    memory_mib: int = field(default=1024, validator=whole(64))
    cpu_seconds: int = field(default=120, validator=whole(1))
    """Processor time of a notebook."""
    processes: int = field(default=16, validator=whole(1))
    output: int = field(default=4000, validator=whole(100))
    """Characters of a cell's output that are kept: the first and the last half."""
    packages: bool = field(default=False, validator=flag())
    """Let cells import what is installed, and so read it: your environment's own source, too."""
    unprotected: bool = field(default=False, validator=flag())
    """Run even where files and network cannot be shut off: an old kernel, or no Linux."""


@frozen
class Cell:
    """What became of a cell."""

    output: str
    ran: bool
    """It came to its end without an exception."""
    answers: tuple[Any, ...] = ()
    """What it submitted, if it did."""
    died: str = ""
    """How the notebook ended, if it did."""


@define
class Notebook:
    """Python, cell by cell, in a process of its own.

    It reads the standard library and a folder of its own, which alone it writes; it has no network,
    a bare environment, and the limits' memory, processor time and processes.
    """

    limits: NotebookLimits = field(factory=NotebookLimits)
    _folder: str | None = field(default=None, init=False)
    _process: int | None = field(default=None, init=False)
    _channel: socket.socket | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        """Whether there is a process, with what earlier cells left in it."""
        return self._channel is not None

    def run(self, code: str, seconds: float | None = None) -> Cell:
        """Run a cell; a notebook that is not there is started.

        seconds: that it may take, if fewer than the limits'.

        Raises `ConfigError` where nothing shuts it in, and `OSError` where it does not start: both
        are the machine's doing, and not the cell's.
        """
        if self._channel is None:
            self._start()
        assert self._channel is not None
        allowed = self.limits.seconds if seconds is None else min(seconds, self.limits.seconds)
        end = time.monotonic() + allowed
        try:
            self._channel.settimeout(allowed)
            send(self._channel, {"code": code})
            return self._cell(_receive(self._channel, end))
        except TimeoutError:
            self.close()
            how = f"The cell took longer than {self.limits.seconds:g} s."
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self.close()
            how = "The cell ended the notebook."
        return Cell("", ran=False, died=how)

    def close(self) -> None:
        """End it, and everything that it started; what it knew is gone."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            _kill(self._process)
            self._process = None
        if self._folder is not None:
            folder, self._folder = self._folder, None
            with suppress(OSError, RecursionError):  # whatever a cell has made of it
                shutil.rmtree(folder, ignore_errors=True)

    def _cell(self, reply: dict[str, Any]) -> Cell:
        """Read what a cell's process says; a cell may have said it itself."""
        output, answers = reply["output"], reply["submitted"]
        if not isinstance(output, str) or not isinstance(answers, list):
            raise ValueError("no reply of ours")
        return Cell(output[: 2 * self.limits.output], bool(reply["ran"]), tuple(answers[:1]))

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="isentrope-notebook-")
        self._channel, far = socket.socketpair()
        try:
            with far:
                _nursery(far)
            self._channel.settimeout(START)
            send(self._channel, self._about())
            reply = _receive(self._channel, time.monotonic() + START)
            held, self._process = reply["held"], reply["process"]
        except (OSError, ValueError) as error:
            self.close()
            raise OSError(f"A notebook did not start: {error}.") from error
        lacking = [name for name in PROTECTIONS if not held[name]]
        if lacking and not self.limits.unprotected:
            self.close()
            raise ConfigError(
                f"This machine cannot shut {' and '.join(lacking)} off from a notebook (Landlock "
                "needs Linux 5.13): set its limits' unprotected = true to run cells all the same."
            )

    def _about(self) -> dict[str, Any]:
        limits = self.limits
        packages = [path for path in sys.path if path and os.path.isdir(path)]
        system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"]
        own = [*_standard_library(), *(packages if limits.packages else ())]
        return {
            "folder": self._folder,
            "output": limits.output,
            "read": [*system, *own, "/dev/urandom", "/etc/localtime"],
            "limits": {
                "memory_bytes": limits.memory_mib * 2**20,
                "cpu_seconds": limits.cpu_seconds,
                "file_bytes": 64 * 2**20,
                "processes": limits.processes,
            },
        }


_nurseries: dict[int, tuple[socket.socket, subprocess.Popen[bytes]]] = {}
"""By process: what forks its notebooks. It ends when its socket does, with this process."""


def end_nursery() -> None:
    """End what forks this process's notebooks; the next notebook starts it again."""
    if (found := _nurseries.pop(os.getpid(), None)) is not None:
        control, process = found
        control.close()
        try:
            process.wait(GONE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _kill(group: int) -> None:
    """Kill a notebook's processes, and wait until its first is gone: others may be counted."""
    try:
        handle = os.pidfd_open(group)
    except (OSError, AttributeError):  # it is gone already, or this is no Linux
        handle = None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    if handle is not None:
        gone = select.poll()
        gone.register(handle, select.POLLIN)
        gone.poll(1000 * GONE)
        os.close(handle)


def _nursery(channel: socket.socket) -> None:
    """Have a notebook be forked that has this end of a socket."""
    for fresh in (False, True):
        control = _control(fresh=fresh)
        try:
            socket.send_fds(control, [b"."], [channel.fileno()])
        except OSError:  # a cell may have killed it, where nothing keeps it from that
            if fresh:
                raise
        else:
            return


def _control(*, fresh: bool) -> socket.socket:
    own = os.getpid()
    if fresh or own not in _nurseries:
        _nurseries.clear()  # a parent's, if this process was forked
        control, far = socket.socketpair()
        with far:
            process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [sys.executable, "-I", "-m", "isentrope.notebook.runner", str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
            )
        _nurseries[own] = control, process
    return _nurseries[own][0]


def _standard_library() -> list[str]:
    """Return its files and folders, without the packages that are installed among them."""
    places = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return [
        entry.path
        for place in places
        for entry in os.scandir(place)
        if entry.name not in ("site-packages", "dist-packages")
    ]


def _receive(channel: socket.socket, end: float) -> Any:
    """Return a reply that is there before `end`; a cell may have written it."""
    found, size = bytearray(), 4
    while len(found) < size:
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        channel.settimeout(left)
        part = channel.recv(1 << 16)
        if not part:
            raise ConnectionResetError("it ended")
        found += part
        if len(found) >= 4:
            size = 4 + struct.unpack_from(">I", found)[0]
            if size > LARGEST:
                raise ValueError(f"a reply of {size} bytes")
    return json.loads(found[4:size])
