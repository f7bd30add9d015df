"""`diagnose` asks every check in turn: those of this folder, then those of plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from isentrope.doctor import machine, software
from isentrope.doctor.diagnosis import Diagnosis
from isentrope.plugins import registry

_OWN: dict[str, Callable[[], Iterable[Diagnosis]]] = {
    "python": software.python,
    "packages": software.packages,
    "cpu": machine.cpu,
    "torch": software.torch,
    "plugins": software.plugins,
    "workers": software.workers,
    "notebooks": software.notebooks,
    "disk": machine.disk,
    "shared memory": machine.shared_memory,
    "open files": machine.open_files,
    "hub": software.hub,
}


def diagnose() -> Iterator[Diagnosis]:
    """Look at the machine, then at what plugins have to say (hook ``isentrope_checks``).

    One check may yield any number of diagnoses; one that raises is itself broken.
    """
    for name, check in _OWN.items():
        yield from _run(name, check, "isentrope")
    for name, spec in sorted(registry().specs("check").items()):
        origin = registry().origin("check", name)
        yield from _run(name, lambda spec=spec: spec.load()(), origin)  # type: ignore[misc]  # bound now


def _run(name: str, check: Callable[[], Iterable[Diagnosis]], origin: str) -> Iterator[Diagnosis]:
    try:
        for found in check():
            if not isinstance(found, Diagnosis):
                raise TypeError(f"a check yields Diagnosis, not {type(found).__name__}")
            yield found
    except (Exception, SystemExit) as error:  # a stranger's check
        message = f"its check raised {type(error).__name__}: {error}"
        yield Diagnosis(name, "broken", message, fix=f"report it to the makers of {origin}")
