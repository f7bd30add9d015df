"""The numerics that the paper found decisive, on this machine: three Markdown tables.

1. The gradient of a confident token's log-prob by its own logit, which is 1 - p: float32's
   log_softmax, ours, and the truth (float64, from the other tokens' probabilities).
2. What importance ratios become when both log-probs are rounded to 16 bits first, on real tokens
   of the embedded policy after some optimizer steps: bias, the one predicted (Thm. 3), the share
   of tokens on which a clip of 0.2 decides otherwise.
3. The same for a matrix product in bfloat16, logits included: the cast to float32 comes too late.

    python benchmarks/numerics.py
"""

from __future__ import annotations

import asyncio
import copy

import torch
from torch import Tensor

from isentrope import Episode, diagnostics
from isentrope.config import read_config
from isentrope.learner.head import token_scores
from isentrope.learner.learner import Learner
from isentrope.learner.packing import collate
from isentrope.learner.policy import Policy
from isentrope.trainer import Trainer

VOCABULARY = 151_936
GAPS = (4, 8, 12, 16, 20, 24, 28, 34, 40)
STEPS = (1, 4, 16)


def confident() -> None:
    """Print the first table: one token, its logit `gap` above all others of Qwen3's vocabulary."""
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


def rounding() -> None:
    """Print the second and the third table."""
    config = read_config({"env": "arithmetic", "algorithm": "grpo", "rollout": {"max_tokens": 32}})
    trainer = Trainer.build(config)
    learner, policy = trainer.learner, trainer.learner.policy
    with asyncio.Runner() as runner:
        runner.run(trainer.publish())
        episodes = runner.run(trainer.collector.collect(trainer._requests(0)))
        runner.run(trainer.close())
    old = torch.cat([s.logp for s in learner.scores(episodes, frozenset())])
    old_bf16 = _log_probs_in_bf16(policy, episodes)
    print("\n| steps | dtype of log-probs | bias of the ratio | predicted | clip changed |")
    print("| ---: | --- | ---: | ---: | ---: |")
    matrix: list[str] = []
    for step in range(1, STEPS[-1] + 1):
        _descend(learner, episodes, step)
        if step not in STEPS:
            continue
        new = torch.cat([s.logp for s in learner.scores(episodes, frozenset())])
        for dtype in diagnostics.DTYPES:
            found = diagnostics.rounding(new, old, dtype)
            print(
                f"| {step} | {dtype} | {found.bias:+.1e} | {found.predicted_bias:+.1e} | "
                f"{found.clip_changed:.2%} |"
            )
        matrix.append(_row(step, new, old, _log_probs_in_bf16(policy, episodes), old_bf16))
    print("\n| steps | mean error of log r | ratios off by over 1 % | clip changed |")
    print("| ---: | ---: | ---: | ---: |")
    print("\n".join(matrix))


def _descend(learner: Learner, episodes: list[Episode], step: int) -> None:
    """One small step of maximum likelihood on some of the tokens: the policy moves, as it would."""
    inputs = collate(episodes[step % 8 :: 8], learner.device)
    learner.optimizer.zero_grad()
    (-learner.policy(inputs).logp.mean()).backward()
    learner.optimizer.step()


def _log_probs_in_bf16(policy: Policy, episodes: list[Episode]) -> Tensor:
    """Log-probs of a model in bfloat16, its logits cast to float32 afterwards."""
    low = copy.deepcopy(policy._plain).to(torch.bfloat16)
    inputs = collate(episodes, torch.device("cpu"))
    with torch.no_grad():
        logits = low(input_ids=inputs.ids, use_cache=False).logits.float()
    chosen = torch.log_softmax(logits[inputs.row, inputs.column], -1)
    return chosen.gather(-1, inputs.target[:, None])[:, 0]


def _row(step: int, new: Tensor, old: Tensor, new_low: Tensor, old_low: Tensor) -> str:
    true, rounded = (new - old).double().exp(), (new_low - old_low).double().exp()
    changed = ((true > 1.2) != (rounded > 1.2)) | ((true < 0.8) != (rounded < 0.8))
    off = ((rounded / true - 1).abs() > 0.01).double().mean()
    error = (rounded.log() - true.log()).abs().mean()
    return f"| {step} | {error:.1e} | {off:.1%} | {changed.double().mean():.2%} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    confident()
    rounding()
