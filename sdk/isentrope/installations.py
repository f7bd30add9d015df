"""Folders into which a plugin installs what cannot live beside its users' packages."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from attrs import field, frozen
from platformdirs import user_data_path

from isentrope.errors import ConfigError, IsentropeError

T = TypeVar("T")
Say = Callable[[str], object]
_STAMP = "requirements.txt"


def _whole(path: str | Path) -> Path:
    return Path(path).absolute()


@frozen
class Installation:
    """A folder with an interpreter of its own and whatever else belongs to what is installed there.

    A plugin subclasses it. Every part is made in `building`, verified, stamped, and only then
    renamed into its place: an installation that was interrupted never looks whole, and is finished
    by installing again. What is in the folder that is not a part of it is never touched.
    """

    what: ClassVar[str]
    """What is installed, for people: ``"AppWorld"``."""
    name: ClassVar[str]
    """The folder's among the user's data, and the command's: ``isentrope NAME install``."""
    variable: ClassVar[str]
    """The environment variable that names the folder, if it is not the default one."""
    notice: ClassVar[str] = ""
    """What else its README says."""

    root: Path = field(converter=_whole)

    @classmethod
    def default(cls) -> Self:
        """Return the one that the environment variable names, or the user's own."""
        named = os.environ.get(cls.variable)
        return cls(Path(named) if named else user_data_path("isentrope") / cls.name)

    @property
    def environment(self) -> Path:
        """The virtual environment."""
        return self.root / "python"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.environment / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """The copy of the requirements that says that all of them are installed."""
        return self.environment / _STAMP

    @property
    def readme(self) -> Path:
        """What marks the folder as ours."""
        return self.root / "README"

    @property
    def building(self) -> Path:
        """Where parts are made, to be renamed when they are whole."""
        return self.root / "building"

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folders that it consists of."""
        return self.building, self.environment

    @property
    def is_ours(self) -> bool:
        """Whether something was installed there, whole or not."""
        try:
            return self.readme.read_text(encoding="utf-8").startswith(self._title)
        except (OSError, UnicodeDecodeError):
            return False

    def has(self, requirements: Path) -> bool:
        """Say whether the interpreter is whole, and was made of these requirements."""
        return self.stamp.is_file() and self.stamp.read_bytes() == requirements.read_bytes()

    @contextlib.contextmanager
    def installing(self, say: Say = print) -> Iterator[None]:
        """Make the folder ours, and wait until nobody else installs there.

        Raises `ConfigError` where it is somebody else's, and `IsentropeError` where it cannot be
        written, now or while it is held.
        """
        self._check()
        try:
            with self._alone(say):
                new = self._new_readme
                text = f"{self._title}\n\nTo remove it: {self._command('remove')}\n{self.notice}"
                new.write_text(text, encoding="utf-8")
                new.replace(self.readme)
                yield
        except OSError as error:  # no permission, a full disk
            raise IsentropeError(
                f"{self.what} cannot be installed in {self.root}: {error}."
            ) from error

    def make_environment(self, requirements: Path, finish: Callable[[Path], T]) -> T:
        """Make the interpreter of a file of pinned requirements, and put it in its place.

        finish: called with the interpreter, for what pip does not do, and to see that it works;
        what it returns is returned.

        Raises `IsentropeError` where a step fails.
        """
        folder = self.building / "python"
        python = folder / "bin" / "python"
        self.run("python -m venv", sys.executable, "-I", "-m", "venv", folder)
        self.pip(python, "install", "--requirement", requirements)
        found = finish(python)
        shutil.copyfile(requirements, folder / _STAMP)
        _rename(folder, self.environment)
        return found

    def pip(self, python: Path, command: str, *arguments: str | Path) -> None:
        """Have an interpreter's pip do something; raises `IsentropeError` where that fails."""
        quietly = ("--disable-pip-version-check", "--quiet")
        self.run(f"pip {command}", python, "-I", "-m", "pip", *quietly, command, *arguments)

    def run(self, doing: str, *command: str | Path, variables: Mapping[str, str] = {}) -> str:
        """Run a command and return what it printed; variables: of its environment, beside ours.

        Raises `IsentropeError` where it fails, which says what it was `doing`, and its last line.
        """
        done = subprocess.run(  # noqa: S603  # commands of plugins
            [str(part) for part in command],
            cwd="/",  # a module of the user's here would hide one of the command's
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = f"{done.stdout}\n{done.stderr}".strip()
            last = said.splitlines()[-1] if said else "it printed nothing"
            raise IsentropeError(f"{doing} failed with exit status {done.returncode}: {last}")
        return done.stdout

    def tell(self, seconds: float, say: Say) -> None:
        """Say how long it took, how to undo it, and how to have it found."""
        say(f"It took {seconds:.0f} s. To undo it: {self._command('remove')}")
        if self != self.default():
            say(f"It is found there by {self.variable}={self.root}")

    def remove(self, say: Say = print) -> None:
        """Delete what was installed; what else is in the folder stays.

        Raises `ConfigError` where nothing was, and `IsentropeError` where it cannot be deleted.
        """
        if not self.is_ours:
            raise ConfigError(f"{self.root} is no installation of {self.what}.")
        with self._alone(say):
            say(f"Deletes {disk_use(*self.parts)} in {self.root}.")
            for part in self.parts:
                if part.is_symlink():  # the user's, to another disk: what is there is not ours
                    part.unlink()
                shutil.rmtree(part, ignore_errors=True)
            left = [str(part) for part in self.parts if part.exists()]
            if left:
                raise IsentropeError(f"Could not delete {', '.join(left)}.")
            self.readme.unlink()  # last: until then it is ours, and can be removed again
        with contextlib.suppress(OSError):  # holds what is not ours
            self.root.rmdir()
        if self.root.exists():
            say(f"{self.root} stays, for what else is in it.")

    @property
    def _title(self) -> str:
        return f"{self.what}, installed by Isentrope."

    @property
    def _new_readme(self) -> Path:
        return self.root / ".README"

    def _command(self, verb: str) -> str:
        where = "" if self == self.default() else f" --root {self.root}"
        return f"isentrope {self.name} {verb}{where}"

    def _check(self) -> None:
        """Refuse a folder that is somebody else's."""
        if not self.root.exists():
            return
        strange = not self.root.is_dir() or set(os.listdir(self.root)) - {self._new_readme.name}
        if strange and not self.is_ours:  # in this order: another may be claiming it right now
            raise ConfigError(f"{self.root} is not empty, and nothing that Isentrope installed.")

    @contextlib.contextmanager
    def _alone(self, say: Say) -> Iterator[None]:
        """Wait until nobody else installs there; clear away what an interrupted one left."""
        self.root.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.root, os.O_RDONLY)  # its lock needs no file, and none is left behind
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"Waits for another installation in {self.root}.")
                fcntl.flock(folder, fcntl.LOCK_EX)
            shutil.rmtree(self.building, ignore_errors=True)
            try:
                yield
            finally:
                shutil.rmtree(self.building, ignore_errors=True)
        finally:
            os.close(folder)


def pinned(requirements: Path, package: str) -> str:
    """Return the version of a package in a file of pinned requirements."""
    (version,) = (
        line.partition("==")[2].strip()
        for line in requirements.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"{package}==")
    )
    return version


def disk_use(*folders: Path) -> str:
    """Return how much disk some folders take, for people; hard links count once."""
    blocks = {}
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    about = os.lstat(os.path.join(path, name))
                    blocks[about.st_dev, about.st_ino] = about.st_blocks
    return f"{512 * sum(blocks.values()) / 2**20:.0f} MiB"


def _rename(folder: Path, to: Path) -> None:
    """Move a virtual environment; scripts in its bin name the folder that they are in."""
    for script in (folder / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            text = script.read_bytes()
            script.write_bytes(text.replace(bytes(folder), bytes(to)))
    if to.exists():
        to.rename(folder.with_name("old-python"))
    folder.rename(to)
