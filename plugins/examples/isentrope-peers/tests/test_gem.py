"""GEM's games: against GEM itself, and under the kit."""

from __future__ import annotations

import importlib
import random

import pytest

import isentrope
from isentrope.testing import check_env

LIBRARY = "gem"

GUESS = "game:GuessTheNumber-v0-hard"
CHECKED = [
    GUESS,
    "game:Mastermind-v0-easy",
    "game:Minesweeper-v0-random",
    "game:Sudoku-v0-easy",
    "game:Game2048-v0-easy",
]


@pytest.mark.parametrize("name", CHECKED)
def test_a_game_keeps_the_contract(name: str) -> None:
    check_env("gem", name=name).raise_for_failures()


@pytest.mark.parametrize("name", CHECKED)
def test_an_episode_is_the_one_that_gem_itself_plays(name: str) -> None:
    importlib.import_module("gem.envs")
    theirs = importlib.import_module("gem").make(name)
    env = isentrope.make("gem", name=name)
    observation, _ = env.reset(seed=0, options={"task": "train-7"})
    expected, info = theirs.reset(seed=7)
    moves = [r"\boxed{3}", r"\boxed{1 2}", r"\boxed{reveal 1 1}", r"\boxed{1 1 2}", r"\boxed{left}"]
    turns = 0
    for action in moves * 2:  # most games end at a turn that they cannot read
        assert observation.startswith(expected.rstrip("\n"))
        assert observation.endswith(info.get("suffix", ""))
        state = random.getstate()  # theirs draws from it, ours must not
        observation, reward, terminated, truncated, _ = env.step(action)
        assert state == random.getstate()
        expected, earned, ended, _, info = theirs.step(action)
        assert (earned, ended, False) == (pytest.approx(reward), terminated, truncated)
        turns += 1
        if ended:
            break
    assert turns


def test_a_number_found_by_halving_is_a_success() -> None:
    env = isentrope.make("gem", name=GUESS)
    env.reset(seed=0, options={"task": "test-3"})
    low, high, rewards = 1, 50, []
    for _ in range(7):
        guess = (low + high) // 2
        said, reward, done, truncated, info = env.step(rf"I say \boxed{{{guess}}}.")
        rewards.append(reward)
        if done:
            break
        low, high = (low, guess - 1) if "is lower" in said else (guess + 1, high)
    assert (True, False, True) == (done, truncated, info["success"])
    assert 1.0 == sum(rewards)


def test_running_out_of_turns_ends_a_game_with_what_it_gives_for_the_way_gone() -> None:
    env = isentrope.make("gem", name=GUESS, max_turns=2)
    opening, _ = env.reset(seed=0, options={"task": "train-0"})
    assert "within 2 turns" in opening
    target = env.unwrapped.env._game.game_number
    away = [n for n in (10, 40, 25) if n != target][:2]
    env.step(rf"\boxed{{{away[0]}}}")
    _, reward, terminated, truncated, info = env.step(rf"\boxed{{{away[1]}}}")
    assert pytest.approx(1 - abs(away[1] - target) / 49) == reward
    assert (True, False, False) == (terminated, truncated, info["success"])


def test_what_a_game_cannot_read_ends_it_with_a_tenth_below_nothing() -> None:
    env = isentrope.make("gem", name=GUESS)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("25")
    assert (-0.1, True, False) == (reward, terminated, info["success"])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "game:GuesTheNumber-v0-hard"}, f"Did you mean '{GUESS}'"),
        ({"name": "rg:leg_counting"}, "'reasoning-gym' with dataset = 'leg_counting'"),
        ({"name": "math:GSM8K"}, "only GEM's games can be used"),
        ({"name": GUESS, "max_turn": 3}, "Did you mean 'max_turns'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(isentrope.ConfigError, match=sentence):
        isentrope.make("gem", **config)
