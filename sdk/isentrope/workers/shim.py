"""The far side of a worker: runs one environment in a process that can be killed.

Standard library only, and run as a script, so that any Python from 3.9 on can run it: an
environment whose dependencies clash with ours lives in an interpreter of its own. Three kinds of
process, the same program::

    nursery       imports the environment's module once, and forks the others; runs none of its code
      keeper      one for each worker: kills all that is left of it when the run lets go
        worker    the environment, in its main thread, under limits

Frames on every socket are a length, 4 bytes, big-endian, and JSON. Each keeper holds one end of a
socket whose other end only the run has: when that is closed, or the run is gone, however it went,
the keeper kills the worker and everything that came from it, also what left its process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import inspect
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from typing import Any

TAIL = 4096
"""Bytes of a worker's own output that are kept, to say what it printed before it died."""
PATIENCE = 5.0
"""Seconds that a keeper goes on killing what will not die."""
INFO = ("task", "messages", "success", "stop_reason", "metrics", "report")
"""What of an environment's info is sent."""
LEAST_UID = 1 << 30
LARGEST_LIMIT = (1 << 63) - 1
KEPT_CAPABILITIES = (0, 1, 2, 3)  # chown, and reading and writing whatever root may
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT = 1, 8, 36, 47

libc = ctypes.CDLL(None, use_errno=True)


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one frame."""
    text = json.dumps(message, default=_number).encode()
    channel.sendall(struct.pack(">I", len(text)) + text)


def receive(channel: socket.socket) -> Any:
    """Return the next frame, or None at the end."""
    header = _exactly(channel, 4)
    if header is None:
        return None
    text = _exactly(channel, struct.unpack(">I", header)[0])
    return None if text is None else json.loads(text)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _number(value: Any) -> Any:
    """Turn numpy's numbers into Python's."""
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"a {type(value).__name__} cannot leave a worker")
    return item()


# The nursery


def nursery(channel: socket.socket) -> None:
    """Import what the first frame names, then fork a keeper for each pair of sockets."""
    about = receive(channel)
    if about is None:
        return
    sys.path[:] = about["path"] or sys.path[1:]  # without this file's folder
    try:
        importlib.import_module(about["entry_point"].partition(":")[0])
    except BaseException as error:  # a stranger's module
        send(channel, _failure(error))
        return
    with contextlib.suppress(OSError):  # nobody waits any more; the next read says so
        send(channel, {"ok": None})
    gc.freeze()  # what is not looked at after a fork need not be copied
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        asked = _asked(channel)
        if asked is None:
            return
        control, data, limits = asked
        if os.fork() == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(control, data, {**about, "limits": limits})
        control.close()
        data.close()


def _asked(channel: socket.socket) -> tuple[socket.socket, socket.socket, dict[str, Any]] | None:
    """Return what the next worker gets: its keeper's socket, its own, and its limits."""
    text, numbers, _, _ = socket.recv_fds(channel, 1 << 12, 2)  # which come in one piece
    if not text:
        return None
    control, data = (socket.socket(fileno=number) for number in numbers)
    return control, data, json.loads(text)


# A keeper


