"""Installs AppWorld: its interpreter, its data, and the agent's copy of that; and removes it all.

Every part is made in ``ROOT/building``, verified, stamped, and only then renamed into its place: an
installation that was interrupted never looks whole, and is finished by running it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from isentrope import ConfigError, IsentropeError, UnknownNameError
from isentrope_envs.appworld import data as _data
from isentrope_envs.appworld import interpreter
from isentrope_envs.appworld.engine import run, wanted_version
from isentrope_envs.appworld.place import VARIABLE, Place

README = """\
AppWorld, installed by Isentrope.

To remove it: isentrope appworld remove --root {root}

The data here is AppWorld's, or derived from it (its table schemas and API documentation). Its
licence asks that public copies be encrypted: do not publish it, nor bake it into an image.
"""
Say = Callable[[str], object]


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
    _check(place)
    try:
        with _alone(place, say):
            _claim(place)
            _install(place, data, replace, say)
    except OSError as error:  # no permission, a full disk
        raise IsentropeError(f"AppWorld cannot be installed in {place.root}: {error}.") from error
    return place


def remove(root: str | Path | None = None, *, say: Say = print) -> None:
    """Delete what `install` made; what else is in the folder stays.

    Raises `ConfigError` where it made nothing.
    """
    place = Place.default() if root is None else Place(root)
    if not is_ours(place):
        raise ConfigError(f"{place.root} is no installation of AppWorld.")
    with _alone(place, say):
        say(f"Deletes {human(size(*parts(place)))} in {place.root}.")
        for part in parts(place):
            if part.is_symlink():  # the user's, to another disk: what is there is not ours
                part.unlink()
            shutil.rmtree(part, ignore_errors=True)
        left = [str(part) for part in parts(place) if part.exists()]
        if left:
            raise IsentropeError(f"Could not delete {', '.join(left)}.")
        place.readme.unlink()  # last: until then it is ours, and can be removed again
    with contextlib.suppress(OSError):  # holds what is not ours
        place.root.rmdir()
    if place.root.exists():
        say(f"{place.root} stays, for what else is in it.")


def is_ours(place: Place) -> bool:
    """Say whether something was installed there, whole or not."""
    try:
        return place.readme.read_text(encoding="utf-8").startswith(README.splitlines()[0])
    except (OSError, UnicodeDecodeError):
        return False


def parts(place: Place) -> tuple[Path, ...]:
    """Return the folders that an installation consists of."""
    return place.building, place.root / "python", place.agent, place.full, place.cache


def size(*folders: Path) -> int:
    """Return the bytes on disk of what is in some folders; hard links count once."""
    blocks = {}
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                about = os.lstat(os.path.join(path, name))
                blocks[about.st_dev, about.st_ino] = about.st_blocks
    return 512 * sum(blocks.values())


def human(count: int) -> str:
    """Return a number of bytes for reading."""
    return f"{count / 2**20:.0f} MiB"


def _check(place: Place) -> None:
    """Refuse a folder that the engine could not live in, or that is somebody else's."""
    if "memory" in str(place.root):
        raise ConfigError(
            f"The folder's path may not contain 'memory': AppWorld's engine would take it for a "
            f"database in memory. Choose another than {place.root}."
        )
    if not place.root.exists():
        return
    strange = not place.root.is_dir() or set(os.listdir(place.root)) - {_new_readme(place).name}
    if strange and not is_ours(place):  # in this order: another may be claiming it right now
        raise ConfigError(f"{place.root} is not empty, and nothing that Isentrope installed.")


def _claim(place: Place) -> None:
    """Make the folder ours."""
    new = _new_readme(place)
    new.write_text(README.format(root=place.root), encoding="utf-8")
    new.replace(place.readme)


def _new_readme(place: Place) -> Path:
    return place.root / ".README"


@contextlib.contextmanager
def _alone(place: Place, say: Say) -> Iterator[None]:
    """Wait until nobody else installs there; clear away what an interrupted one left."""
    place.root.mkdir(parents=True, exist_ok=True)
    folder = os.open(place.root, os.O_RDONLY)  # its lock needs no file, and none is left behind
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waits for another installation in {place.root}.")
            fcntl.flock(folder, fcntl.LOCK_EX)
        shutil.rmtree(place.building, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(place.building, ignore_errors=True)
    finally:
        os.close(folder)


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
    say(f"  interpreter  {human(size(place.root / 'python'))}  {place.python}")
    say(f"  data         {human(size(place.full, place.agent))}  {place.full}, {place.agent}")
    say(f"  cache        {human(size(place.cache))}  {place.cache}")
    named = "" if place == Place.default() else f" --root {place.root}"
    say(f"It took {seconds:.0f} s. To undo it: isentrope appworld remove{named}")
    if named:
        say(f"Environments find it there by {VARIABLE}={place.root}")
