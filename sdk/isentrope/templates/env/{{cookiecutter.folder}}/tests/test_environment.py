"""The environment: its contract, and its rules."""

from __future__ import annotations

import pytest

import isentrope
from isentrope.testing import check_env


def test_it_keeps_the_contract() -> None:
    check_env("{{cookiecutter.id}}").raise_for_failures()


@pytest.mark.parametrize(
    ("said", "reward", "success"),
    [
        ("cba", 1.0, True),
        (" cba\n", 1.0, True),
        ("cb", 2 / 3, False),
        ("abc", 1 / 3, False),
        ("", 0.0, False),
    ],
)
def test_the_reward_is_the_share_of_right_letters(
    said: str, reward: float, success: bool
) -> None:
    env = isentrope.make("{{cookiecutter.id}}")
    observation, _ = env.reset(seed=0, options={"task": "abc"})
    assert observation == "Say abc backwards."
    _, found, terminated, truncated, info = env.step(said)
    assert (found, info["success"]) == (pytest.approx(reward), success)
    assert (terminated, truncated) == (True, False)
