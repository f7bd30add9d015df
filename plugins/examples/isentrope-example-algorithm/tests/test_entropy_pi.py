"""The controller: against the sum that its formula stands for, and on a plant with an answer."""

from __future__ import annotations

from typing import Any

import pytest

import isentrope
from isentrope import ConfigError, Statistics
from isentrope.testing import check_controller
from isentrope_example_algorithm.entropy_pi import EntropyPI

KNOB = "repo_r.zeta"


def controller(**fields: Any) -> EntropyPI:
    given = {"knob": KNOB, "low": -1.0, "high": 1.0, "kp": 0.5, "ki": 0.25, "target": 1.0}
    return EntropyPI(**{**given, **fields})


def drive(part: EntropyPI, entropies: list[float], start: float = 0.0) -> list[float]:
    """Return the knob's value in each iteration."""
    value, memory, values = start, dict[str, Any](), []
    for iteration, entropy in enumerate(entropies):
        statistics = Statistics(
            iteration=iteration,
            entropy=entropy,
            initial_entropy=entropies[0],
            reward=0.0,
            success=0.0,
        )
        value = part.update(statistics, {KNOB: value}, memory)[KNOB]
        values.append(value)
    return values


def test_worked_by_hand() -> None:
    """Errors 0, 0.4, 0.2, -0.2: sums 0, 0.4, 0.6, 0.4."""
    values = drive(controller(), [1.0, 0.6, 0.8, 1.2], start=0.125)
    assert pytest.approx([0.125, 0.425, 0.375, 0.125]) == values


def test_unclipped_it_is_the_start_plus_both_terms() -> None:
    entropies = [0.9, 1.2, 0.7, 1.05, 0.99, 1.3, 0.6]
    errors = [1.0 - entropy for entropy in entropies]
    expected = [0.1 + 0.5 * e + 0.25 * sum(errors[: k + 1]) for k, e in enumerate(errors)]
    assert pytest.approx(expected) == drive(controller(), entropies, start=0.1)


def test_without_a_target_it_holds_the_first_entropy() -> None:
    free, fixed = controller(target=None), controller(target=0.7)
    entropies = [0.7, 0.5, 0.9, 0.8]
    assert drive(fixed, entropies) == drive(free, entropies)


def test_nothing_winds_up_behind_a_bound() -> None:
    values = drive(controller(), [0.0] * 100 + [1.5])
    assert {1.0} == set(values[1:100])
    assert pytest.approx(1.0 + 0.5 * (-0.5 - 1.0) + 0.25 * -0.5) == values[100]


@pytest.mark.parametrize(("ki", "settles"), [(0.25, 1.0), (0.0, 0.8)])
def test_the_integral_takes_away_the_offset_that_proportion_leaves(
    ki: float, settles: float
) -> None:
    """A plant whose entropy is 0.7 + knob, kp = 0.5: alone it settles where h = 0.7 + (1 - h) / 2.

    That is at h = 0.8.
    """
    part, value, memory, entropy = controller(ki=ki), 0.0, dict[str, Any](), 0.7
    for iteration in range(200):
        statistics = Statistics(
            iteration=iteration, entropy=entropy, initial_entropy=0.7, reward=0.0, success=0.0
        )
        value = part.update(statistics, {KNOB: value}, memory)[KNOB]
        entropy = 0.7 + value
    assert pytest.approx(settles) == entropy


@pytest.mark.parametrize("target", [None, 0.5])
def test_it_keeps_the_contract(target: float | None) -> None:
    part = isentrope.component(
        "controller", "example/entropy-pi", knob=KNOB, low=-0.5, high=0.5, target=target
    )
    check_controller(part, isentrope.recipe("example/cispo-pi")).raise_for_failures()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"low": 2.0}, r"high \(1\) must be at least low \(2\)"),
        ({"kp": -1.0}, "kp"),
        ({"ki": float("inf")}, "ki"),
        ({"ki": float("nan")}, "ki"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, float], told: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=told):
        controller(**wrong)
