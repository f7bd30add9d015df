"""skyrl-gym's environments: under the kit, on sums and on data of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import isentrope
from isentrope.testing import check_env

LIBRARY = "skyrl_gym"

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 x 7?"}]
ROW = {
    "data_source": "mine",
    "prompt": ASKED,
    "env_class": "gsm8k_multi_turn",
    "reward_spec": {"method": "rule", "ground_truth": "42"},
    "extra_info": {"max_turns": 3},
}


def written(folder: Path, *rows: Any) -> dict[str, str]:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return {"train": str(path)}


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_multi_turn", "aime"])
def test_an_environment_keeps_the_contract(name: str) -> None:
    check_env("skyrl", name=name).raise_for_failures()


@pytest.mark.parametrize(
    ("name", "turn", "reward", "success"),
    [
        ("gsm8k", "It is\n#### {}", 1.0, True),
        ("gsm8k", "It is {}", 0.0, False),
        ("aime", "Answer: {}", 1.0, True),
        ("aime", "Answer: {}1", -1.0, False),
    ],
)
def test_a_sum_is_judged_by_the_environments_own_rule(
    name: str, turn: str, reward: float, success: bool
) -> None:
    env = isentrope.make("skyrl", name=name)
    observation, _ = env.reset(seed=0, options={"task": "17+25"})
    assert observation.startswith("What is 17 + 25?")
    _, found, terminated, truncated, info = env.step(turn.format(42))
    assert (reward, success) == (found, info["success"])
    assert (True, False) == (terminated, truncated)


def test_rows_of_ones_own_are_the_tasks(tmp_path: Path) -> None:
    env = isentrope.make("skyrl", name="gsm8k_multi_turn", data=written(tmp_path, ROW))
    _, info = env.reset(seed=0, options={"task": "train-0"})
    assert ASKED == info["messages"]
    observation, reward, terminated, _, info = env.step("#### 41")
    assert (pytest.approx(0.2 / 3), False) == (reward, terminated)
    assert [{"role": "user", "content": observation}] == info["messages"]
    assert "tentative numeric answer" in observation
    _, reward, terminated, _, info = env.step("#### 42")
    assert (1.0, True, True) == (reward, terminated, info["success"])
    assert {"steps": 2.0} == info["metrics"]


def test_a_table_of_rows_is_read_as_lines_of_them_are(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([ROW]), tmp_path / "rows.parquet")
    envs = [
        isentrope.make("skyrl", name="gsm8k_multi_turn", data=data)
        for data in (written(tmp_path, ROW), {"train": str(tmp_path / "rows.parquet")})
    ]
    lines, table = (env.tasks["train"] for env in envs)
    assert lines == table


def test_a_row_that_lacks_the_answer_is_named(tmp_path: Path) -> None:
    data = written(tmp_path, {**ROW, "reward_spec": {}})
    with pytest.raises(isentrope.ConfigError, match=r"row 0.*ground_truth is required"):
        isentrope.make("skyrl", name="gsm8k_multi_turn", data=data)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"question": "?"}], "row 0: a row needs a prompt"),
        ([{**ROW, "env_class": "aime"}], "env_class is 'aime'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, rows: list[Any], sentence: str) -> None:
    with pytest.raises(isentrope.ConfigError, match=sentence):
        isentrope.make("skyrl", name="gsm8k_multi_turn", data=written(tmp_path, *rows))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "gsmk"}, "Did you mean 'gsm8k'"),
        ({"name": "lcb"}, "runs the code that the policy writes"),
        ({"name": "search"}, "needs a search server"),
        ({"name": "text2sql"}, "needs the data bases"),
        ({"name": "gsm8k", "data": {"train": "no.jsonl"}}, "There is no file 'no.jsonl'"),
        ({"name": "gsm8k", "data": {"train": __file__}}, "must be a .parquet or a .jsonl file"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(isentrope.ConfigError, match=sentence):
        isentrope.make("skyrl", **config)
