"""The objective: its contract, and its gradient against the closed form."""

from __future__ import annotations

import math

import pytest
import torch
from {{cookiecutter.package}}.objective import {{cookiecutter.class_name}}

from isentrope import TokenBatch, component
from isentrope.testing import check_objective


def test_it_keeps_the_contract() -> None:
    check_objective(component("objective", "{{cookiecutter.id}}")).raise_for_failures()


@pytest.mark.parametrize(("p", "weight"), [(0.2, 1.0), (0.3, 1.5), (0.8, 2.0)])
def test_the_gradient_is_the_advantage_under_a_bounded_weight(p: float, weight: float) -> None:
    logp = torch.tensor([math.log(p)], requires_grad=True)
    old, nothing = torch.tensor([math.log(0.2)]), torch.zeros(1, dtype=torch.int64)
    batch = TokenBatch(
        logp=logp,
        old_logp=old,
        engine_logp=old,
        advantage=torch.tensor([3.0]),
        mask=torch.ones(1, dtype=torch.bool),
        sequence=nothing,
        group=nothing,
        turn=nothing,
        num_sequences=1,
    )
    (gradient,) = torch.autograd.grad({{cookiecutter.class_name}}(bound=2.0)(batch).sum(), logp)
    assert pytest.approx(-3.0 * weight) == gradient.item()
