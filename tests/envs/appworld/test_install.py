"""Installing AppWorld: what is refused, what is made, what an interrupted one leaves."""

from __future__ import annotations

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
from isentrope_envs.appworld import data, install, interpreter
from isentrope_envs.appworld.checks import check
from isentrope_envs.appworld.engine import REQUIREMENTS, wanted_version
from isentrope_envs.appworld.place import Place


def isentrope(*arguments: object, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isentrope", "appworld", *map(str, arguments)]
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
    monkeypatch.setenv(Place.variable, str(tmp_path / "appworld"))
    return Place.default()


# What is refused


def test_every_requirement_is_pinned_and_appworlds_version_is_one_of_them() -> None:
    lines = [x for x in REQUIREMENTS.read_text().splitlines() if x and not x.startswith("#")]
    assert [] == [line for line in lines if not re.fullmatch(r"[\w-]+==[\w.]+", line)]
    assert f"appworld=={wanted_version()}" in lines


def test_an_unknown_kind_of_data_gets_the_known_ones(place: Place) -> None:
    with pytest.raises(UnknownNameError, match=r"Data 'tin' does not exist. Did you mean 'tiny'"):
        install(place.root, "tin")
    done = isentrope("install", "--data", "tin", "--root", place.root)
    assert (2, "error: Data 'tin' does not exist. Did you mean 'tiny'?\n") == (
        done.returncode,
        done.stderr,
    )
    assert not place.root.exists()


def test_a_path_with_memory_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="may not contain 'memory'"):
        install(tmp_path / "in-memory-of" / "appworld")
    assert [] == os.listdir(tmp_path)


@pytest.mark.slow
def test_a_step_that_fails_says_what_and_why_in_one_sentence(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(IsentropeError) as failed:
        install(place.root, say=silent)
    said = str(failed.value)
    assert said.startswith("pip install failed with exit status 1: ERROR: No matching"), said
    assert 1 == len(said.splitlines())
    kind, message = state(place)
    assert ("broken", True) == (kind, "; fix: isentrope appworld install" in message)
    assert ["README"] == os.listdir(place.root)


# What is removed


def pretend(place: Place) -> None:
    """Leave the folders of an installation, with nothing of AppWorld's."""
    place.root.mkdir(parents=True)
    place.readme.write_text("AppWorld, installed by Isentrope.")
    for folder in place.parts:
        folder.mkdir()
        (folder / "file").write_text("x")


def test_removing_deletes_what_was_made_and_asks_first(place: Place) -> None:
    pretend(place)
    (place.root / "mine.txt").write_text("mine")
    refused = isentrope("remove", answer="n\n")
    assert (2, True) == (refused.returncode, place.python.parents[1].exists())
    done = isentrope("remove", answer="y\n")
    assert 0 == done.returncode, done.stderr
    assert f"{place.root} stays, for what else is in it." in done.stdout
    assert ["mine.txt"] == os.listdir(place.root)


# The doctor, and what a second `install` repairs


def lose_interpreter(place: Place) -> None:
    for link in place.python.parent.glob("python*"):
        link.unlink()


def lose_requirements(place: Place) -> None:
    replace(place.root / "python" / "requirements.txt", "appworld==0.0\n")


def lose_version(place: Place) -> None:
    (about,) = place.root.glob("python/lib/python3*/site-packages/appworld-*.dist-info")
    replace(about / "METADATA", "Metadata-Version: 2.1\nName: appworld\nVersion: 9.9\n")


def lose_isentrope(place: Place) -> None:
    (link,) = place.root.glob("python/lib/python3*/site-packages/isentrope")
    link.unlink()
    link.symlink_to(place.root)


def lose_data(place: Place) -> None:
    shutil.rmtree(place.full / "data")


def lose_verification(place: Place) -> None:
    (place.full / "data" / data.STAMP).unlink()


def lose_agents_data(place: Place) -> None:
    shutil.rmtree(place.agent / "data")


def lose_agents_file(place: Place) -> None:
    next(place.agent.glob("data/tasks/*/specs.json")).unlink()


def add_ground_truth(place: Place) -> None:
    folder = next(place.agent.glob("data/tasks/*")) / "ground_truth"
    folder.mkdir()
    (folder / "answer.json").write_text("1")


def change_agents_file(place: Place) -> None:
    replace(next(place.agent.glob("data/tasks/*/specs.json")), "{}")


def replace(path: Path, text: str) -> None:
    """Write a file anew: its old content has other names."""
    path.unlink()
    path.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (lose_interpreter, "No such file"),
        (lose_requirements, "its interpreter is not finished, or of another version"),
        (lose_version, f"its interpreter has appworld 9.9, and not {wanted_version()}"),
        (lose_isentrope, "its interpreter sees the isentrope in"),
        (lose_data, "it has no data"),
        (lose_verification, "its data is not verified"),
        (lose_agents_data, "the agent's data is not the judges' without ground truth"),
        (lose_agents_file, "the agent's data is not the judges' without ground truth"),
        (add_ground_truth, "the agent's data is not the judges' without ground truth"),
        (change_agents_file, "the agent's data is not the judges' without ground truth"),
    ],
)
def test_the_doctor_says_what_is_broken(
    copy: Place, lose: Callable[[Place], None], told: str
) -> None:
    assert "ok" == state(copy)[0]
    lose(copy)
    kind, message = state(copy)
    assert "broken" == kind
    assert told in message
    assert "; fix: isentrope appworld install" in message


