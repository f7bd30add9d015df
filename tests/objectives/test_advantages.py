"""Advantage estimators, against exact fractions and verl's published numbers."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isentrope import AdvantageEstimator
from isentrope_objectives.advantages import GroupCentered, GroupNormalized, LeaveOneOut

# verl 0.9.1, core_algos, float64: rewards of two groups, and what it makes of them.
VERL = {
    "rewards": [
        [0.18557370901107786, 0.29231659770011903, 1.095673644542694, 1.0644484758377075],
        [1.2778781235218049, 0.14205517172813414, 1.1784837365150451, 0.23867438435554503],
    ],
    "grpo_sample_std_eps_1e_6": [
        [-0.9716896051775273, -0.7528364260846169, 0.894273239088236, 0.8302527921739083],
        [0.9447611418379358, -0.9424556084071807, 0.7796132622821638, -0.7819187957129189],
    ],
    "rloo": [
        [-0.631905863682429, -0.4895820120970407, 0.5815607170263926, 0.5399271587530772],
        [0.7581403593222301, -0.7562902430693308, 0.6256145099798839, -0.627464626232783],
    ],
}
REWARDS = st.lists(st.fractions(-8, 8, max_denominator=64), min_size=2, max_size=9)


def published() -> list[dict[str, list[list[float]]]]:
    """Return the case above, and the data folder's own where there is one."""
    folder = os.environ.get("ISENTROPE_TEST_DATA")
    if not folder:
        return [VERL]
    cases = json.loads((Path(folder) / "oracle" / "policy_losses.json").read_text())["advantages"]
    return [VERL, *({name: by_group(case, name) for name in VERL} for case in cases)]


def by_group(case: dict[str, list], name: str) -> list[list[float]]:
    groups = dict.fromkeys(case["group"])
    return [[x for x, g in zip(case[name], case["group"], strict=True) if g == k] for k in groups]


def tensor(rewards: list[Fraction]) -> torch.Tensor:
    return torch.tensor([float(r) for r in rewards], dtype=torch.float64)


@given(REWARDS)
@example([Fraction(0), Fraction(1)])
def test_leave_one_out_subtracts_the_mean_of_the_others(rewards: list[Fraction]) -> None:
    expected = []
    for i, own in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i]
        expected.append(float(own - sum(others) / len(others)))
    found = LeaveOneOut()(tensor(rewards), [])
    assert torch.float64 == found.dtype
    assert pytest.approx(expected, rel=1e-13, abs=1e-13) == found.tolist()


@pytest.mark.parametrize("correction", [0, 1])
@given(rewards=REWARDS, eps=st.sampled_from([1e-6, 0.5]))
def test_group_normalized_counts_standard_deviations_from_the_mean(
    correction: int, rewards: list[Fraction], eps: float
) -> None:
    mean = sum(rewards) / len(rewards)
    variance = sum((r - mean) ** 2 for r in rewards) / (len(rewards) - correction)
    expected = [float(r - mean) / (math.sqrt(variance) + eps) for r in rewards]
    found = GroupNormalized(correction=correction, eps=eps)(tensor(rewards), [])
    assert torch.float64 == found.dtype
    # A group of equal rewards leaves round-off over eps: 1e-15 / 1e-6.
    assert pytest.approx(expected, rel=1e-9, abs=1e-8) == found.tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(REWARDS, min_size=1, max_size=4))
@example([[Fraction(0), Fraction(1)], [Fraction(1)] * 3 + [Fraction(0)] * 4])
def test_group_centered_subtracts_the_mean_of_its_own_group(groups: list[list[Fraction]]) -> None:
    """Of any size; and leave-one-out is that times G / (G - 1)."""
    for rewards in groups:
        size = len(rewards)
        expected = [r - sum(rewards) / size for r in rewards]
        found = GroupCentered()(tensor(rewards), [])
        assert torch.float64 == found.dtype
        assert pytest.approx([float(a) for a in expected], rel=1e-13, abs=1e-13) == found.tolist()
        others = [float(a * Fraction(size, size - 1)) for a in expected]
        assert pytest.approx(others, rel=1e-13, abs=1e-13) == (
            LeaveOneOut()(tensor(rewards), []).tolist()
        )


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupNormalized(), GroupCentered()])
@settings(max_examples=25, deadline=None)
@given(rewards=REWARDS, data=st.data())
def test_an_advantage_does_not_depend_on_the_order_of_rollouts(
    estimator: AdvantageEstimator, rewards: list[Fraction], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rewards))))
    plain = estimator(tensor(rewards), []).tolist()
    again = estimator(tensor([rewards[i] for i in order]), []).tolist()
    assert pytest.approx([plain[i] for i in order], rel=1e-6, abs=1e-8) == again


@pytest.mark.parametrize(
    ("estimator", "power"),
    [(LeaveOneOut(), 1), (GroupCentered(), 1), (GroupNormalized(eps=1e-12), 0)],
)
def test_advantages_grow_with_rewards_unless_they_are_normalised(
    estimator: AdvantageEstimator, power: int
) -> None:
    rewards = torch.tensor([0.0, 1.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = (100**power * estimator(rewards, [])).tolist()
    assert pytest.approx(expected, rel=1e-9) == estimator(100 * rewards, []).tolist()


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupNormalized(), GroupCentered()])
@given(rewards=REWARDS, shift=st.fractions(-8, 8, max_denominator=8))
def test_an_advantage_does_not_depend_on_where_rewards_begin(
    estimator: AdvantageEstimator, rewards: list[Fraction], shift: Fraction
) -> None:
    plain, shifted = (estimator(tensor(r), []) for r in (rewards, [r + shift for r in rewards]))
    assert pytest.approx(plain.tolist(), rel=1e-6, abs=1e-8) == shifted.tolist()
    assert pytest.approx(0, abs=1e-8) == float(plain.sum())


def test_equal_rewards_have_no_advantage_for_any_estimator() -> None:
    rewards = torch.full((7,), 0.1, dtype=torch.float64)
    centred = GroupCentered()
    for estimator in (LeaveOneOut(), GroupNormalized(correction=0), GroupNormalized(), centred):
        assert pytest.approx([0.0] * 7, abs=1e-9) == estimator(rewards, []).tolist()


def test_advantages_are_verls() -> None:
    for case in published():
        estimators = {"rloo": LeaveOneOut(), "grpo_sample_std_eps_1e_6": GroupNormalized(eps=1e-6)}
        for name, estimator in estimators.items():
            for rewards, expected in zip(case["rewards"], case[name], strict=True):
                found = estimator(torch.tensor(rewards, dtype=torch.float64), [])
                assert pytest.approx(expected, rel=1e-12) == found.tolist(), name


def test_leave_one_out_is_an_unbiased_policy_gradient() -> None:
    """Over every group of three that a softmax policy can draw, against the exact gradient.

    The group's own mean as a baseline would shrink it by (G - 1) / G.
    """
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.25, -0.5], dtype=torch.float64)
    logp = torch.log_softmax(logits, -1)
    (expected,) = torch.autograd.grad((logp.exp() * rewards).sum(), logits, retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for actions in product(range(3), repeat=3):
        drawn = list(actions)
        advantages = LeaveOneOut()(rewards[drawn], [])
        surrogate = surrogate + logp[drawn].sum().exp().detach() * (advantages * logp[drawn]).mean()
    (found,) = torch.autograd.grad(surrogate, logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("values", [{"correction": 2}, {"eps": 0.0}, {"eps": -1e-6}])
def test_a_parameter_that_cannot_be_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        GroupNormalized(**values)
