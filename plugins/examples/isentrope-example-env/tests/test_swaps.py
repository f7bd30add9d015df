"""Swaps: against a search that knows nothing of cycles, under the kit, and in training."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

import isentrope
from isentrope.testing import check_env
from isentrope_example_env.swaps import Swaps, fewest_swaps, swapped

SMALL_MODEL = {
    "hidden_size": 32,
    "layers": 1,
    "warmup_steps": 150,
    "warmup_batch": 64,
    "warmup_lr": 8e-3,
}
"""Warms up in a few seconds, once; then it comes from the cache (``ISENTROPE_CACHE``)."""


def play(*actions: str, task: str = "bcaed") -> list[tuple[str, float, bool, bool]]:
    """Return (observation, reward, terminated, success) of each step."""
    env = isentrope.make("example/swaps")
    env.reset(seed=0, options={"task": task})
    steps = [env.step(action) for action in actions]
    return [(seen, float(r), done, info.get("success", False)) for seen, r, done, _, info in steps]


@pytest.mark.parametrize("env", ["example/swaps", "example/swaps-hard"])
def test_the_environments_keep_the_contract(env: str) -> None:
    check_env(env).raise_for_failures()


def test_the_fewest_swaps_are_those_that_a_search_finds() -> None:
    distance, frontier = {"abcde": 0}, ["abcde"]
    for order in frontier:  # breadth first, from the goal: it grows while it is walked through
        for one, other in combinations("abcde", 2):
            found = swapped(order, one, other)
            if found not in distance:
                distance[found] = distance[order] + 1
                frontier.append(found)
    assert 120 == len(distance)
    assert distance == {order: fewest_swaps(order) for order in distance}


def test_an_episode_shows_the_order_and_the_swaps_left_before_each_turn() -> None:
    env = isentrope.make("example/swaps")
    observation, info = env.reset(seed=0, options={"task": "bcaed"})
    assert "Sort b c a e d in 3 swaps." == observation
    assert {"task": "bcaed"} == info
    assert [
        ("Sort a c b e d in 2 swaps.", 0.0, False, False),
        ("Sort a b c e d in 1 swaps.", 0.0, False, False),
        ("", 1.0, True, True),
    ] == play("a b", "b c", "d e")


@pytest.mark.parametrize("wasted", ["", "a", "a b c", "a z", "A B", "swap a b", "b b"])
def test_a_turn_that_swaps_nothing_is_wasted(wasted: str) -> None:
    assert [("Sort b c a e d in 2 swaps.", 0.0, False, False)] == play(wasted)


@pytest.mark.parametrize(
    ("actions", "earned"),
    [
        (["", "", ""], 0.0),
        (["a b", "", ""], 0.5 / 3),
        (["e d", "a b", ""], 1 / 3),
        (["a b", "a b", "e d"], 0.5 / 3),
        (["a e", "", ""], 0.0),  # further away than at first
    ],
)
def test_running_out_of_swaps_earns_up_to_a_half_by_the_way_gone(
    actions: list[str], earned: float
) -> None:
    *_, (_, reward, terminated, success) = play(*actions)
    assert (True, False) == (terminated, success)
    assert pytest.approx(earned) == reward


def test_splits_hold_every_unsorted_order_once() -> None:
    tasks = Swaps().tasks
    sizes = {split: len(members) for split, members in tasks.items()}
    assert {"train": 73, "dev": 23, "test": 23} == sizes
    assert 119 == len({task.id for members in tasks.values() for task in members})


@pytest.mark.parametrize("letters", [2, 8])
def test_a_number_of_letters_that_cannot_be_is_refused(letters: int) -> None:
    with pytest.raises(isentrope.ConfigError, match=f"letters must be 3 to 7; got {letters}"):
        isentrope.make("example/swaps", letters=letters)


def test_a_small_policy_learns_on_it(tmp_path: Path) -> None:
    run = isentrope.train(
        env={"id": "example/swaps", "letters": 4},
        algorithm="grpo",
        model=SMALL_MODEL,
        rollout={"tasks": 8, "group": 8, "max_tokens": 8, "max_turns": 6},
        iterations=2,
        out=tmp_path / "run",
    )
    first, second = run.metrics
    assert 0 < first["success"] < 1  # partly right, and not always
    assert 1 < first["turns_per_episode"] <= 4
    assert "env/swaps_missing" in first
    assert any(metrics["grad_norm"] for metrics in (first, second))
