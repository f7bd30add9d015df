"""The gradient of a confident token's log-prob by its own logit, which is 1 - p: a Markdown table.

Of float32's log_softmax, ours, and the truth (float64, from the other tokens' probabilities), for a
vocabulary of Qwen3's size. What precision does to ratios, clips and entropy is measured by
entropy_dynamics.py.

    python benchmarks/numerics.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope.learner.head import token_scores

VOCABULARY = 151_936
GAPS = (4, 8, 12, 16, 20, 24, 28, 34, 40)


def confident() -> None:
    """Print the table: one token, its logit `gap` above all others of Qwen3's vocabulary."""
    print("| gap | 1 - p | log_softmax, float32 | ours, float32 |\n| ---: | ---: | ---: | ---: |")
    noise = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    for gap in GAPS:
        logits = noise.clone()
        logits[0, 7] = noise.max() + gap
        others = (logits.double() - logits[0, 7].double()).exp()
        others[0, 7] = 0.0
        truth = float(others.sum() / (1 + others.sum()))
        print(f"| {gap} | {truth:.4e} | {_plain(logits):.4e} | {_ours(logits):.4e} |")


def _plain(logits: Tensor) -> float:
    leaf = logits.clone().requires_grad_()
    torch.log_softmax(leaf, -1)[0, 7].backward()
    assert leaf.grad is not None
    return float(leaf.grad[0, 7])


def _ours(logits: Tensor) -> float:
    """The head, its hidden state 1 and its weight the logits: the weight's gradient is theirs."""
    weight = logits.T.clone().requires_grad_()
    token_scores(torch.ones(1, 1), weight, None, torch.tensor([7])).logp.sum().backward()
    assert weight.grad is not None
    return float(weight.grad[7, 0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    confident()
