"""Installing vLLM: what is refused, what is made, what an interrupted one leaves."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from isentrope import ConfigError, IsentropeError, UnknownNameError
from isentrope_plugins.vllm import installation
from isentrope_plugins.vllm.checks import check
from isentrope_plugins.vllm.installation import (
    DEVICES,
    install,
    remove,
    requirements,
    version,
)
from isentrope_plugins.vllm.place import VARIABLE, Place


def isentrope(*arguments: object, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isentrope", "vllm", *map(str, arguments)]
    return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=300)


def state(place: Place) -> tuple[str, str]:
    """Return what the doctor says of a place that VARIABLE names."""
    assert str(place.root) == os.environ[VARIABLE]
    (found,) = check()
    return found.state, found.message


def silent(_: str) -> None:
    pass


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where nothing is yet."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "vllm"))
    return Place.default()


@pytest.fixture
def copy(vllm: Place, place: Place) -> Place:
    """An installation to break: links to the packages of the whole one."""
    place.environment.mkdir(parents=True)
    installation._claim(place)
    shutil.copytree(vllm.environment / "bin", place.environment / "bin", symlinks=True)
    for name in ("pyvenv.cfg", "requirements.txt"):
        shutil.copy(vllm.environment / name, place.environment)
    (packages,) = vllm.environment.glob("lib/python3*/site-packages")
    links = place.environment / packages.relative_to(vllm.environment)
    links.mkdir(parents=True)
    for package in packages.iterdir():
        (links / package.name).symlink_to(package)
    return place


# What is refused


def test_one_version_of_vllm_is_pinned_for_all_devices() -> None:
    for device in DEVICES:
        lines = [x for x in requirements(device).read_text().splitlines() if x and x[0] != "#"]
        assert [] == [line for line in lines if not re.fullmatch(r"[\w-]+==[\w.]+", line)]
    assert 1 == len({version(device) for device in DEVICES})


def test_an_unknown_device_gets_the_known_ones(place: Place) -> None:
    done = isentrope("install", "--device", "gpus", "--root", place.root)
    assert (2, "error: Device 'gpus' does not exist. Did you mean 'gpu'?\n") == (
        done.returncode,
        done.stderr,
    )
    with pytest.raises(UnknownNameError):
        install(place.root, "tpu")
    assert not place.root.exists()


def test_a_folder_that_is_somebody_elses_is_refused_and_left_alone(place: Place) -> None:
    place.root.mkdir()
    (place.root / "README").write_text("My thesis.")
    with pytest.raises(ConfigError, match="is not empty, and nothing that Isentrope installed"):
        install(place.root)
    with pytest.raises(ConfigError, match="is no installation of vLLM"):
        remove(place.root)
    assert ["README"] == os.listdir(place.root)
    with pytest.raises(ConfigError, match="is not empty"):
        install(place.root / "README")


def test_a_folder_that_cannot_be_made_is_one_sentence(place: Place) -> None:
    place.root.write_text("a file")
    done = isentrope("install", "--root", place.root / "below")
    assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert f"vLLM cannot be installed in {place.root / 'below'}: [Errno 20]" in done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_step_that_fails_says_what_and_why_in_one_sentence(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(IsentropeError) as failed:
        install(place.root, "cpu", say=silent)
    said = str(failed.value)
    assert said.startswith("pip install failed with exit status 1: ERROR: No matching"), said
    assert 1 == len(said.splitlines())
    kind, message = state(place)
    assert ("broken", True) == (kind, "isentrope vllm install" in message)
    assert ["README"] == os.listdir(place.root)


# What is removed


def pretend(place: Place) -> None:
    """Leave the folders of an installation, with nothing of vLLM's."""
    place.environment.mkdir(parents=True)
    installation._claim(place)
    (place.environment / "file").write_text("x")


