"""Our scores against AppWorld's own of the same outputs, and the bundle for its leaderboard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import isentrope
from isentrope import Attempt, ConfigError
from isentrope_envs.appworld import leaderboard
from isentrope_envs.appworld.place import Place
from isentrope_envs.appworld.scores import scores
from tests.envs.appworld.test_parts import attempt

SPLIT, NAME = "test_normal", "isentrope_test_normal"


@pytest.fixture(scope="module")
def played(appworld: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Attempt]]:
    """Every task of a split, one in four given up, and one left in the middle."""
    outputs = tmp_path_factory.mktemp("outputs")
    env = isentrope.make("appworld", preset="short", outputs=str(outputs))
    attempts = []
    for number, task in enumerate(env.tasks[SPLIT]):
        env.reset(seed=0, options={"task": task.id})
        folder = appworld / "full" / "data" / "tasks" / task.id / "ground_truth"
        cells = json.loads((folder / "turns.json").read_text())
        if number % 4 == 1:
            cells = ["apis.supervisor.complete_task(answer=0)"]
        cells = cells[:-1] if number == 2 else cells
        for cell in cells:
            *_, info = env.step(f"```python\n{cell}\n```")
        attempts.append(attempt(task.id, 0, info.get("success", False)))
    env.close()
    return outputs, attempts


@pytest.mark.slow
def test_tgc_and_sgc_are_those_of_appworlds_own_evaluation(
    appworld: Path, played: tuple[Path, list[Attempt]], tmp_path: Path
) -> None:
    outputs, attempts = played
    place = Place(appworld)
    root = leaderboard.gather(place, outputs, NAME, SPLIT, tmp_path / "root")
    theirs = leaderboard.evaluate(place, root, NAME, SPLIT)
    ours = scores(attempts, place)
    verdicts = {task: found["success"] for task, found in theirs["individual"].items()}
    assert {a.task: a.success for a in attempts} == verdicts
    assert {True, False} == set(verdicts.values())
    expected = theirs["aggregate"]
    assert expected["task_goal_completion"] == pytest.approx(ours["all"].tgc, abs=0.06)
    assert expected["scenario_goal_completion"] == pytest.approx(ours["all"].sgc, abs=0.06)
    report = root / "experiments" / "outputs" / NAME / "evaluations" / f"{SPLIT}.txt"
    for line in report.read_text().splitlines():
        if "difficulty_" in line:
            level, tgc, sgc = (word.strip() for word in line.strip(" |").split("|"))
            found = ours.get(level.removeprefix("difficulty_"))
            if found is not None:
                assert float(tgc) == pytest.approx(found.tgc, abs=0.06)
                assert float(sgc) == pytest.approx(found.sgc, abs=0.06)


@pytest.mark.slow
def test_the_command_packs_what_the_leaderboard_takes(
    appworld: Path, played: tuple[Path, list[Attempt]], tmp_path: Path
) -> None:
    outputs, _ = played
    command = ["appworld", "pack", outputs, NAME, "--split", SPLIT, "--method", "scripted"]
    done = subprocess.run(
        [sys.executable, "-m", "isentrope", *command, "--llm", "none", "--url", "example.com"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    bundle = tmp_path / NAME / "experiments" / "outputs" / NAME / "leaderboard.bundle"
    assert f"Bundle: {bundle}\n" == done.stdout
    assert bundle.stat().st_size > 1000


@pytest.mark.slow
def test_outputs_that_are_not_whole_are_refused(
    appworld: Path, played: tuple[Path, list[Attempt]], tmp_path: Path
) -> None:
    outputs, attempts = played
    some = tmp_path / "some"
    some.mkdir()
    (some / f"{attempts[0].task}-x").mkdir()
    (some / f"{attempts[0].task}-y").mkdir()
    with pytest.raises(ConfigError, match=r"17 have none .*, and 1 more than one"):
        leaderboard.gather(Place(appworld), some, NAME, SPLIT, tmp_path / "root")
    with pytest.raises(ConfigError, match=r"There is no split 'tset'"):
        leaderboard.gather(Place(appworld), outputs, NAME, "tset", tmp_path / "root")


def test_what_the_leaderboard_does_not_take_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with pytest.raises(ConfigError, match="takes test_normal and test_challenge, not 'dev'"):
        leaderboard.pack(place, tmp_path, "x_dev", "dev", {})
    with pytest.raises(ConfigError, match="name must end in _test_normal"):
        leaderboard.pack(place, tmp_path, "x", "test_normal", {})
    with pytest.raises(ConfigError, match="name must be of a-z"):
        leaderboard.gather(place, tmp_path, "My Run", "test_normal", tmp_path)