def link(root: Path, **targets: Path) -> Path:
    """Make what an interpreter that sees these packages has of them; return its path."""
    packages = root / "python" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    for name, target in targets.items():
        (packages / name).symlink_to(target)
    return root / "python" / "bin" / "python"


def test_an_interpreter_that_sees_another_checkout_is_of_no_use(tmp_path: Path) -> None:
    assert None is interpreter.fault(str(link(tmp_path / "right", **interpreter.LINKED)))
    (tmp_path / "other" / "isentrope").mkdir(parents=True)
    links = {**interpreter.LINKED, "isentrope": tmp_path / "other" / "isentrope"}
    there, here = tmp_path / "other", interpreter.LINKED["isentrope"].parent
    assert (
        f"its interpreter sees the isentrope in {there}, and not that in {here}; "
        "isentrope appworld install mends that."
    ) == interpreter.fault(str(link(tmp_path / "wrong", **links)))


@pytest.mark.slow
def test_making_the_environment_there_says_so(copy: Place) -> None:
    lose_isentrope(copy)
    program = "import isentrope; isentrope.make('appworld')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "Environment 'appworld' cannot be made: its interpreter sees the isentrope in" in last


@pytest.mark.slow
@pytest.mark.parametrize(
    "lose", [lose_isentrope, lose_agents_data, lose_agents_file, add_ground_truth]
)
def test_a_second_install_repairs_what_is_cheap(copy: Place, lose: Callable[[Place], None]) -> None:
    lose(copy)
    install(copy.root, say=silent)
    assert "ok" == state(copy)[0]


# What is made


@pytest.mark.slow
def test_the_agents_data_is_the_same_files_without_any_ground_truth(copy: Place) -> None:
    def files(root: Path) -> dict[str, int]:
        found = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.stat().st_ino for path in found}

    full, agent = files(copy.full / "data"), files(copy.agent / "data")
    public = {name: inode for name, inode in full.items() if "ground_truth" not in name}
    assert public == agent
    assert len(full) > len(agent) > 500
    assert [] == list((copy.agent / "data").rglob("ground_truth"))


@pytest.mark.slow
def test_isentrope_is_there_without_torch(copy: Place) -> None:
    program = (
        "import sys; from isentrope import NotebookEnv; import isentrope, isentrope_envs;"
        "print(isentrope.__file__, isentrope_envs.__file__, 'torch' in sys.modules)"
    )
    command = [str(copy.python), "-I", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy.root)
    roots = [Path(path).resolve().parent for path in done.stdout.split()[:2]]
    assert list(interpreter.LINKED.values()) == roots, done.stderr
    assert "False" == done.stdout.split()[2]
    command[-1] = "import torch"
    assert 1 == subprocess.run(command, capture_output=True, cwd=copy.root).returncode


