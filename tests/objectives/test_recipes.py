"""Recipes: what each is, and that two of them differ in what their papers differ in, no more."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from isentrope import Algorithm, EntropyTarget, recipe
from isentrope.components import id_of

RECIPES = ("rloo", "grpo", "repo-r")


def fields(part: Any) -> dict[str, Any]:
    """Return a part by its id and fields: what decides what it does."""
    return {"id": id_of(part), **attrs.asdict(part)}


def difference(first: str, second: str) -> dict[str, tuple[Any, Any]]:
    """Return the fields of `Algorithm` in which two recipes differ, parts as their fields."""
    one, other = recipe(first), recipe(second)
    found = {}
    for name in attrs.fields_dict(Algorithm):
        values = getattr(one, name), getattr(other, name)
        if values[0] != values[1]:
            found[name] = values
    return found


def test_rloo_is_leave_one_out_reinforce_on_policy() -> None:
    algorithm = recipe("rloo")
    assert {"id": "leave-one-out"} == fields(algorithm.advantage)
    assert {"id": "reinforce"} == fields(algorithm.objective)
    assert (1, None) == (algorithm.epochs, algorithm.minibatch)


def test_grpo_is_group_normalised_under_a_symmetric_clip_for_two_epochs_of_128() -> None:
    algorithm = recipe("grpo")
    normalised = {"id": "group-normalized", "correction": 1, "eps": 1e-6}
    assert normalised == fields(algorithm.advantage)
    clip = {"id": "clipped", "eps_low": 0.2, "eps_high": 0.2}
    assert clip == fields(algorithm.objective)
    assert (2, 128) == (algorithm.epochs, algorithm.minibatch)


def test_rloo_and_grpo_differ_in_estimator_objective_and_passes() -> None:
    assert {"advantage", "objective", "epochs", "minibatch"} == set(difference("rloo", "grpo"))


def test_repo_r_is_grpo_with_a_transform_and_a_ladder_and_nothing_else() -> None:
    found = difference("grpo", "repo-r")
    assert {"transforms", "controllers"} == set(found)
    assert ((), ()) == (found["transforms"][0], found["controllers"][0])
    (transform,) = found["transforms"][1]
    (ladder,) = found["controllers"][1]
    assert {"id": "repo-r", "zeta": 1e-4, "floor": None, "of": "present"} == fields(transform)
    expected = {"id": "entropy-ladder", "knob": "repo_r.zeta", "low": 1e-4, "high": 0.05}
    assert {**expected, "target": attrs.asdict(EntropyTarget())} == fields(ladder)


def test_repo_rs_zeta_begins_on_its_ladders_lowest_rung() -> None:
    algorithm = recipe("repo-r")
    (ladder,) = algorithm.controllers
    assert ladder.low == algorithm.initial_state().knobs["repo_r.zeta"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_normalises_like_the_paper(name: str) -> None:
    algorithm = recipe(name)
    assert ("seq-mean-token-mean", None) == (algorithm.aggregation, algorithm.norm_length)


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_asks_for_more_than_log_probs_or_keeps_groups_without_gradient(name: str) -> None:
    algorithm = recipe(name)
    assert (frozenset(), False) == (algorithm.needs, algorithm.keeps_zero_groups)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("rloo", set()),
        ("grpo", {"objective.eps_low", "objective.eps_high"}),
        ("repo-r", {"objective.eps_low", "objective.eps_high", "repo_r.zeta"}),
    ],
)
def test_the_knobs_of_a_recipe(name: str, knobs: set[str]) -> None:
    assert knobs == set(recipe(name).knobs())
