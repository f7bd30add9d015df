"""The tiny world, as the real engine has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from isentrope_envs.appworld.place import Place

pytestmark = pytest.mark.slow

SPLITS = ("train", "dev", "test_normal", "test_challenge")
PLAY = Path(__file__).with_name("play.py")
COMPLETE = "apis.supervisor.complete_task()"


@pytest.fixture(scope="session")
def tiny(appworld: Path) -> Path:
    return Place(appworld).full / "data"


def ids(tiny: Path, split: str) -> list[str]:
    return (tiny / "datasets" / f"{split}.txt").read_text().split()


def everything(tiny: Path) -> list[str]:
    return [task for split in SPLITS for task in ids(tiny, split)]


def truth(tiny: Path, task: str, name: str) -> Any:
    return json.loads((tiny / "tasks" / task / "ground_truth" / f"{name}.json").read_text())


def labelled(tiny: Path, task: str, label: str) -> set[str]:
    tests = truth(tiny, task, "test_data")
    return {test["requirement"] for test in tests if test["label"] == label}


def play(tiny: Path, folder: Path, episodes: list[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    """Play them in the engine, without anything of ours between."""
    (folder / "episodes.json").write_text(json.dumps(episodes))
    (folder / "data").symlink_to(tiny)
    python = Place(tiny.parents[1]).python
    environment = {**os.environ, "APPWORLD_ROOT": str(folder), "IPYTHONDIR": str(folder)}
    command = [str(python), "-IB", str(PLAY), str(folder / "episodes.json"), str(folder / "out")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr[-2000:]
    verdicts: list[dict[str, Any]] = json.loads((folder / "out").read_text())
    return verdicts


def test_every_task_is_solved_by_its_turns(tiny: Path, tmp_path: Path) -> None:
    tasks = everything(tiny)
    turns = [truth(tiny, task, "turns") for task in tasks]
    found = play(tiny, tmp_path, list(zip(tasks, turns, strict=True)))
    for task, cells, verdict in zip(tasks, turns, found, strict=True):
        assert verdict["success"], task
        assert [False] * len(cells) + [True] == verdict["completed"]  # by the last, not before
        assert [] == [text for text in verdict["outputs"] if text.startswith("Execution failed")]


@pytest.mark.parametrize("cells", [[], [COMPLETE]], ids=["nothing", "complete"])
def test_who_does_nothing_passes_what_is_labelled_so(
    tiny: Path, tmp_path: Path, cells: list[str]
) -> None:
    tasks = everything(tiny)
    found = play(tiny, tmp_path, [(task, cells) for task in tasks])
    for task, verdict in zip(tasks, found, strict=True):
        assert labelled(tiny, task, "no_op_pass") == set(verdict["passes"]), task
        assert labelled(tiny, task, "no_op_fail"), task
        assert not verdict["success"]


WRONG = {
    "profile": ('me["', 'me["first_name"] + me["'),
    "cards": ("len(cards)", "len(cards) + 1"),
    "city": ("places[", "places[1 - "),
    "balance": ('money["venmo_balance"]', "100"),
    "notes": ("answer=len(notes)", "answer=len(notes) - 1"),
    "alarm": ('time="', 'enabled=False, time="'),
    "todo": ("is_completed=True", "priority='low', is_completed=True"),
    "pay": ("amount=", "amount=1 + "),
    "copy": ("content=text", "content=text[1:]"),
    "shop": ("text.splitlines()", "text.splitlines()[1:]"),
    "likes": ("for i in old", "for i in old[1:]"),
}
"""For each scenario, what to replace in a right solution to make it a wrong one."""


def test_what_is_nearly_right_is_no_success(tiny: Path, tmp_path: Path) -> None:
    episodes = []
    for name, (right, wrong) in WRONG.items():
        cells = truth(tiny, f"tiny{name}1_1", "turns")
        assert right in cells[-1], name
        episodes.append((f"tiny{name}1_1", [*cells[:-1], cells[-1].replace(right, wrong)]))
    found = play(tiny, tmp_path, episodes)
    for (task, cells), verdict in zip(episodes, found, strict=True):
        assert not verdict["outputs"][-1].startswith("Execution failed"), (task, verdict)
        assert verdict["completed"][-1], cells
        assert not verdict["success"], task


def test_there_is_a_wrong_solution_of_every_scenario(tiny: Path) -> None:
    names = {task.partition("_")[0].removeprefix("tiny")[:-1] for task in everything(tiny)}
    assert set(WRONG) == names


def test_ids_name_scenario_and_variant_and_every_scenario_has_three_in_a_split(tiny: Path) -> None:
    assert len(ids(tiny, "train")) >= 18
    for split in SPLITS:
        scenarios = [task.split("_") for task in ids(tiny, split)]
        names = dict.fromkeys(name for name, _ in scenarios)
        assert [[name, variant] for name in names for variant in "123"] == scenarios
    assert len(set(everything(tiny))) == len(everything(tiny))


def test_there_are_tasks_of_each_difficulty_and_the_easy_ones_are_short(tiny: Path) -> None:
    levels = {task: truth(tiny, task, "metadata")["difficulty"] for task in everything(tiny)}
    assert {1, 2, 3} == {levels[task] for task in ids(tiny, "train")}
    for split in SPLITS[1:]:
        assert 2 <= len({levels[task] for task in ids(tiny, split)})
    for task, level in levels.items():
        if level == 1:
            turns = truth(tiny, task, "turns")
            assert (True, True) == (len(turns) <= 3, len("\n".join(turns).splitlines()) <= 7)


def test_no_two_tasks_are_the_same(tiny: Path) -> None:
    seen = {}
    for task in everything(tiny):
        about = json.loads((tiny / "tasks" / task / "specs.json").read_text())
        databases = [path.read_text() for path in sorted((tiny / "tasks" / task).glob("dbs/*"))]
        what = json.dumps([about["instruction"], about["supervisor"], databases])
        assert what not in seen, (task, seen[what])
        seen[what] = task


def test_it_is_written_the_same_to_the_byte_by_another_process(tiny: Path, tmp_path: Path) -> None:
    root = tmp_path / "again"
    root.mkdir()
    python = Place(tiny.parents[1]).python
    command = [str(python), "-IB", "-m", "isentrope_envs.appworld.tiny", str(root)]
    environment = {**os.environ, "APPWORLD_ROOT": str(root), "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr[-2000:]
    files = sorted(path.relative_to(root / "data") for path in (root / "data").rglob("*"))
    assert len(files) > 1000
    differ = [
        str(file)
        for file in files
        if (root / "data" / file).is_file()
        and (root / "data" / file).read_bytes() != (tiny / file).read_bytes()
    ]
    assert [] == differ


def test_the_page_about_it_has_its_numbers(tiny: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "appworld.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| (\d+) \|$", page, re.MULTILINE))
    assert {split: str(len(ids(tiny, split))) for split in SPLITS} == rows
    assert f"{len(everything(tiny))} tasks of eleven kinds" in page
    assert 11 == len(WRONG)
