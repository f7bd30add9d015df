"""TextArena's games for one player: against TextArena itself, under the kit, and in training."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import isentrope
from isentrope.testing import check_env
from isentrope_peers.textarena import plays_alone

LIBRARY = "textarena"

CHECKED = ["Secretary-v0", "Blackjack-v0", "FrozenLake-v0", "TowerOfHanoi-v0"]


@pytest.mark.parametrize("name", CHECKED)
def test_a_game_keeps_the_contract(name: str) -> None:
    check_env("textarena", name=name).raise_for_failures()


def test_numbers_of_thousands_of_digits_are_what_guess_the_number_fails_at() -> None:
    report = check_env("textarena", name="GuessTheNumber-v0")
    failed = {finding.check for finding in report.failures}
    assert {"hostile-actions", "reward-range"} == failed
    assert "4300 digits" in str(report)


def test_the_observations_are_what_its_wrapper_shows_less_the_policys_own_words() -> None:
    theirs = importlib.import_module("textarena").make("GuessTheNumber-v0")
    theirs.reset(num_players=1, seed=3)
    env = isentrope.make("textarena", name="GuessTheNumber-v0")
    observation, _ = env.reset(seed=0, options={"task": "train-3"})
    conversation = f"\n{observation}"
    assert theirs.get_observation()[1] == conversation
    for action in ("[10]", "11", "no number", "[12]"):  # its wrapper puts brackets around a bare 11
        theirs.step(action)
        observation, _, terminated, _, _ = env.step(action)
        assert not terminated
        said = action if action.startswith("[") else f"[{action}]"
        conversation += f"\n[Player] {said}\n{observation}"
        assert theirs.get_observation()[1] == conversation


def test_a_number_found_by_halving_is_a_success() -> None:
    env = isentrope.make("textarena", name="GuessTheNumber-v0")
    env.reset(seed=0, options={"task": "test-3"})
    low, high = 1, 20
    for _ in range(5):
        guess = (low + high) // 2
        said, reward, done, _, info = env.step(f"[{guess}]")
        if done:
            break
        low, high = (low, guess - 1) if "is lower" in said else (guess + 1, high)
    assert (1.0, True, True) == (reward, done, info["success"])
    assert {"invalid_move": 0.0} == info["metrics"]


def test_a_second_move_that_is_none_ends_a_game() -> None:
    env = isentrope.make("textarena", name="Secretary-v0")
    env.reset(seed=0)
    told, reward, terminated, _, _ = env.step("[perhaps]")
    assert (0.0, False) == (reward, terminated)
    assert "invalid move" in told
    _, reward, terminated, _, info = env.step("[perhaps]")
    assert (-1.0, True, False) == (reward, terminated, info["success"])
    assert {"invalid_move": 1.0} == info["metrics"]


def test_a_game_is_for_one_player_exactly_if_one_player_can_play_it() -> None:
    arena = importlib.import_module("textarena")
    tried = set()
    for spec in arena.envs.registration.ENV_REGISTRY.values():
        module, _, name = spec.entry_point.partition(":")
        if spec.entry_point in tried or name == "SokobanEnv":  # which takes its time to set up
            continue
        tried.add(spec.entry_point)
        try:
            game = getattr(importlib.import_module(module), name)(**spec.kwargs)
        except Exception:  # what cannot be made cannot be asked
            continue
        try:
            game.reset(num_players=1, seed=0)
            alone = isinstance(game.state, arena.SinglePlayerState)
        except Exception:  # each says in its own way how many it wants
            alone = False
        assert alone == plays_alone(type(game)), spec.id
    assert len(tried) > 50


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "GuessTheNumber"}, "Did you mean 'GuessTheNumber-v0'"),
        ({"name": "TicTacToe-v0"}, "has several players"),
        ({"name": "GuessTheNumber-v0", "max_turn": 3}, "Did you mean 'max_turns'"),
        ({"name": "TwentyQuestions-v0"}, re.escape("OPENROUTER_API_KEY")),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    config: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(isentrope.ConfigError, match=sentence):
        isentrope.make("textarena", **config)


def test_a_small_policy_that_guesses_can_play(tmp_path: Path) -> None:
    run = isentrope.train(
        env={"id": "textarena", "name": "GuessTheNumber-v0"},
        algorithm="grpo",
        model={
            "hidden_size": 32,
            "layers": 1,
            "context": 4096,
            "warmup_env": "guess",  # which hears "higher" and "lower" too
            "warmup_steps": 150,
            "warmup_batch": 32,
            "warmup_lr": 8e-3,
        },
        rollout={"tasks": 8, "group": 4, "max_tokens": 8, "max_turns": 12},
        iterations=2,
        out=tmp_path / "run",
    )
    assert [32, 32] == [metrics["status/ok"] for metrics in run.metrics]
    assert all(2 < metrics["turns_per_episode"] <= 12 for metrics in run.metrics)
    assert any(metrics["grad_norm"] for metrics in run.metrics)
    assert "env/invalid_move" in run.metrics[0]
