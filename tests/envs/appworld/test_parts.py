"""What of AppWorld's environment needs no engine: rewards, prompts, routes, scores."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from isentrope import Attempt, ConfigError
from isentrope_envs.appworld import prompts, rewards
from isentrope_envs.appworld.place import Place
from isentrope_envs.appworld.prompts import capped
from isentrope_envs.appworld.routes import Routes, size
from isentrope_envs.appworld.scores import scores


def verdict(passed: list[str], failed: list[str]) -> dict[str, Any]:
    return {
        "success": not failed,
        "num_tests": len(passed) + len(failed),
        "passes": [{"label": label} for label in passed],
        "failures": [{"label": label} for label in failed],
    }


FAIL, PASS = "no_op_fail", "no_op_pass"


@pytest.mark.parametrize(
    ("found", "fraction", "gated", "success"),
    [
        (verdict([FAIL, PASS], []), 1.0, 1.0, 1.0),
        (verdict([PASS], [FAIL]), 0.5, 0.0, 0.0),  # doing nothing
        (verdict([FAIL], [PASS]), 0.5, 0.0, 0.0),  # what was asked, and harm beside it
        (verdict([FAIL, PASS], [FAIL]), 2 / 3, 0.5, 0.0),
        (verdict([PASS], []), 1.0, 1.0, 1.0),  # nothing was to be done
    ],
)
def test_rewards(found: dict[str, Any], fraction: float, gated: float, success: float) -> None:
    expected = {"fraction": fraction, "gated": gated, "success": success}
    assert expected == {name: reward(found) for name, reward in rewards.REWARDS.items()}


TASK = {
    "instruction": "Water {the} plants.",
    "date": "Thursday, 18 May 2023, 12:00",
    "first_name": "Ada",
    "last_name": "Nor{th}",
    "email": "ada@example.com",
    "phone_number": "5550100001",
}


def test_a_preset_says_who_asks_what_and_when() -> None:
    system, *example, asked = prompts.preset("appworld").opening(TASK)
    assert "system" == system["role"]
    assert all(TASK[key] in system["content"] for key in ("date", "first_name", "email"))
    assert "Nor{th}" in system["content"]
    assert ["user", "assistant"] * 3 == [message["role"] for message in example]
    assert asked["content"].endswith("Task: Water {the} plants.")
    assert [{"role": "user", "content": TASK["instruction"]}] == prompts.PRESETS["short"].opening(
        TASK
    )


def test_examples_are_read_by_the_presets_own_rules() -> None:
    for preset in prompts.PRESETS.values():
        for role, content in prompts.EXAMPLE:
            assert (1 if role == "assistant" else 0) == len(
                preset.blocks.parse(content)
            ) or role == "user"


def test_loop_says_the_task_again_and_runs_every_block() -> None:
    two = "```python\na\n```\n```py\nb\n```"
    loop, appworld = prompts.preset("loop"), prompts.preset("appworld")
    assert "Output:\n```\n7\n```\n\nThe task, once more: Water {the} plants." == loop.answer(
        "7", TASK
    )
    assert "Output:\n```\n7\n```" == appworld.answer("7", TASK)
    assert (40, None) == (loop.turns, appworld.turns)
    assert (["a", "b"], ["a"]) == (loop.blocks.parse(two), appworld.blocks.parse(two))


def test_long_output_is_cut_at_the_end_of_a_line_and_says_so() -> None:
    assert "one\ntwo" == capped("one\ntwo", 7)
    assert "one\n[... 3 more characters were cut off ...]" == capped("one\ntwo", 6)
    assert "xxxx[... 6 more characters were cut off ...]" == capped("x" * 10, 4)


@pytest.fixture
def routes(tmp_path: Path) -> Routes:
    docs = {
        "show_note": {"path": "/simple_note/notes/{note_id}", "method": "GET"},
        "login": {"path": "/simple_note/auth/token", "method": "POST"},
    }
    (tmp_path / "simple_note.json").write_text(json.dumps(docs))
    return Routes(tmp_path)


@pytest.mark.parametrize(
    ("method", "url", "data"),
    [
        ("get", "simple_note/notes/3", {"params": {}, "headers": {}}),
        ("get", "simple_note/notes/3?page=1", {}),
        ("post", "simple_note/auth/token", {"data": {"username": "x"}}),
    ],
)
def test_documented_requests_are_let_through(
    routes: Routes, method: Any, url: Any, data: Any
) -> None:
    assert routes.allow(method, url, data)


@pytest.mark.parametrize(
    ("method", "url", "data"),
    [
        ("post", "simple_note/notes/3", {}),
        ("get", "simple_note/notes", {}),
        ("get", "simple_note/notes/3/4", {}),
        ("get", "simple_note/notes/..", {}),
        ("get", "simple_note/notes/%2e%2e", {}),
        ("get", "simple_note/notes/%2e%2e%2fdbs", {}),
        ("post", "dbs", {}),
        ("post", "admin/credit", {}),
        ("get", "http://127.0.0.1/simple_note/notes/3", {}),
        ("__class__", "simple_note/notes/3", {}),
        ("request", "simple_note/notes/3", {}),
        ("get", ["simple_note/notes/3"], {}),
        (None, "simple_note/notes/3", {}),
        ("get", "simple_note/notes/3", []),
        ("get", "simple_note/notes/3", {"timeout": 9}),
    ],
)
def test_everything_else_is_not(routes: Routes, method: Any, url: Any, data: Any) -> None:
    assert not routes.allow(method, url, data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_no_json_holds_is_infinitely_large(value: Any) -> None:
    assert math.inf == size("x", {"json": {"answer": value}})
    assert len('["x", {"json": {"answer": "\u00e9"}}]') + 1 == size(
        "x", {"json": {"answer": "\u00e9"}}
    )


def attempt(task: str, rollout: int, success: bool, status: str = "ok") -> Attempt:
    return Attempt(
        task=task,
        rollout=rollout,
        seed=0,
        reward=float(success),
        success=success,
        judged=True,
        status=status,
        stop_reason="terminated",
        turns=1,
        tokens=1,
        metrics={},
        messages=(),
        report="",
        error=None,
    )


def place_of(tmp_path: Path, levels: dict[str, int]) -> Place:
    for task, level in levels.items():
        folder = tmp_path / "full" / "data" / "tasks" / task / "ground_truth"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(json.dumps({"difficulty": level}))
    return Place(tmp_path)


def test_a_scenario_counts_only_whole(tmp_path: Path) -> None:
    right = {"a_1": True, "a_2": True, "b_1": True, "b_2": False, "c_1": False}
    place = place_of(tmp_path, {"a_1": 1, "a_2": 1, "b_1": 2, "b_2": 2})  # c's is not here
    found = scores([attempt(task, 0, success) for task, success in right.items()], place)
    assert ["all", "1", "2"] == list(found)
    assert (5, 3, 60.0, pytest.approx(100 / 3)) == tuple(
        getattr(found["all"], name) for name in ("tasks", "scenarios", "tgc", "sgc")
    )
    assert (100.0, 100.0, 50.0, 0.0) == (
        found["1"].tgc,
        found["1"].sgc,
        found["2"].tgc,
        found["2"].sgc,
    )


def test_with_several_attempts_each_pass_is_scored_alike(tmp_path: Path) -> None:
    """A brute-force oracle: AppWorld's definition, pass by pass."""
    rng = random.Random(5)
    table = {
        (f"s{s}_{v}", r): rng.random() < 0.7 for s in range(6) for v in range(3) for r in range(4)
    }
    found = scores([attempt(t, r, ok) for (t, r), ok in table.items()], Place(tmp_path))["all"]
    tgc = sum(table.values()) / len(table)
    whole = [all(table[f"s{s}_{v}", r] for v in range(3)) for s in range(6) for r in range(4)]
    assert pytest.approx(100 * tgc) == found.tgc
    assert pytest.approx(100 * sum(whole) / len(whole)) == found.sgc


def test_a_failed_attempt_solved_nothing(tmp_path: Path) -> None:
    found = scores([attempt("a_1", 0, True, "timeout")], Place(tmp_path))
    assert 0.0 == found["all"].tgc


@pytest.mark.parametrize("rollouts", [[], [("a_1", 0), ("a_1", 1), ("a_2", 0)]])
def test_scores_need_as_many_attempts_at_every_task(
    tmp_path: Path, rollouts: list[tuple[str, int]]
) -> None:
    with pytest.raises(ConfigError, match="as many at every task"):
        scores([attempt(task, rollout, True) for task, rollout in rollouts], Place(tmp_path))
