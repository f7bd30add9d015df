"""What the doctor asks of the installation: Python, packages, torch and its GPUs, plugins."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from isentrope.doctor.diagnosis import Diagnosis
from isentrope.doctor.machine import GIB
from isentrope.installations import disk_use
from isentrope.notebook.notebook import Notebook
from isentrope.plugins import Row, registry

_BF16 = (8, 0)
"""CUDA's compute capability from which it multiplies bfloat16."""


def python() -> Iterator[Diagnosis]:
    """Say which interpreter this is; an older one than 3.11 does not come this far."""
    yield Diagnosis("python", "ok", f"{platform.python_version()}, {sys.executable}")


def packages() -> Iterator[Diagnosis]:
    """Say whether what Isentrope requires is installed, in versions that it works with."""
    needed = [Requirement(line) for line in requires("isentrope") or ()]
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = {str(r): found for r in needed if (found := _mismatch(r)) is not None}
    if wrong:
        fix = "pip install " + " ".join(f"'{requirement}'" for requirement in wrong)
        yield Diagnosis("packages", "broken", "; ".join(wrong.values()), fix=fix)
        return
    release = version("isentrope")
    yield Diagnosis("packages", "ok", f"isentrope {release}, and the {len(needed)} it requires")


def torch() -> Iterator[Diagnosis]:
    """Say what torch was built for, and which GPUs it can use."""
    import torch

    hip = getattr(torch.version, "hip", None)
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {hip}" if hip else ""
    yield Diagnosis("torch", "ok", f"{torch.__version__}, for {built or 'the CPU only'}")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield from missing_gpus(seen, driver_versions(), built, hidden)
    for i in range(seen):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        types = "bfloat16, float16" if (about.major, about.minor) >= _BF16 or hip else "float16"
        message = f"{about.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, {types}"
        yield Diagnosis("gpu", "ok", message)


def missing_gpus(
    seen: int, drivers: list[str], built: str, hidden: str | None
) -> Iterator[Diagnosis]:
    """Say of GPUs that torch does not see why that is.

    drivers: the driver's version, for each GPU that it knows. built: what torch was built for,
    besides the CPU. hidden: CUDA_VISIBLE_DEVICES.
    """
    known = len(drivers)
    if not known and not seen:
        fix = "nothing, for tiny models; for others, a machine with a GPU and its driver"
        yield Diagnosis("gpu", "absent", "there is none: training runs on the CPU", fix=fix)
    elif hidden is not None and seen < known:
        message = f"torch sees {seen} of {known}: CUDA_VISIBLE_DEVICES is {hidden!r}"
        yield Diagnosis("gpu", "absent", message, fix="unset CUDA_VISIBLE_DEVICES to use them all")
    elif not seen and not built:
        message = f"torch is built for the CPU only, and the driver knows {known}"
        fix = "install a build of torch for CUDA; pytorch.org says how"
        yield Diagnosis("gpu", "broken", message, fix=fix)
    elif seen < known:
        message = f"torch, built for {built}, can use {seen} of {known} by driver {drivers[0]}"
        fix = f"update the driver, or install a torch that is built for less than {built}"
        yield Diagnosis("gpu", "broken", message, fix=fix)


def driver_versions() -> list[str]:
    """Return the version of NVIDIA's driver, once for each GPU that it knows."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603  # the driver's own program
            command, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def plugins() -> Iterator[Diagnosis]:
    """Say which plugins can be used, and what is wrong with the others."""
    rows = registry().rows
    for row in rows:
        if row.state != "ok":
            message = f"{row.id} of {row.origin}: {row.summary}"
            yield Diagnosis("plugin", "broken", message, fix=_mend(row))
    good = {row.distribution for row in rows if row.state == "ok"}
    yield Diagnosis("plugins", "ok", f"of {', '.join(sorted(good))}")


def workers() -> Iterator[Diagnosis]:
    """Say whether environments run in processes of their own."""
    if sys.platform != "linux":
        message = "environments run in the run's own process here: worker processes need Linux"
        yield Diagnosis(
            "workers", "absent", message, fix="use Linux, or Linux inside Windows (WSL)"
        )
        return
    yield Diagnosis("workers", "ok", "environments run in processes of their own")


def notebooks() -> Iterator[Diagnosis]:
    """Say whether a policy's code runs, shut in."""
    notebook = Notebook()
    try:
        cell = notebook.run("print('fine')")
    finally:
        notebook.close()
    if cell.output != "fine\n":
        raise RuntimeError(f"a cell printed {cell.output!r}. {cell.died}")
    yield Diagnosis("notebooks", "ok", "cells are shut off from files and network")


def hub() -> Iterator[Diagnosis]:
    """Say where models from the hub are kept, and whether it is asked at all."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    kept = f"{folder} holds {disk_use(folder)}"
    asked = "it is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "it is asked"
    yield Diagnosis("hub", "ok", f"{kept}; {asked}")


def _mismatch(requirement: Requirement) -> str | None:
    """Say how a requirement is not met; None: it is."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} is {found}, and not {requirement.specifier}"


def _mend(row: Row) -> str:
    """Say what to do about a plugin that cannot be used."""
    if row.state == "incompatible":
        return f"pip install --upgrade isentrope {row.distribution}"
    if row.state == "refused":
        return f"pip uninstall {row.distribution}, or the other one"
    return f"report it to the makers of {row.origin}, or pip uninstall {row.distribution}"
