"""`doctor`: what of this machine and this installation works, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

from attrs import field, frozen, validators

from isentrope.notebook.notebook import Notebook
from isentrope.plugins import registry
from isentrope.validation import one_of

State = Literal["ok", "absent", "broken"]


@frozen
class Diagnosis:
    """One thing that was looked at."""

    name: str = field(validator=validators.instance_of(str))
    state: State = field(validator=one_of(get_args(State)))
    """``"absent"`` for what may be missing: an engine that is not installed, no GPU."""
    message: str = field(validator=validators.instance_of(str))
    """What was found; where it is not ok, what to do."""


def diagnose() -> Iterator[Diagnosis]:
    """Look at the machine, then at what plugins have to say (hook ``isentrope_checks``).

    One check may yield any number of diagnoses; one that raises is itself broken.
    """
    for name, check in _OWN.items():
        yield from _run(name, check)
    for name, spec in sorted(registry().specs("check").items()):
        yield from _run(name, lambda spec=spec: spec.load()())  # type: ignore[misc]  # bound now


def _run(name: str, check: Callable[[], Iterable[Diagnosis]]) -> Iterator[Diagnosis]:
    try:
        for found in check():
            if not isinstance(found, Diagnosis):
                raise TypeError(f"a check yields Diagnosis, not {type(found).__name__}")
            yield found
    except (Exception, SystemExit) as error:  # a stranger's check
        yield Diagnosis(name, "broken", f"its check raised {type(error).__name__}: {error}")


def _python() -> Iterator[Diagnosis]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    message = f"{platform.python_version()}, {sys.executable}, {cores} cores"
    yield Diagnosis("python", "ok", message)


def _torch() -> Iterator[Diagnosis]:
    import torch

    yield Diagnosis("torch", "ok", torch.__version__)
    if not torch.cuda.is_available():
        yield Diagnosis("gpu", "absent", "torch sees none: training runs on the CPU")
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        yield Diagnosis("gpu", "ok", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")


def _plugins() -> Iterator[Diagnosis]:
    rows = registry().rows
    for row in rows:
        if row.state != "ok":
            yield Diagnosis("plugin", "broken", f"{row.id} of {row.origin}: {row.summary}")
    good = {row.distribution for row in rows if row.state == "ok"}
    yield Diagnosis("plugins", "ok", f"of {', '.join(sorted(good))}")


def _workers() -> Iterator[Diagnosis]:
    if sys.platform != "linux":
        message = "environments run in the run's own process here: worker processes need Linux"
        yield Diagnosis("workers", "absent", message)
        return
    yield Diagnosis("workers", "ok", "environments run in processes of their own")


def _notebooks() -> Iterator[Diagnosis]:
    notebook = Notebook()
    try:
        cell = notebook.run("print('fine')")
    finally:
        notebook.close()
    if cell.output != "fine\n":
        raise RuntimeError(f"a cell printed {cell.output!r}. {cell.died}")
    yield Diagnosis("notebooks", "ok", "cells are shut off from files and network")


_OWN: dict[str, Callable[[], Iterable[Diagnosis]]] = {
    "python": _python,
    "torch": _torch,
    "plugins": _plugins,
    "workers": _workers,
    "notebooks": _notebooks,
}
