"""The gradient of a token's log-prob by its own logit, 1 - p, of real logits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from dynamics.precision.common import Record, share, trial_config
from isentrope import Episode
from isentrope.learner.experience import usable
from isentrope.learner.head import token_scores
from isentrope.learner.packing import collate, micro_batches
from isentrope.trainer import Trainer

TRAINED = 60
"""Iterations after which the softmax of a policy is measured again."""
CHUNK = 256
"""Tokens whose softmax gradients are taken at a time."""


def softmax(seed: int) -> Record:
    """Compare 1 - p of the tokens of a policy's experience, at the start and later."""
    config = trial_config(seed)
    trainer, found = Trainer.build(config), {}
    with asyncio.Runner() as runner:
        trainer.publish(runner)
        for iterations in (0, TRAINED):
            while trainer.progress.iteration < iterations:
                trainer.iterate(runner)
            episodes = usable(trainer._experience(runner)[0])
            found[str(iterations)] = _own_gradients(trainer, episodes)
        trainer.close(runner)
    return {"iterations": found}


def _own_gradients(trainer: Trainer, episodes: Sequence[Episode]) -> Record:
    """Compare d log p_a / d z_a of sampled tokens, by decades of what it truly is."""
    logits, target = _logits(trainer, episodes)
    truth, plain, ours = (
        torch.cat([of(z, a) for z, a in zip(logits.split(CHUNK), target.split(CHUNK), strict=True)])
        for of in (_own_truly, _own_plain, _own_ours)
    )
    decade = truth.log10().floor().int()
    return {
        "tokens": len(truth),
        "smallest": float(truth.min()),
        "plain": _gradient_errors(plain, truth),
        "ours": _gradient_errors(ours, truth),
        "decades": {
            str(d): {
                "tokens": int((decade == d).sum()),
                "plain": _gradient_errors(plain[decade == d], truth[decade == d]),
                "ours": _gradient_errors(ours[decade == d], truth[decade == d]),
            }
            for d in sorted(set(decade.tolist()))
        },
    }


def _gradient_errors(found: Tensor, truth: Tensor) -> Record:
    relative = (found / truth - 1).abs()
    return {
        "relative_median": float(relative.median()),
        "relative_mean": float(relative.mean()),
        "relative_max": float(relative.max()),
        "absolute_max": float((found - truth).abs().max()),
        "zero": share((found == 0) & (truth > 0)),
    }


@torch.no_grad()
def _logits(trainer: Trainer, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """Return the present policy's logits [T, V] in float32, and the tokens [T] sampled there."""
    logits, targets = [], []
    for indices in micro_batches(episodes, trainer.config.learner.micro_batch_tokens):
        inputs = collate([episodes[i] for i in indices], trainer.learner.device)
        states = trainer.learner.policy.states(inputs)
        logits.append(trainer.model.model.get_output_embeddings()(states))
        targets.append(inputs.target)
    return torch.cat(logits), torch.cat(targets)


def _own_truly(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 - p [t] in float64, from the others' odds, of float32 logits [t, V]."""
    wide, chosen = logits.double(), target[:, None]
    odds = (wide - wide.gather(-1, chosen)).exp().scatter(-1, chosen, 0.0).sum(-1)
    return odds / (1 + odds)


def _own_plain(logits: Tensor, target: Tensor) -> Tensor:
    leaf, chosen = logits.clone().requires_grad_(), target[:, None]
    torch.log_softmax(leaf, -1).gather(-1, chosen).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.gather(-1, chosen).squeeze(-1).double()


def _own_ours(logits: Tensor, target: Tensor) -> Tensor:
    """Of the head, its hidden states a unit matrix and its weight the logits."""
    weight = logits.T.clone().requires_grad_()
    token_scores(torch.eye(len(logits)), weight, None, target).logp.sum().backward()
    assert weight.grad is not None
    return weight.grad.T.gather(-1, target[:, None]).squeeze(-1).double()
