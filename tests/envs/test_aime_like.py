"""aime-like: answers against brute force from the text alone, and levels that differ."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import isentrope
from isentrope import ConfigError
from isentrope.testing import check_env
from isentrope_envs.aime_like import LEVELS

ALL = {
    "train": (4183, "2061d4514ecdee5d"),
    "dev": (480, "6356107f7aa828b8"),
    "test": (480, "fa0d82a4afa19c7d"),
}


def brute_force(text: str) -> int:
    """Answer a problem as it is worded, by going through everything that it speaks of."""
    a, b, *rest = map(int, re.findall(r"\d+", text))
    if text.startswith("A sequence begins with"):
        (place,) = rest
        return list(range(a, a + b * 1000, b))[place - 1]
    if text.startswith("Find the remainder"):
        (modulus,) = rest
        return a**b % modulus
    assert text.startswith("How many of 1 to")
    divisors = [rest[0], *rest[1:]]
    return len({m for d in divisors for m in range(d, b + 1, d)})


@pytest.mark.parametrize("level", LEVELS)
def test_every_answer_is_what_going_through_everything_finds(level: int) -> None:
    env = isentrope.make("aime-like", level=level)
    for members in env.tasks.values():
        for task in members:
            text, _ = env.reset(seed=0, options={"task": task.id})
            assert brute_force(text) == task.data["answer"], text
            assert 0 <= task.data["answer"] <= 999


@pytest.mark.parametrize("level", [*LEVELS, "all"])
def test_a_demonstration_without_noise_always_wins_and_with_noise_not(level: int | str) -> None:
    env, rng = isentrope.make("aime-like", level=level), np.random.default_rng(0)
    won = {0.0: 0, 0.3: 0, 1.0: 0}
    for noise in won:
        for seed in range(200):
            env.reset(seed=seed)
            won[noise] += env.step(str(env.demonstrate(rng, noise)))[4]["success"]
    assert 200 == won[0.0]
    assert 20 < won[0.3] < 180
    assert 40 > won[1.0]  # two slips may cancel out


def test_the_splits_are_those_that_results_were_published_on() -> None:
    found = {
        split: (len(members), sha256("\n".join(t.id for t in members).encode()).hexdigest()[:16])
        for split, members in isentrope.make("aime-like", level="all").tasks.items()
    }
    assert ALL == found


def test_a_level_is_a_part_of_all_of_them() -> None:
    whole = isentrope.make("aime-like", level="all").tasks
    parts = [isentrope.make("aime-like", level=level).tasks for level in LEVELS]
    for split, members in whole.items():
        assert {t.id for t in members} == {t.id for part in parts for t in part[split]}
        assert len(members) == sum(len(part[split]) for part in parts)


def test_solutions_grow_longer_with_the_level() -> None:
    rng, lengths = np.random.default_rng(0), []
    for level in LEVELS:
        env = isentrope.make("aime-like", level=level)
        texts = []
        for seed in range(100):
            env.reset(seed=seed)
            texts.append(len(str(env.demonstrate(rng))))
        lengths.append(np.mean(texts))
    assert lengths == sorted(lengths)
    assert 2 * lengths[0] < lengths[-1]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (r"\boxed{4}", 1.0),
        (r"1, 4 so \boxed{004}", 1.0),
        ("Final Answer: 4", 1.0),
        (r"\boxed{4} \boxed{5}", 0.0),
        (r"\boxed{\frac{8}{2}}", 0.0),  # nothing is computed here
        (r"\boxed{4, 5}", 0.0),
        ("so it is 4 I think", 0.0),
        ("", 0.0),
        (r"\boxed{" + "0" * 300 + "4}", 0.0),
    ],
)
def test_the_right_number_earns_1_and_all_else_0(answer: str, reward: float) -> None:
    env = isentrope.make("aime-like", level=1)
    task = next(t.id for m in env.tasks.values() for t in m if t.data["answer"] == 4)
    env.reset(seed=0, options={"task": task})
    _, earned, terminated, truncated, info = env.step(answer)
    assert (reward, True, False, reward == 1.0) == (earned, terminated, truncated, info["success"])


@pytest.mark.parametrize("level", [0, 5, "one", True, 1.5])
def test_only_four_levels_exist(level: object) -> None:
    with pytest.raises(ConfigError, match="level must be 1, 2, 3, 4 or 'all'"):
        isentrope.make("aime-like", level=level)


def test_it_keeps_its_contract() -> None:
    check_env("aime-like", deadline=None, level="all").raise_for_failures()


@pytest.mark.slow
def test_a_tiny_policy_learns_the_first_level_and_finds_the_second_harder(tmp_path: Path) -> None:
    model = {"id": "tiny-qwen3", "warmup_steps": 900, "warmup_noise": 0.5, "warmup_batch": 64}
    run = isentrope.train(
        {
            "env": {"id": "aime-like", "level": 1},
            "algorithm": {"recipe": "grpo", "epochs": 1},
            "model": model,
            "rollout": {"tasks": 16, "group": 8, "max_tokens": 48},
            "learner": {"lr": 3e-4},
            "iterations": 90,
            "out": str(tmp_path / "run"),
        }
    )
    rewards = [row["reward"] for row in run.metrics]
    assert np.mean(rewards[:8]) + 0.03 < np.mean(rewards[-8:])
    easy, hard = (
        isentrope.evaluate(run, {"id": "aime-like", "level": level}, split="test", k=4, tasks=120)
        for level in (1, 2)
    )
    assert hard.pass_at[1] + 0.05 < easy.pass_at[1] < easy.pass_at[4]