@pytest.mark.slow
def test_real_data_is_never_deleted_unasked(copy: Place) -> None:
    (copy.full / "data" / data.STAMP).unlink()  # as somebody put it there
    for kind in (None, "real", "tiny"):
        with pytest.raises(ConfigError, match="holds AppWorld's real data, which would be deleted"):
            install(copy.root, kind)
    refused = isentrope("install", "--data", "tiny", answer="n\n")
    assert 2 == refused.returncode
    assert "Delete AppWorld's real data" in refused.stdout
    assert (copy.full / "data" / "tasks").is_dir()


@pytest.mark.slow
def test_a_download_that_fails_leaves_what_was_there(
    copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    before = (copy.full / "data").stat().st_ino
    with pytest.raises(IsentropeError) as failed:
        install(copy.root, "real", say=silent)
    assert 1 == len(str(failed.value).splitlines())
    said = str(failed.value)
    assert said.startswith("The download of AppWorld's data (the tiny one needs none) failed with")
    assert "requests.exceptions.ProxyError" in said
    assert ("ok", before) == (state(copy)[0], (copy.full / "data").stat().st_ino)
    assert not copy.building.exists()


@pytest.mark.slow
def test_data_that_the_engine_does_not_solve_is_not_put_in_place(
    copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = next(copy.root.glob("python/lib/python3*/site-packages/isentrope_envs"))
    wrong = copy.root / "isentrope_envs"
    shutil.copytree(interpreter.LINKED["isentrope_envs"], wrong)
    questions = wrong / "appworld" / "tiny" / "scenarios" / "questions.py"
    text = questions.read_text()
    assert "found += tag in tags" in text
    questions.write_text(text.replace("found += tag in tags", "found += 2 * (tag in tags)"))
    splits = wrong / "appworld" / "tiny" / "scenarios" / "__init__.py"
    splits.write_text(splits.read_text().replace("tuple(SCENARIOS),", '("notes",),'))
    monkeypatch.setitem(interpreter.LINKED, "isentrope_envs", wrong)
    before = (copy.full / "data").stat().st_ino
    with pytest.raises(IsentropeError, match=r"verification of the data failed: Passed \d+/21 tas"):
        install(copy.root, "tiny", say=silent)
    assert before == (copy.full / "data").stat().st_ino
    assert wrong == link.resolve()


@pytest.mark.slow
def test_an_installation_that_is_killed_never_looks_whole_and_is_finished_by_another(
    place: Place,
) -> None:
    killed_at(place, place.building / "python" / "bin" / "pip")
    assert not place.python.exists()
    assert "broken" == state(place)[0]

    killed_at(place, place.building / "full" / "data" / "tasks")
    interpreter_made = (place.root / "python").stat().st_ino
    assert ("broken", False) == (state(place)[0], place.full.joinpath("data").exists())
    assert not place.agent.joinpath("data").exists()

    done = isentrope("install")
    assert 0 == done.returncode, done.stderr
    assert re.search(r"Passed (\d+)/\1 tasks", done.stdout)
    assert "To undo it: isentrope appworld remove" in done.stdout
    assert interpreter_made == (place.root / "python").stat().st_ino  # that was not done again
    assert "ok" == state(place)[0]
    assert {"README", "python", "full", "agent", "cache"} == set(os.listdir(place.root))

    removed = isentrope("remove", "--yes")
    assert (0, False) == (removed.returncode, place.root.exists())


def killed_at(place: Place, there: Path) -> None:
    """Install, and kill all of it when a file is there."""
    command = [sys.executable, "-m", "isentrope", "appworld", "install"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 400
        while not there.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert (-signal.SIGKILL, True) == (process.returncode, there.exists())
