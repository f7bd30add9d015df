"""The recipe: what it is made of, and that a run moves and logs its knob."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

import isentrope

SMALL_MODEL = {
    "hidden_size": 32,
    "layers": 1,
    "warmup_steps": 150,
    "warmup_batch": 64,
    "warmup_lr": 8e-3,
}
"""Warms up in a few seconds, once; then it comes from the cache (``ISENTROPE_CACHE``)."""


def test_it_is_composed_of_our_parts_and_isentropes() -> None:
    algorithm = isentrope.recipe("example/cispo-pi")
    assert ["advantage", "objective", "repo_r", "entropy_pi"] == list(algorithm.slots())
    assert {"objective.eps_low", "objective.eps_high", "repo_r.zeta"} == set(algorithm.knobs())
    assert "token-mean" == algorithm.aggregation


def test_its_parts_can_be_changed_by_slot() -> None:
    algorithm = isentrope.recipe("example/cispo-pi", entropy_pi={"kp": 0.5})
    assert {"repo_r.zeta"} == set(algorithm.controllers[0].moves)
    with pytest.raises(isentrope.ConfigError, match="Did you mean 'eps_high'"):
        isentrope.recipe("example/cispo-pi", objective={"eps_hihg": 1.0})


def test_training_moves_the_knob_by_the_controllers_formula(tmp_path: Path) -> None:
    kp, ki = 0.5, 0.25
    run = isentrope.train(
        env="arithmetic",
        algorithm=isentrope.recipe(
            "example/cispo-pi", minibatch=16, entropy_pi={"kp": kp, "ki": ki}
        ),
        model=SMALL_MODEL,
        rollout={"tasks": 8, "group": 8, "max_tokens": 24},
        learner={"lr": 3e-3},
        iterations=3,
        out=tmp_path / "run",
    )
    errors = [m["entropy_target"] - m["entropy"] for m in run.metrics]
    expected = [kp * e + ki * total for e, total in zip(errors, accumulate(errors), strict=True)]
    zeta = [m["repo_r.zeta"] for m in run.metrics]
    assert 3 == len(set(zeta))
    assert pytest.approx(expected, abs=1e-9) == zeta
    assert any(m["grad_norm"] for m in run.metrics)
    assert any(m["objective/cispo_capped"] > 0 for m in run.metrics if m["steps"])
