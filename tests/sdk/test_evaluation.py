"""Evaluation against brute force, and of a real run."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isentrope
from isentrope import ConfigError, Episode, Status, StopReason
from isentrope.evaluation.result import summarize


def episode(task: str, rollout: int, *, success: bool, status: Status = Status.OK) -> Episode:
    return Episode(
        task=task,
        seed=0,
        rollout=rollout,
        segments=(),
        messages=(),
        rewards=(float(success),),
        success=success,
        stop_reason=StopReason.TERMINATED if status is Status.OK else StopReason.FAILED,
        status=status,
    )


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_success(outcomes) -> None:
    episodes = [
        episode(str(t), r, success=s) for t, row in enumerate(outcomes) for r, s in enumerate(row)
    ]
    result = summarize(episodes, env="e", split="test", k=4)
    for k in range(1, 5):
        subsets = [[any(c) for c in itertools.combinations(row, k)] for row in outcomes]
        expected = sum(sum(s) / len(s) for s in subsets) / len(subsets)
        assert pytest.approx(expected) == result.pass_at[k]
    assert pytest.approx(result.success) == result.pass_at[1]


def test_failures_are_apart_from_wrong_answers() -> None:
    episodes = [
        episode("a", 0, success=True),
        episode("a", 1, success=False, status=Status.ENV_ERROR),
        episode("b", 0, success=False, status=Status.ENGINE_ERROR),
        episode("b", 1, success=False, status=Status.ENGINE_ERROR),
    ]
    result = summarize(episodes, env="e", split="test", k=2)
    assert (3, 1, 1.0) == (result.failed, result.tasks, result.success)
    assert 1.0 == result.pass_at[1]
    assert math.isnan(result.pass_at[2])  # no task has two rollouts that did not fail


def test_a_run_is_evaluated_as_it_was_trained_and_the_same_each_time(tiny_run) -> None:
    run = isentrope.train(**tiny_run)
    first, again = (isentrope.evaluate(run, split="dev", k=3, tasks=20) for _ in range(2))
    assert (20, 3, 60) == (first.tasks, first.k, len(first.episodes))
    assert 0 < first.success < 0.6
    assert first.pass_at[1] <= first.pass_at[2] <= first.pass_at[3]
    assert first == again
    assert first != isentrope.evaluate(str(run.path), split="dev", k=3, tasks=20, seed=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 0}, "k must be a whole number, at least 1; got 0"),
        ({"tasks": 0}, "tasks must be a whole number, at least 1; got 0"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"policy": "runs/nope"}, "neither a run folder nor the folder of a model"),
        ({"env": None}, "env is missing"),
        ({"env": "guss"}, "Did you mean 'guess'"),
        ({"split": "tests"}, "Did you mean 'test'"),
        ({"policy": "tiny-qwen"}, "Did you mean 'tiny-qwen3'"),
    ],
)
def test_wrong_names_and_numbers_are_one_sentence(options, told) -> None:
    arguments = {"policy": "tiny-qwen3", "env": "arithmetic", **options}
    with pytest.raises(ConfigError, match=told):
        isentrope.evaluate(arguments.pop("policy"), arguments.pop("env"), **arguments)
