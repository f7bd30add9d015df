"""The package cut-cross-entropy against our own head; `test_cut` runs this where there is one."""

from __future__ import annotations

import pytest
import torch

from isentrope.learner.cut import CutCrossEntropy
from isentrope.learner.head import token_scores
from isentrope.learner.policy import Policy
from tests.sdk.test_cut import qwen3, some_inputs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_package_itself_gives_our_log_probs_and_gradients(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 64, generator=generator, requires_grad=True)
    weight = (torch.randn(500, 64, generator=generator) * 0.3).requires_grad_()
    target = torch.randint(500, (40,), generator=generator)
    cut = CutCrossEntropy.load(hidden.device, bias=False)
    theirs = cut(hidden, weight, target, temperature)
    ours = token_scores(hidden, weight, None, target, temperature).logp
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-6)
    mixture = torch.linspace(-1, 1, 40)
    for a, b in zip(
        torch.autograd.grad((mixture * theirs).sum(), [hidden, weight]),
        torch.autograd.grad((mixture * ours).sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_package_itself_gives_a_policy_its_log_probs() -> None:
    inputs = some_inputs()
    ours = Policy(qwen3(), 0.7, None)(inputs).logp
    theirs = Policy(qwen3(), 0.7, None, "cut-cross-entropy")(inputs).logp
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
