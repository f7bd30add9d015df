"""Guess: halving always wins, nothing that ignores the answers does."""

from __future__ import annotations

from hashlib import sha256

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import isentrope
from isentrope import Task, TextEnv
from isentrope_envs.guess import Guess

TASK = "1-7:3"  # between 1 and 7, three guesses; the number is 3
SPLITS = {
    "train": (312, "84b0e6f609e77945"),
    "dev": (64, "6ecbd7ca10722d26"),
    "test": (64, "6623203ea2ecf213"),
}


def every_task() -> list[Task]:
    return [task for members in Guess().tasks.values() for task in members]


def play(actions: list[str], task: str = TASK) -> list[tuple[str, float, bool, bool]]:
    """Return (observation, reward, terminated, success) of each step, up to the end."""
    env = isentrope.make("guess")
    env.reset(seed=0, options={"task": task})
    steps = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        steps.append((observation, float(reward), terminated, info.get("success", False)))
        if terminated:
            break
    return steps


def halve(env: TextEnv, task: Task) -> tuple[float, int]:
    """Play by halving, from the answers alone; return the return and the number of guesses."""
    low, high, total = int(task.data["low"]), int(task.data["high"]), 0.0
    env.reset(seed=0, options={"task": task.id})
    for turn in range(1, 100):
        guess = (low + high) // 2
        answer, reward, terminated, _, _ = env.step(f"Is it {guess}?")
        total += float(reward)
        if terminated:
            return total, turn
        low, high = (guess + 1, high) if answer == "higher" else (low, guess - 1)
    raise AssertionError("the episode does not end")


def test_the_observation_names_the_range_and_the_guesses() -> None:
    env = isentrope.make("guess")
    observation, info = env.reset(seed=0, options={"task": TASK})
    assert "A number from 1 to 7. 3 guesses." == observation
    assert {"task": TASK} == info


def test_halving_wins_every_task_within_its_guesses() -> None:
    env = isentrope.make("guess")
    results = [(task, *halve(env, task)) for task in every_task()]
    assert {1.0} == {total for _, total, _ in results}
    assert {3, 4} == {
        max(t for task, _, t in results if task.data["high"] - task.data["low"] + 1 == width)
        for width in (7, 15)
    }


def test_a_fixed_list_of_guesses_wins_only_for_the_numbers_on_it() -> None:
    won = {secret: play(["4", "2", "6"], f"1-7:{secret}")[-1][3] for secret in range(1, 8)}
    assert {1: False, 2: True, 3: False, 4: True, 5: False, 6: True, 7: False} == won


def test_the_answers_say_where_the_number_is() -> None:
    steps = play(["2", "4", "3"])
    assert [("higher", 0.0, False, False), ("lower", 0.0, False, False)] == steps[:2]
    assert ("", 1.0, True, True) == steps[2]


def test_the_last_number_of_a_turn_counts() -> None:
    assert ("", 1.0, True, True) == play(["not 7 and not 5 but 3."])[0]
    assert "lower" == play(["3 or rather 7"])[0][0]


def test_running_out_of_guesses_is_worth_the_share_of_the_range_that_was_excluded() -> None:
    assert [0.0, 0.0, pytest.approx(0.5 * 2 / 7)] == [s[1] for s in play(["2", "2", "2"])]
    assert pytest.approx(0.5 * 6 / 7) == play(["4", "2", "2"])[-1][1]
    assert pytest.approx(0.5 * 6 / 7) == play(["4", "2", "7"])[-1][1]
    assert pytest.approx(0.5 * 6 / 7) == play(["1", "2", "4"])[-1][1]


