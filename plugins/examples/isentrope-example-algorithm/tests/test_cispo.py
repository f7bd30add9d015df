"""CISPO: against hand-worked numbers, its closed form, and an enumerated policy gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

import isentrope
from isentrope import TokenBatch
from isentrope.testing import check_objective
from isentrope_example_algorithm.cispo import Cispo


def batch(logp: torch.Tensor, old: Sequence[float], advantage: Sequence[float]) -> TokenBatch:
    """Return one episode of these tokens; old and logp are log-probs."""
    tokens, old_logp = len(logp), torch.tensor(old)
    zeros = torch.zeros(tokens, dtype=torch.int64)
    return TokenBatch(
        logp=logp,
        old_logp=old_logp,
        engine_logp=old_logp,
        advantage=torch.tensor(advantage),
        mask=torch.ones(tokens, dtype=torch.bool),
        sequence=zeros,
        group=zeros,
        turn=zeros,
        num_sequences=1,
    )


def loss_and_gradient(part: Cispo, p: float, old: float, advantage: float) -> tuple[float, float]:
    """Return a token's loss, and its derivative by the log-prob; p, old: probabilities."""
    logp = torch.tensor([math.log(p)], requires_grad=True)
    (loss,) = part(batch(logp, [math.log(old)], [advantage]))
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient.item()


@pytest.mark.parametrize(
    ("p", "old", "advantage", "weight"),
    [
        (0.25, 0.25, 2.0, 1.0),
        (0.275, 0.25, 2.0, 1.1),
        (0.5, 0.25, 2.0, 1.3),  # capped; PPO's clip would leave no gradient
        (0.5, 0.25, -2.0, 1.3),  # capped too, where PPO's clip would let 2 pass
        (0.25, 0.5, -1.0, 0.8),  # raised; PPO's clip would leave no gradient
        (0.25, 0.5, 1.0, 0.8),
        (0.5, 0.25, 0.0, 1.3),
    ],
)
def test_the_loss_is_the_log_prob_under_a_clipped_weight(
    p: float, old: float, advantage: float, weight: float
) -> None:
    loss, gradient = loss_and_gradient(Cispo(eps_low=0.2, eps_high=0.3), p, old, advantage)
    assert pytest.approx(-weight * advantage * math.log(p), abs=1e-6) == loss
    assert pytest.approx(-weight * advantage, abs=1e-6) == gradient


def test_by_default_no_weight_is_raised_as_in_the_paper() -> None:
    _, gradient = loss_and_gradient(Cispo(), p=0.001, old=0.5, advantage=-1.0)
    assert pytest.approx(0.002) == gradient


def test_unclipped_it_is_the_policy_gradient_of_samples_from_the_old_policy() -> None:
    """Expectation over the old policy of its gradient = gradient of the expected advantage."""
    scores = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    advantage = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad((scores.softmax(0) * advantage).sum(), scores)
    every_action = batch(scores.log_softmax(0), old.log().tolist(), advantage.tolist())
    loss = (old * Cispo(eps_high=10.0)(every_action)).sum()
    (found,) = torch.autograd.grad(-loss, scores)
    assert torch.allclose(expected, found, atol=1e-6)


def test_what_a_bound_decided_is_logged() -> None:
    tokens = batch(torch.tensor([0.5, 0.25, 0.25]).log(), [math.log(0.25)] * 2 + [0.0], [1.0] * 3)
    found = Cispo(eps_low=0.2).diagnostics(tokens)
    assert [True, False, False] == found["cispo_capped"].tolist()
    assert [False, False, True] == found["cispo_raised"].tolist()


@pytest.mark.parametrize("eps_low", [0.2, 1.0])
def test_it_keeps_the_contract(eps_low: float) -> None:
    part = isentrope.component("objective", "example/cispo", eps_low=eps_low)
    check_objective(part).raise_for_failures()
