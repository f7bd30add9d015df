"""The controller: its contract, and one step by hand."""

from __future__ import annotations

import pytest
from {{cookiecutter.package}}.controller import {{cookiecutter.class_name}}

import isentrope
from isentrope import Statistics
from isentrope.testing import check_controller

CONTROLLER = {{cookiecutter.class_name}}(knob="objective.eps_high", low=0.1, high=0.5)


def test_it_keeps_the_contract() -> None:
    check_controller(CONTROLLER, isentrope.recipe("grpo")).raise_for_failures()


@pytest.mark.parametrize(("entropy", "expected"), [(0.5, 0.25), (1.0, 0.2), (9.0, 0.1)])
def test_it_moves_by_what_is_missing(entropy: float, expected: float) -> None:
    statistics = Statistics(
        iteration=1,
        entropy=entropy,
        initial_entropy=1.0,
        exact_entropy=None,
        initial_exact_entropy=None,
        reward=0.0,
        success=0.0,
    )
    moved = CONTROLLER.update(statistics, {"objective.eps_high": 0.2}, {})
    assert {"objective.eps_high": pytest.approx(expected)} == moved
