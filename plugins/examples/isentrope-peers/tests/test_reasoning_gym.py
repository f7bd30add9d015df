"""reasoning-gym's data sets: against reasoning-gym itself, and under the kit."""

from __future__ import annotations

import importlib

import pytest

import isentrope
from isentrope.testing import check_env

LIBRARY = "reasoning_gym"

CHECKED = ["leg_counting", "chain_sum", "spell_backward", "pool_matrix", "knights_knaves"]


@pytest.mark.parametrize("dataset", CHECKED)
def test_a_data_set_keeps_the_contract(dataset: str) -> None:
    check_env("reasoning-gym", dataset=dataset).raise_for_failures()


def test_several_data_sets_can_be_mixed() -> None:
    parts = [{"name": "chain_sum", "weight": 1, "config": {"max_terms": 2}}]
    parts.append({"name": "spell_backward", "weight": 3, "config": {}})
    check_env("reasoning-gym", dataset="composite", datasets=parts).raise_for_failures()


def test_the_questions_are_the_items_of_the_data_set_in_order() -> None:
    settings = {"min_animals": 2, "max_animals": 3}
    items = importlib.import_module("reasoning_gym").create_dataset(
        "leg_counting", seed=11, size=7, **settings
    )
    env = isentrope.make("reasoning-gym", splits={"train": 4, "test": 3}, seed=11, **settings)
    asked = [
        env.reset(seed=0, options={"task": task.id})
        for split in env.tasks.values()
        for task in split
    ]
    assert [item["question"] for item in items] == [observation for observation, _ in asked]
    system, user = asked[0][1]["messages"]
    assert ("system", "user", items[0]["question"]) == (
        system["role"], user["role"], user["content"],
    )  # fmt: skip
    assert "<answer>" in system["content"]


@pytest.mark.parametrize(
    ("turn", "reward"),
    [
        ("<answer>{}</answer>", 1.0),
        ("<answer>1</answer> no: <answer> {} </answer>", 1.0),
        ("{}", 0.0),  # not in tags
        ("<answer>{} legs</answer>", None),  # for a part of it, the data set gives a part
        ("", 0.0),
    ],
)
def test_the_last_answer_counts_as_the_data_set_scores_it(turn: str, reward: float | None) -> None:
    env = isentrope.make("reasoning-gym")
    env.reset(seed=0, options={"task": "train-0"})
    items = importlib.import_module("reasoning_gym").create_dataset("leg_counting", seed=0)
    answer = items[0]["answer"]
    _, found, terminated, _, info = env.step(turn.format(answer))
    expected = items.score_answer(f"{answer} legs", items[0]) if reward is None else reward
    assert (expected, True, expected == 1.0) == (found, terminated, info["success"])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"dataset": "leg_countin"}, "Did you mean 'leg_counting'"),
        ({"min_animal": 3}, "Did you mean 'min_animals'"),
        ({"size": 10}, "is for splits to say"),
        ({"min_animals": -1}, "'leg_counting' cannot be made: AssertionError: min_animals"),
        ({"system_prompt": "defalt"}, "Did you mean 'default'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(isentrope.ConfigError, match=sentence):
        isentrope.make("reasoning-gym", **config)