def test_removing_deletes_what_was_made_and_asks_first(place: Place) -> None:
    pretend(place)
    place.building.mkdir()  # as an interrupted one left it
    (place.root / "mine.txt").write_text("mine")
    refused = isentrope("remove", answer="n\n")
    assert (1, True) == (refused.returncode, place.environment.exists())
    done = isentrope("remove", answer="y\n")
    assert 0 == done.returncode, done.stderr
    assert f"{place.root} stays, for what else is in it." in done.stdout
    assert ["mine.txt"] == os.listdir(place.root)


def test_removing_leaves_no_folder_that_it_made(place: Place) -> None:
    pretend(place)
    remove(say=silent)
    assert not place.root.exists()
    assert ("absent", True) == (state(place)[0], "isentrope vllm install" in state(place)[1])


def test_a_link_in_place_of_the_folder_is_removed_and_not_what_it_names(
    place: Place, tmp_path: Path
) -> None:
    pretend(place)
    elsewhere = tmp_path / "elsewhere"
    place.environment.rename(elsewhere)
    place.environment.symlink_to(elsewhere)
    remove(say=silent)
    assert (elsewhere / "file").exists()
    assert not place.root.exists()


# The doctor


def lose_interpreter(place: Place) -> None:
    for link in place.python.parent.glob("python*"):
        link.unlink()


def lose_requirements(place: Place) -> None:
    place.stamp.write_text("\nvllm-cpu==0.0\n")


def lose_package(place: Place) -> None:
    (link,) = place.environment.glob("lib/python3*/site-packages/torch")
    link.unlink()


def lose_name(place: Place) -> None:
    (link,) = place.environment.glob("lib/python3*/site-packages/vllm-*.dist-info")
    link.unlink()


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (lose_interpreter, "No such file"),
        (lose_requirements, "it is not finished, or of another version of Isentrope"),
        (lose_package, "ModuleNotFoundError: No module named 'torch'"),
        (lose_name, "PackageNotFoundError: No package metadata was found for vllm"),
    ],
)
def test_the_doctor_says_what_is_broken(
    copy: Place, lose: Callable[[Place], None], told: str
) -> None:
    kind, message = state(copy)
    assert ("ok", True) == (kind, f"{version('cpu')}, platform cpu, in {copy.root}" in message)
    lose(copy)
    kind, message = state(copy)
    assert "broken" == kind
    assert told in message
    assert "isentrope vllm install" in message


# What is made


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_an_installation_has_vllms_command_and_nothing_that_wants_cuda(vllm: Place) -> None:
    script = vllm.environment / "bin" / "vllm"
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([script, "--version"], capture_output=True, text=True, env=environment)
    assert version("cpu") in done.stdout, done.stderr
    names = {path.name for path in vllm.environment.glob("lib/python3*/site-packages/*")}
    assert set() == {"torchvision", "torchaudio", "torchcodec", "nvidia"} & names


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_second_installation_waits_for_the_first_and_does_nothing_twice(copy: Place) -> None:
    before = copy.environment.stat().st_ino
    lock = os.open(copy.root, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = [sys.executable, "-um", "isentrope", "vllm", "install"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        assert f"Waits for another installation in {copy.root}.\n" == second.stdout.readline()
        assert second.poll() is None
        os.close(lock)
        said = second.communicate(timeout=120)[0]
    assert 0 == second.returncode
    assert f"which sees the platform cpu, is in {copy.root}.\n" in said
    assert "To undo it: isentrope vllm remove\n" in said
    assert before == copy.environment.stat().st_ino


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_an_installation_that_is_killed_never_looks_whole(place: Place) -> None:
    command = [sys.executable, "-m", "isentrope", "vllm", "install", "--device", "cpu"]
    there = place.building / "python" / "bin" / "pip"
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not there.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert (-signal.SIGKILL, True) == (process.returncode, there.exists())
    assert ("broken", False) == (state(place)[0], place.environment.exists())
    done = isentrope("remove", "--yes")
    assert (0, False) == (done.returncode, place.root.exists()), done.stderr
