"""Environments that others wrote, under our contract."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest

import isentrope
from isentrope import ConfigError, GymText, Unicode
from isentrope.testing import check_env

COUNTS = "tests.sdk.test_adapters:Counts"


class Counts(gymnasium.Env[str, str]):
    """Somebody's environment: say how many letters there are, in so many tries."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space = Unicode()
    action_space = Unicode()

    def __init__(self, tries: int = 2) -> None:
        self.tries = tries

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word, self.left = "x" * int(self.np_random.integers(1, 9)), self.tries
        return f"How long is {self.word}?", {"secret": len(self.word)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        right = action.strip() == str(len(self.word))
        metrics = {"metrics": {"left": self.left}, "secret": object()}
        return "No." * (not right), float(right), right or not self.left, False, metrics


def test_it_keeps_our_contract() -> None:
    splits = {"train": 20, "test": 5}
    check_env("isentrope:GymText", make=COUNTS, splits=splits).raise_for_failures()


def test_a_task_is_a_seed_and_the_highest_return_a_success() -> None:
    env = isentrope.make("isentrope:GymText", make=COUNTS, options={"tries": 3})
    assert (1000, 100, 100) == tuple(len(env.tasks[s]) for s in ("train", "dev", "test"))
    first, info = env.reset(seed=0, options={"task": "dev-3"})
    again, _ = env.reset(seed=5, options={"task": "dev-3"})
    assert first == again
    assert {"task": "dev-3"} == info
    assert ("No.", 0.0, False, False, {"metrics": {"left": 2}}) == env.step("a lot")
    size = len(first) - len("How long is ?")
    step = env.step(str(size))
    assert ("", 1.0, True, False, {"metrics": {"left": 1}, "success": True}) == step


def test_seeds_of_splits_are_disjoint() -> None:
    env = GymText(Counts, splits={"train": 3, "test": 2})
    seeds = [task.data["seed"] for tasks in env.tasks.values() for task in tasks]
    assert sorted(set(seeds)) == list(range(5))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("NoSuch-v0", "NameNotFound"),
        ("tests.nothing:Here", "No module named"),
        (len, "TypeError"),
        (5, "'package.module:factory' or a callable; got 5"),
        ("CartPole-v1", "'CartPole-v1' is not of text: its observations are such as array"),
    ],
)
def test_what_cannot_be_made_says_why(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GymText(make)


def test_options_are_a_table() -> None:
    with pytest.raises(ConfigError, match=r"options must be a table of arguments for .*got \[1\]"):
        GymText(Counts, options=[1])  # type: ignore[arg-type]  # the mistake


def test_an_environment_of_gymnasiums_registry_is_made_by_its_id() -> None:
    gymnasium.register("isentrope/Counts-v0", COUNTS)
    assert GymText("isentrope/Counts-v0").reset(seed=0)[0].startswith("How long")
