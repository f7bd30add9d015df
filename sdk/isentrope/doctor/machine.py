"""What the doctor asks of the machine: processor, memory, disks, limits. Sizes are in bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from isentrope.doctor.diagnosis import Diagnosis
from isentrope.installations import disk_use

GIB = 2**30
_LEAST_FREE = GIB
"""Of memory, and of each disk: below, runs end in the middle."""
_LEAST_SHARED = GIB
"""Docker gives 64 MiB of shared memory, which Ray and NCCL run out of."""
_LEAST_FILES = 1024


def cpu() -> Iterator[Diagnosis]:
    """Say how many cores and how much memory this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f"{cores} cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    yield Diagnosis("cpu", "ok", said)
    if (memory := _memory()) is None:
        return
    total, free = memory
    message = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free >= _LEAST_FREE:
        yield Diagnosis("memory", "ok", message)
    else:
        yield Diagnosis("memory", "broken", message, fix="end what else runs here")


def disk() -> Iterator[Diagnosis]:
    """Say whether there is room where Isentrope writes."""
    given = os.environ.get("ISENTROPE_CACHE")
    cache = Path(given) if given else Path(platformdirs.user_cache_dir("isentrope"))
    held = f", which holds {disk_use(cache)} that can be deleted at any time"
    yield _room("cache", cache, held, "set ISENTROPE_CACHE to a folder on another disk")
    yield _room("runs", Path("runs"), "", "work in another folder, or name one with --out")
    yield _room("temporary files", Path(tempfile.gettempdir()), "", "set TMPDIR to another folder")


def shared_memory() -> Iterator[Diagnosis]:
    """Say how much there is of /dev/shm, where there is one."""
    folder = Path("/dev/shm")  # noqa: S108  # what is asked about
    if not folder.is_dir():
        return
    about = shutil.disk_usage(folder)
    message = f"{about.free / GIB:.1f} GiB free in {folder}"
    if about.free >= _LEAST_SHARED:
        yield Diagnosis("shared memory", "ok", message)
        return
    fix = f"start the container with --shm-size=8g, or: mount -o remount,size=8G {folder}"
    message += ": too little for Ray, and for several GPUs"
    yield Diagnosis("shared memory", "absent", message, fix=fix)


def open_files() -> Iterator[Diagnosis]:
    """Say how many files a process may have open: each worker and each request takes some."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _LEAST_FILES or soft == resource.RLIM_INFINITY:
        yield Diagnosis("open files", "ok", f"at most {soft}")
        return
    more = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    fix = f"ulimit -n {more}" if more > soft else "ask who runs this machine for more (ulimit -Hn)"
    yield Diagnosis("open files", "broken", f"at most {soft}, too few for many workers", fix=fix)


def _room(name: str, folder: Path, held: str, elsewhere: str) -> Diagnosis:
    """Say how much is free where a folder is, or would be made."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return Diagnosis(name, "broken", f"{folder} cannot be written", fix=elsewhere)
    free = shutil.disk_usage(there).free
    message = f"{free / GIB:.1f} GiB free for {folder}{held}"
    if free >= _LEAST_FREE:
        return Diagnosis(name, "ok", message)
    return Diagnosis(name, "broken", message, fix=f"delete what is not needed, or {elsewhere}")


def _memory() -> tuple[int, int] | None:
    """Return what a process may use of the memory, and how much of it is free; None: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    about = {
        name: 1024 * int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)
    }
    total, free = about["MemTotal"], about["MemAvailable"]
    with contextlib.suppress(OSError, ValueError):  # no container's limit, or "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free