def _keep(control: socket.socket, data: socket.socket, about: dict[str, Any]) -> None:
    """Start a worker, wait for its end or for that of the run, leave nothing of it; report."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ["TMPDIR"] = folder = tempfile.mkdtemp(prefix="isentrope-worker-")
    os.chmod(folder, 0o711)  # noqa: S103  # a worker's own children may be of yet another user
    tempfile.tempdir = None
    source, sink = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            os.close(source)
            control.close()
            _work(data, sink, about)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
    os.close(sink)
    data.close()
    ended, tail = _watch(worker, control, source)
    leftover = _kill_below(worker, ended)
    report: dict[str, Any] = {"code": leftover.pop(worker, ended), "strays": len(leftover)}
    while chunk := (os.read(source, 1 << 16) if select.select([source], [], [], 0)[0] else b""):
        tail = (tail + chunk)[-TAIL:]
    report["output"] = tail.decode(errors="replace")
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # the run is gone
        send(control, report)
    os._exit(0)


def _watch(worker: int, control: socket.socket, source: int) -> tuple[int | None, bytes]:
    """Return how the worker ended, None where the run ended it, and what it printed last."""
    tail = b""
    poll = select.poll()
    handle = os.pidfd_open(worker)
    for number in (handle, control.fileno(), source):
        poll.register(number, select.POLLIN)
    while True:
        ready = {number for number, _ in poll.poll()}
        if source in ready:
            chunk = os.read(source, 1 << 16)
            tail = (tail + chunk)[-TAIL:]
            if not chunk:
                poll.unregister(source)
        if handle in ready:
            return _code(os.waitpid(worker, 0)[1]), tail
        if control.fileno() in ready:
            return None, tail


def _kill_below(worker: int, ended: int | None) -> dict[int, int]:
    """Kill every process that came from the worker; return the codes of those that were there."""
    found: dict[int, int] = {}
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if ended is None:
            _kill(worker, group=True)
        for process in _children():
            _kill(process)
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if process:
            found[process] = _code(status)
        else:
            time.sleep(0.001)
    return found


def _kill(process: int, *, group: bool = False) -> None:
    with contextlib.suppress(OSError):
        (os.killpg if group else os.kill)(process, signal.SIGKILL)


def _children() -> list[int]:
    """Return the processes whose parent is this one: what is orphaned below comes to it."""
    own = os.getpid()
    try:
        with open(f"/proc/{own}/task/{own}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        pass
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == own:
            found.append(int(name))
    return found


def _code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


# A worker


def _work(data: socket.socket, sink: int, about: dict[str, Any]) -> None:
    """Make the environment and answer calls, until the run lets go."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, to in ((nothing, 0), (sink, 1), (sink, 2)):
        os.dup2(number, to)
    os.close(sink)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper
    faulthandler.enable()
    counted = _limit(about["limits"])
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user forgets it
    environment: Any = None
    own = os.getpid()
    while True:
        call = receive(data)
        if call is None:
            os._exit(0)
        try:
            name = call.pop("call")
            if name == "make":
                environment = _named(about["entry_point"])(**call["config"])
                answer = {"ok": dict(_describe(environment), counted=counted)}
            elif name == "reset":
                _seed(call["seed"])
                _allow_cpu(about["limits"]["cpu_seconds"])
                options = None if call["task"] is None else {"task": call["task"]}
                result = environment.reset(seed=call["seed"], options=options)
                answer = {"ok": _sendable(result)}
            elif name == "step":
                answer = {"ok": _sendable(environment.step(call["action"]))}
            elif name == "demonstrate":
                answer = {"ok": _demonstrate(environment, call["seed"], call["noise"])}
            else:
                environment.close()
                _reply(data, {"ok": None})
                os._exit(0)
            if os.getpid() != own:
                os._exit(1)
            _reply(data, answer)
        except BaseException as error:  # a stranger's code: whatever it raises is data
            if os.getpid() != own:  # a fork of its, which comes out here
                os._exit(1)
            _reply(data, _failure(error, about["entry_point"] if name == "make" else None))


def _reply(data: socket.socket, answer: dict[str, Any]) -> None:
    try:
        send(data, answer)
    except (TypeError, ValueError) as error:
        send(data, _failure(error))


