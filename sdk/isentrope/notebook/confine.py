"""Shutting a process in before it runs what nobody has read: files, network, memory, processes.

Standard library only. Each protection is tried, and those that hold are reported: an old kernel has
no Landlock, and a container may not let go of the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterable
from typing import Any

from isentrope.workers.shim import (
    LEAST_UID,
    PR_SET_PDEATHSIG,
    be_somebody,
    bound,
    keep_capabilities,
    libc,
)

CLONE_NEWNET, CLONE_NEWUSER, CLONE_NEWIPC = 0x40000000, 0x10000000, 0x08000000
TO_READ = (2,)
"""The capability to read whatever root may; which that is, Landlock says."""
OF_PYTHON = 512 * 2**20
"""Address space that the interpreter itself takes."""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22
ARCHITECTURES = {
    "x86_64": (0xC000003E, 302, 141, 142, 144, 203, 251, 314, 319, 29),
    "aarch64": (0xC00000B7, 261, 140, 118, 119, 122, 30, 274, 279, 194),
}
"""By machine: its number, and those of prlimit64, setpriority, sched_setparam, sched_setscheduler,
sched_setaffinity, ioprio_set, sched_setattr, memfd_create and shmget."""
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_SPECIAL = (1 << 6) | (1 << 9) | (1 << 10) | (1 << 11)  # devices, sockets, pipes
TRUNCATE, IOCTL = 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
"""Rights that a rule for a single file may grant."""


def confine(limits: dict[str, Any], read: Iterable[str], folder: str) -> dict[str, bool]:
    """Shut this process in; return which protections hold: files, network, processes.

    limits: memory_bytes, cpu_seconds, file_bytes, processes. read: files and folders. folder: what
    alone may be written, files of at most ``file_bytes``; with 0 it is only read.
    """
    network = _leave_network()
    libc.unshare(CLONE_NEWIPC)
    for name, value in (
        ("RLIMIT_DATA", limits["memory_bytes"]),
        ("RLIMIT_AS", limits["memory_bytes"] + OF_PYTHON),
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", 256),
        ("RLIMIT_CORE", 0),
    ):
        bound(name, value)
    # In a worker the environment's own processes count too, and elsewhere all of the user's.
    root = os.geteuid() == 0
    if root:
        os.chown(folder, LEAST_UID + os.getpid(), -1)
    processes = be_somebody(TO_READ) if root else True
    keep_capabilities(TO_READ)  # a worker has more: it could change what is not its own
    bound("RLIMIT_NPROC", limits["processes"] + (0 if root else 8))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _refuse_calls()
    own = [folder] if limits["file_bytes"] else []
    files, tcp = _landlock([*read, folder], [*own, os.devnull])
    return {"files": files, "network": network or tcp, "processes": processes}


def _leave_network() -> bool:
    if libc.unshare(CLONE_NEWNET) == 0:
        return True
    # A worker of root's keeps what it may read by a capability, which a new user would lose.
    return os.geteuid() < LEAST_UID and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def _refuse_calls() -> None:
    """Refuse what Landlock and limits leave: a filter of system calls (seccomp).

    Changing limits or priorities of other processes of the same user; memory that is counted as
    nobody's while it is not mapped.
    """
    if (machine := os.uname().machine) not in ARCHITECTURES:
        return
    architecture, limits, *others = ARCHITECTURES[machine]
    denied = (0x06, 0, 0, 0x00050000 | errno.EPERM)  # return it
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), denied]  # of another architecture
    program += [(0x20, 0, 0, 0), (0x35, 0, 1, 1 << 30), denied]  # or of its second table
    for number in others:
        program += [(0x15, 0, 1, number), denied]
    program += [(0x15, 0, 3, limits), (0x20, 0, 0, 16), (0x15, 1, 0, 0), denied]  # 0: its own
    program.append((0x06, 0, 0, 0x7FFF0000))  # all else is allowed
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    whole = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(whole), 0, 0)


def _landlock(read: Iterable[str], write: Iterable[str]) -> tuple[bool, bool]:
    """Leave only these paths, to be read or written; say whether files and TCP are shut off."""
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False, False
    known = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    every = (1 << known) - 1
    rules = struct.pack("QQQ", every, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0:
        return False, False
    reading = EXECUTE | READ_FILE | READ_DIR
    for paths, rights in ((read, reading), (write, every & ~MAKE_SPECIAL)):
        for path in paths:
            with contextlib.suppress(OSError):  # what is not there cannot be granted
                handle = os.open(path, os.O_PATH)
                granted = rights & every & (~0 if os.path.isdir(path) else OF_FILES)
                rule = struct.pack("=Qi", granted, handle)
                libc.syscall(ADD_RULE, ruleset, 1, ctypes.c_char_p(rule), 0)
                os.close(handle)
    held = libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return held, held and version >= 4