@pytest.mark.parametrize(
    "strange",
    ["", "higher", "three", "0", "99", "1000000000003", "3" * 100_000, "\u0663", "\u00b2", "\0"],
)
def test_a_guess_that_is_none_or_out_of_range_uses_up_a_turn(strange: str) -> None:
    steps = play([strange, strange, strange, "3"])
    assert [False, False, True] == [step[2] for step in steps]
    assert ("", 0.0, True, True) != steps[-1]
    assert not any(step[3] for step in steps)
    assert {0.0} == {step[1] for step in steps}, "it excluded nothing"
    assert play([strange, strange, "3"])[-1][3], "the number can still be guessed in the last turn"


def test_what_holds_no_number_is_asked_again() -> None:
    assert "Guess one whole number." == play(["three"])[0][0]


def test_a_huge_number_is_too_high_whatever_its_digits() -> None:
    assert "lower" == play(["1000000003"])[0][0]
    assert "lower" == play(["9" * 100_000])[0][0]
    assert ("", 1.0, True, True) == play(["0" * 20 + "3"])[0]


def test_going_back_on_an_answer_gives_nothing_back() -> None:
    after_detour = play(["4", "7", "1"])
    assert pytest.approx(0.5 * (1 - 2 / 7)) == after_detour[-1][1], "2 and 3 are left"


@given(st.lists(st.integers(0, 25).map(str), min_size=4, max_size=4), st.integers(5, 19))
def test_a_loss_is_worth_less_than_half_and_is_no_success(guesses: list[str], secret: int) -> None:
    *_, (_, reward, terminated, success) = play(guesses, f"5-19:{secret}")
    assert terminated
    assert success == (str(secret) in guesses)
    assert (reward == 1.0) if success else (0.0 <= reward < 0.5)


# ---------------------------------------------------------------- tasks


def test_the_splits_are_those_that_results_were_published_on() -> None:
    found = {
        split: (len(members), sha256("\n".join(t.id for t in members).encode()).hexdigest()[:16])
        for split, members in Guess().tasks.items()
    }
    assert SPLITS == found


def test_the_splits_are_disjoint() -> None:
    ids = [task.id for task in every_task()]
    assert len(ids) == len(set(ids))


def test_every_secret_is_in_its_range() -> None:
    for task in every_task():
        low, high, secret = (task.data[k] for k in ("low", "high", "secret"))
        assert low <= secret <= high
        assert f"{low}-{high}:{secret}" == task.id


# ---------------------------------------------------------------- demonstrations


def demonstrated(noise: float, count: int) -> list[bool]:
    env, rng = isentrope.make("guess"), np.random.default_rng(0)
    won = []
    for seed in range(count):
        env.reset(seed=seed)
        ended = False
        while not ended:
            action = env.demonstrate(rng, noise)
            assert action is not None
            _, _, ended, _, info = env.step(action)
        won.append(info["success"])
    return won


def test_a_demonstration_without_noise_always_wins() -> None:
    assert all(demonstrated(0.0, 300))


def test_a_demonstration_with_noise_wins_and_loses() -> None:
    assert 0.3 < np.mean(demonstrated(0.4, 300)) < 0.9


# ---------------------------------------------------------------- Gymnasium


@pytest.mark.filterwarnings("ignore::UserWarning")  # of render modes and specs, which it has not
def test_gymnasiums_checker_passes() -> None:
    check_env(Guess(), skip_render_check=True)


def test_it_works_in_a_gymnasium_vector() -> None:
    name = "isentrope-tests/Guess-v0"
    gymnasium.register(name, entry_point="isentrope_envs.guess:Guess", disable_env_checker=True)
    try:
        envs = gymnasium.make_vec(name, num_envs=2, vectorization_mode="sync")
        observations, _ = envs.reset(seed=3, options={"task": TASK})
        assert ["A number from 1 to 7. 3 guesses."] * 2 == list(observations)
        observations, rewards, terminated, _, _ = envs.step(("3", "4"))
        assert ["", "lower"] == list(observations)
        assert [1.0, 0.0] == rewards.tolist()
        assert [True, False] == terminated.tolist()
        envs.close()
    finally:
        del gymnasium.registry[name]
