"""Keeps one vLLM server: ends all of it when it is told to, or when the run is gone.

Standard library only, and run as a script: ``keeper.py RUN GRACE COMMAND...``, where RUN is the id
of the process that starts it and GRACE the seconds that the server has to end by itself. A server
is several processes; when the first of them is killed, others may stay. So they are all below this
one, which what is orphaned comes to, and have a temporary folder of their own. It ends the server
when its standard input says so or ends, when it is asked to by a signal, and when RUN has ended,
however that went: that is seen whichever thread started it, and whoever else holds the other end
of its standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PATIENCE = 5.0
"""Seconds that it goes on killing what will not die."""
LONGEST = 40
"""Letters of a temporary folder's path below which vLLM's sockets, with 107 in all, find room."""

libc = ctypes.CDLL(None, use_errno=True)


def main(run: int, grace: float, command: list[str]) -> int:
    """Start the server, wait for its end or for that of the run; return the server's status."""
    handle = os.pidfd_open(run)
    if os.getppid() != run:  # it is gone already
        return 0
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked, asks = os.pipe()
    os.set_blocking(asks, False)
    signal.set_wakeup_fd(asks)
    for word in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(word, lambda *_: None)
    compiled = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
    short = len(tempfile.gettempdir()) <= LONGEST
    folder = tempfile.mkdtemp(prefix="isentrope-vllm-", dir=None if short else "/tmp")  # noqa: S108
    try:
        server = subprocess.Popen(  # noqa: S603  # the run's own command
            command,
            env={"TORCHINDUCTOR_CACHE_DIR": compiled, **os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_keeper,
        )
        ended = os.pidfd_open(server.pid)
        poll = select.poll()
        for number in (ended, handle, asked, sys.stdin.fileno()):
            poll.register(number, select.POLLIN | select.POLLHUP)
        if ended not in {number for number, _ in poll.poll()}:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(grace)
        server.kill()
        status = server.wait()
        _kill_below()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _die_with_keeper() -> None:
    """Have the server's first process end when its keeper is killed, which ends the others."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _kill_below() -> None:
    """Kill every process that came from the server."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for process in _children():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> list[int]:
    own = os.getpid()
    with open(f"/proc/{own}/task/{own}/children") as file:
        return [int(word) for word in file.read().split()]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
