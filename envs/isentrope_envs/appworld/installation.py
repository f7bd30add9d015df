"""Installs AppWorld: its interpreter, its data, and the agent's copy of that; and removes it all.

Data is made like every other part: beside its place, verified, stamped, and only then put there.
"""

from __future__ import annotations

import time
from pathlib import Path

from isentrope import ConfigError, UnknownNameError
from isentrope.installations import Say, disk_use
from isentrope_envs.appworld import data as _data
from isentrope_envs.appworld import interpreter
from isentrope_envs.appworld.engine import run, wanted_version
from isentrope_envs.appworld.place import Place


def install(
    root: str | Path | None = None,
    data: str | None = None,
    *,
    replace: bool = False,
    say: Say = print,
) -> Place:
    """Install AppWorld, or finish or renew an installation; return where it is.

    `data` is ``"real"``, which AppWorld downloads, or ``"tiny"``, which we write. None keeps what
    is there, else it is the tiny one. `replace` allows AppWorld's real data to be deleted once the
    new data is verified. Raises `ConfigError` where `root` is not ours, or `data` no such kind, and
    `IsentropeError` where a step fails.
    """
    place = Place.default() if root is None else Place(root)
    if data is not None and data not in _data.KINDS:
        raise UnknownNameError("Data", data, _data.KINDS)
    if "memory" in str(place.root):
        raise ConfigError(
            f"The folder's path may not contain 'memory': AppWorld's engine would take it for a "
            f"database in memory. Choose another than {place.root}."
        )
    with place.installing(say):
        _install(place, data, replace, say)
    return place


def remove(root: str | Path | None = None, *, say: Say = print) -> None:
    """Delete what `install` made; what else is in the folder stays.

    Raises `ConfigError` where it made nothing.
    """
    (Place.default() if root is None else Place(root)).remove(say)


def _install(place: Place, data: str | None, replace: bool, say: Say) -> None:
    there = _data.kind(place)
    renew = data is not None or not _data.is_current(place)
    if there == "real" and renew and not replace:
        raise ConfigError(
            f"{place.full / 'data'} holds AppWorld's real data, which would be deleted; "
            "allow it with replace=True, or --yes."
        )
    began = time.monotonic()
    if not interpreter.is_current(place):
        say(f"Installs appworld {wanted_version()} in {place.root}: about a minute.")
        interpreter.make(place)
    interpreter.link(place)
    program = "from isentrope import NotebookEnv; import isentrope_envs"
    run(place, "Importing Isentrope beside AppWorld", place.python, "-I", "-c", program)
    if renew:
        chosen = data or there or "tiny"
        say(f"Makes the {chosen} data, and lets AppWorld solve every task of it: some minutes.")
        say(_data.make(place, chosen))
    if not _data.in_step(place):
        _data.link(place)
    _report(place, time.monotonic() - began, say)


def _report(place: Place, seconds: float, say: Say) -> None:
    tasks = ", ".join(f"{name} {count}" for name, count in _data.count(place).items())
    say(f"AppWorld {wanted_version()} with {_data.kind(place)} data ({tasks}) is in {place.root}.")
    say(f"  interpreter  {disk_use(place.environment)}  {place.python}")
    say(f"  data         {disk_use(place.full, place.agent)}  {place.full}, {place.agent}")
    say(f"  cache        {disk_use(place.cache)}  {place.cache}")
    place.tell(seconds, say)