def _named(entry_point: str) -> Any:
    module, _, name = entry_point.partition(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target


def options_of(target: Any) -> list[str]:
    """Return what a class or a function takes by keyword; what goes on to bases, of those too."""
    bases = [vars(cls) for cls in getattr(target, "__mro__", ())]
    own = [attributes["__init__"] for attributes in bases if "__init__" in attributes]
    found: list[str] = []
    for function in own or [target]:
        parameters = list(inspect.signature(function).parameters.values())[bool(own) :]
        found += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _demonstrate(environment: Any, seed: int, noise: float) -> Any:
    if getattr(environment, "demonstrate", None) is None:
        return None
    from numpy.random import default_rng  # what has a solver has numpy

    return environment.demonstrate(default_rng(seed), noise)


def _describe(environment: Any) -> dict[str, Any]:
    tasks = environment.tasks
    return {
        "tasks": {split: [task.id for task in tasks[split]] for split in tasks},
        "reward_range": list(environment.reward_range),
    }


def _sendable(result: Any) -> Any:
    """Leave out of an info what nobody reads: it may hold anything."""
    if not isinstance(result, tuple):
        return repr(result)[:200]  # which breaks the contract, and is refused as what it is not
    if result and isinstance(result[-1], dict):
        info = {key: result[-1][key] for key in INFO if key in result[-1]}
        return [*result[:-1], info]
    return result


def _failure(error: BaseException, entry_point: str | None = None) -> dict[str, Any]:
    """Describe an error: the names of its classes, its message, its traceback.

    entry_point: of what could not be made; the options that it has are sent, too.
    """
    names = [cls.__name__ for cls in type(error).__mro__]
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-8))
    options: list[str] = []
    if entry_point is not None and isinstance(error, TypeError):
        with contextlib.suppress(Exception):  # a stranger's class, if it is one
            options = options_of(_named(entry_point))
    return {"error": names, "said": str(error), "text": text, "options": options}


def _seed(seed: int) -> None:
    """Seed what an environment should not draw from, lest one episode depend on another."""
    random.seed(seed)
    for name, function in (("numpy", "random.seed"), ("torch", "manual_seed")):
        target: Any = sys.modules.get(name)
        for part in function.split("."):
            target = getattr(target, part, None)
        if target is not None:
            target(seed % 2**32)


def bound(name: str, value: float) -> None:
    """Set a limit of this process, or leave a lower one that it has."""
    number = getattr(resource, name)
    _, most = resource.getrlimit(number)
    least = min(int(value), LARGEST_LIMIT if most == resource.RLIM_INFINITY else most)
    resource.setrlimit(number, (least, least))


def _limit(limits: dict[str, Any]) -> bool:
    """Hold this process, and all that it starts, to its limits; say whether processes count."""
    bound("RLIMIT_CORE", 0)
    bound("RLIMIT_DATA", limits["memory_bytes"])
    count, counted = limits["processes"], True
    if os.geteuid() == 0:
        counted = be_somebody(KEPT_CAPABILITIES)
    else:
        count = _count_processes() + limits["processes_in_all"]
    bound("RLIMIT_NPROC", count)
    return counted


def _count_processes() -> int:
    """Count this user's threads, which are what the limit counts."""
    own, count = os.geteuid(), 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == own:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def _allow_cpu(seconds: float) -> None:
    """Allow so many more seconds of processor time; then the kernel ends the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = LARGEST_LIMIT if hard == resource.RLIM_INFINITY else hard
    allowed = min(int(used + seconds) + 1, most)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))


def be_somebody(kept: tuple[int, ...]) -> bool:
    """Change from root to a user that nobody else is, who keeps some of root's capabilities.

    Its processes are counted, which root's are not, and it cannot signal or trace those of others.
    Returns False where there is no such user, in some containers.
    """
    user = LEAST_UID + os.getpid()
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        os.setresuid(user, user, user)
    except OSError:
        return False
    keep_capabilities(kept)
    return True


def keep_capabilities(kept: tuple[int, ...]) -> None:
    """Give up all other capabilities, for what this process executes, too."""
    bits = sum(1 << capability for capability in kept)
    libc.prctl(PR_CAP_AMBIENT, 4, 0, 0, 0)
    libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", bits, bits, bits, 0, 0, 0))
    for capability in kept:
        libc.prctl(PR_CAP_AMBIENT, 2, capability, 0, 0)


if __name__ == "__main__":
    nursery(socket.socket(fileno=int(sys.argv[1])))
