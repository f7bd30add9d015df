"""Installing vLLM: what is refused, what is made, what an interrupted one leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isentrope import IsentropeError, UnknownNameError
from isentrope_plugins.vllm.checks import check
from isentrope_plugins.vllm.installation import (
    DEVICES,
    install,
    requirements,
    version,
)
from isentrope_plugins.vllm.place import Place


def isentrope(*arguments: object, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isentrope", "vllm", *map(str, arguments)]
    return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=300)


def state(place: Place) -> tuple[str, str]:
    """Return what the doctor says of a place that the variable names."""
    assert str(place.root) == os.environ[Place.variable]
    (found,) = check()
    return found.state, f"{found.message}; fix: {found.fix}"


def silent(_: str) -> None:
    pass


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where nothing is yet."""
    monkeypatch.setenv(Place.variable, str(tmp_path / "vllm"))
    return Place.default()


@pytest.fixture
def copy(vllm: Place, place: Place) -> Place:
    """An installation to break: links to the packages of the whole one."""
    place.environment.mkdir(parents=True)
    place.readme.write_text("vLLM, installed by Isentrope.")
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
    place.readme.write_text("vLLM, installed by Isentrope.")
    (place.environment / "file").write_text("x")


def test_removing_deletes_what_was_made_and_asks_first(place: Place) -> None:
    pretend(place)
    place.building.mkdir()  # as an interrupted one left it
    (place.root / "mine.txt").write_text("mine")
    refused = isentrope("remove", answer="n\n")
    assert (2, True) == (refused.returncode, place.environment.exists())
    done = isentrope("remove", answer="y\n")
    assert 0 == done.returncode, done.stderr
    assert f"{place.root} stays, for what else is in it." in done.stdout
    assert ["mine.txt"] == os.listdir(place.root)


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
