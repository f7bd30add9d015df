"""Training and evaluation on the real engine, with the policy that needs no download."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import isentrope

pytestmark = pytest.mark.slow
ENV = {"id": "appworld", "preset": "short", "difficulties": [1]}
MODEL = {
    "id": "tiny-qwen3",
    "hidden_size": 32,
    "layers": 1,
    "warmup_steps": 150,
    "warmup_batch": 32,
    "warmup_lr": 8e-3,
    "context": 384,
}
"""Right now and then, half right often: groups have unequal rewards."""
ROLLOUT = {"tasks": 4, "group": 8, "max_tokens": 96, "max_turns": 4}


@pytest.fixture(autouse=True)
def few_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demonstration takes a third of a second; the others of this file find the same policy."""
    monkeypatch.setattr("isentrope_plugins.tiny.model.DEMONSTRATIONS", 96)
    monkeypatch.setattr("isentrope_plugins.tiny.model.FINGERPRINT", 4)


@pytest.mark.parametrize("recipe", ["grpo", "repo-r"])
def test_a_tiny_policy_trains_on_the_real_engine(
    appworld: Path, tmp_path: Path, recipe: str
) -> None:
    workers: dict[str, Any] = {"count": 4, "start_deadline": 300.0}
    run = isentrope.train(
        env=ENV,
        algorithm=isentrope.recipe(recipe, minibatch=32, epochs=1),
        iterations=2,
        model=MODEL,
        rollout={**ROLLOUT, "workers": workers},
        out=tmp_path / "run",
    )
    assert [32] * 2 == [row["status/ok"] for row in run.metrics]
    assert all(row["turns_per_episode"] > 1 for row in run.metrics)
    assert all(row["groups_zero"] < 4 for row in run.metrics), "some groups have unequal rewards"
    assert all(row["grad_norm"] > 0 for row in run.metrics)
    assert 0 == sum(row["workers/killed"] + row["workers/leaked"] for row in run.metrics)
    judged = [e for e in run.episodes if e["stop_reason"] == "terminated"]
    assert judged
    for episode in judged:
        assert episode["metrics"]["passes"] / episode["metrics"]["tests"] == episode["reward"]
    cut = [e for e in run.episodes if e["stop_reason"] != "terminated"]
    assert cut
    assert {0.0} == {e["reward"] for e in cut}, "unfinished at a limit earns nothing"


def test_an_evaluation_has_appworlds_scores(appworld: Path, tmp_path: Path) -> None:
    rollout = {**ROLLOUT, "workers": {"start_deadline": 300.0}}
    fields = {name: value for name, value in MODEL.items() if name != "id"}
    model = isentrope.component("model", "tiny-qwen3", **fields, warmup_env=ENV)
    found = isentrope.evaluate(
        model, ENV, split="dev", k=2, rollout=rollout, out=tmp_path / "evaluation"
    )
    assert 0 == found.failed
    done = subprocess.run(
        [sys.executable, "-m", "isentrope", "appworld", "score", tmp_path / "evaluation"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    head, every, first = done.stdout.splitlines()
    assert ["difficulty", "tasks", "scenarios", "TGC", "SGC"] == head.split()
    assert f"{100 * found.success:.1f}" == every.split()[3] == first.split()[3]
