"""The AppWorld files in examples/, made small, on the real engine with the tiny world."""

from __future__ import annotations

from pathlib import Path

import pytest

import isentrope
from tests.envs.appworld.test_training import ENV, MODEL, ROLLOUT
from tests.envs.appworld.test_training import few_demonstrations as few_demonstrations
from tests.test_paper_examples import FOLDER, SMALL

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("appworld-qwen3-8b", "repo-r"), ("appworld-qwen3-32b-3nodes", "rloo")],
)
def test_a_small_run_of_an_appworld_file_learns(
    appworld: Path, tmp_path: Path, name: str, recipe: str
) -> None:
    assert isentrope.plan(FOLDER / f"{name}.toml").tasks is not None
    small = {"preset": ENV["preset"], "difficulties": ENV["difficulties"]}
    run = isentrope.train(
        FOLDER / f"{name}.toml",
        **{**SMALL, "rollout": {**SMALL["rollout"], **ROLLOUT, "workers": {"count": 4}}},
        env=small,
        model=MODEL,
        algorithm={"recipe": recipe},
        evaluation={"every": 2, "tasks": 2, "k": 1},
        out=tmp_path / "run",
    )
    assert [32, 32] == [row["episodes"] for row in run.metrics]
    assert sum(row["grad_norm"] for row in run.metrics if row["grad_norm"] is not None) > 0
    assert 0 == run.metrics[-1]["eval/failed"]
