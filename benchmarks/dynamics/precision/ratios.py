"""Ratios and clips in every variant: after real steps, and after steps that moved nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from dynamics.precision.common import NOTHING, Record, collected, minibatches, share, take_step
from dynamics.precision.variants import REFERENCE, VARIANTS, VariantPolicy
from isentrope import Episode, diagnostics
from isentrope.learner.experience import experience
from isentrope.learner.learner import Learner
from isentrope.learner.packing import concatenate, micro_batches
from isentrope.trainer import Trainer

STEPS = (1, 4, 16)
CLIP = (0.2, 0.2)
SEQUENCE_CLIP = (3e-4, 4e-4)
"""GRPO's bounds for a token's ratio and GSPO's for an episode's, below 1 and above it."""


def fixed(seed: int) -> Record:
    """Compare ratios by every variant after float32 steps on one iteration's experience."""
    trainer, episodes = collected(seed)
    learner, algorithm = trainer.learner, trainer.config.algorithm
    learnt = experience(episodes, learner.scores(episodes, NOTHING), algorithm.advantage)
    lengths = [episode.sampled_tokens for episode in episodes]
    old, after = _log_probs(trainer, episodes), {}
    every = minibatches(trainer.config, learnt.trajectories)
    for step, minibatch in enumerate(itertools.islice(every, max(STEPS))):
        take_step(learner, algorithm, minibatch, step)
        if step + 1 in STEPS:
            new = _log_probs(trainer, episodes)
            after[str(step + 1)] = {
                "rounding": _rounding(new[REFERENCE], old[REFERENCE]),
                "variants": {name: _against_reference(name, new, old, lengths) for name in new},
            }
    return {"episodes": len(lengths), "tokens": sum(lengths), "steps": after}


def drift(seed: int) -> Record:
    """Train every variant for one epoch at lr = 0, and compare what did not move with itself."""
    trainer, episodes = collected(seed)
    found: dict[str, Record] = {}
    truth: _Still | None = None
    for name in sorted(VARIANTS, key=lambda name: name != REFERENCE):
        still = _stood_still(trainer, episodes, name)
        truth = truth or still
        error = still.old - truth.old
        gradient = (still.gradient - truth.gradient).norm() / truth.gradient.norm()
        found[name] = {
            **_drift(still),
            "error_mean": float(error.abs().mean()),
            "error_max": float(error.abs().max()),
            "error_sequences_clipped": _sequences_clipped(error, still.lengths),
            "gradient_error": float(gradient),
        }
    return {"tokens": sum(still.lengths), "episodes": len(still.lengths), "variants": found}


@frozen(eq=False)
class _Still:
    """An epoch at lr = 0: log-probs of T tokens as recomputed, and as the steps saw them."""

    old: Tensor
    """[T] float64, nats."""
    difference: Tensor
    """[T] float64, nats: new less old, subtracted as training does."""
    lengths: Sequence[int]
    """Tokens of each episode, in their order."""
    gradient: Tensor
    """[parameters] float64: of the first step, clipped."""
    skipped: int
    """Steps whose gradient was not finite."""


def _learner(trainer: Trainer, variant: str) -> Learner:
    """Return a learner of its own that computes the trainer's present policy in a variant."""
    model, temperature = trainer.model.model, trainer.config.rollout.temperature
    return Learner(VariantPolicy(model, temperature, VARIANTS[variant]), trainer.config.learner)


def _log_probs(trainer: Trainer, episodes: Sequence[Episode]) -> dict[str, Tensor]:
    """Return log-probs [T] of the sampled tokens under the present weights, by variant."""
    return {
        name: concatenate(_learner(trainer, name).scores(episodes, NOTHING)).logp
        for name in VARIANTS
    }


def _rounding(new: Tensor, old: Tensor) -> Record:
    """Return what Thm. 3 predicts for true log-probs [T] that are rounded, and what comes."""
    found = {dtype: diagnostics.rounding(new, old, dtype) for dtype in ("bf16", "fp16")}
    return {
        dtype: {"bias": one.bias, "predicted": one.predicted_bias, "clip_changed": one.clip_changed}
        for dtype, one in found.items()
    }


def _against_reference(
    name: str, new: Mapping[str, Tensor], old: Mapping[str, Tensor], lengths: Sequence[int]
) -> Record:
    """Compare a variant's ratios with the reference's; shares are of tokens, or of episodes."""
    ours, truth = new[name] - old[name], new[REFERENCE] - old[REFERENCE]
    ratio, true_ratio = ours.exp().double(), truth.exp()
    error, bias = ours.double() - truth, ratio - true_ratio
    sequence, true_sequence = (_sequence_ratios(x, lengths) for x in (ours, truth))
    outside, sequence_outside = _outside(ratio, CLIP), _outside(sequence, SEQUENCE_CLIP)
    return {
        "log_ratio_error": float(error.mean()),
        "log_ratio_error_abs": float(error.abs().mean()),
        "ratio_bias": float(bias.mean()),
        "ratio_bias_error": float(bias.std() / math.sqrt(len(bias))),
        "ratio_off_1_percent": share((ratio / true_ratio - 1).abs() > 0.01),
        "above": share(outside > 0),
        "below": share(outside < 0),
        "clip_changed": share(outside != _outside(true_ratio, CLIP)),
        "sequences_above": share(sequence_outside > 0),
        "sequences_below": share(sequence_outside < 0),
        "sequences_changed": share(sequence_outside != _outside(true_sequence, SEQUENCE_CLIP)),
        "entropy_bias": _entropy(new[name]) - _entropy(new[REFERENCE]),
        "entropy_bias_old": _entropy(old[name]) - _entropy(old[REFERENCE]),
    }


def _sequence_ratios(log_ratio: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return each episode's ratio as GSPO has it [S], in the dtype of the log ratios [T]."""
    return torch.stack([part.mean().exp() for part in log_ratio.split(list(lengths))])


def _sequences_clipped(log_ratio: Tensor, lengths: Sequence[int]) -> float:
    """Return the share of episodes whose ratio GSPO's bounds leave out."""
    return share(_outside(_sequence_ratios(log_ratio, lengths), SEQUENCE_CLIP) != 0)


def _outside(ratio: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return 1 where a ratio is above its bounds, -1 where below, 0 elsewhere."""
    low, high = bounds
    return (ratio > 1 + high).int() - (ratio < 1 - low).int()


def _entropy(logp: Tensor) -> float:
    """Return the sampled estimator of entropy, nats per token."""
    return -float(logp.double().mean())


def _stood_still(trainer: Trainer, episodes: Sequence[Episode], variant: str) -> _Still:
    learner, algorithm = _learner(trainer, variant), trainer.config.algorithm
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0
    learnt = experience(episodes, learner.scores(episodes, NOTHING), algorithm.advantage)
    count = math.ceil(len(learnt.trajectories) / (algorithm.minibatch or 1))
    every = minibatches(trainer.config, learnt.trajectories)
    reports, lengths, gradients = [], [], []
    for step, minibatch in enumerate(itertools.islice(every, count)):
        reports.append(take_step(learner, algorithm, minibatch, step))
        grads = [p.grad for p in learner.policy.trainable() if p.grad is not None]
        gradients.append(torch.cat([g.double().flatten() for g in grads]))
        # A report's tokens come as the step had them: by micro-batches.
        order = micro_batches([t.episode for t in minibatch], learner.config.micro_batch_tokens)
        lengths += [len(minibatch[i]) for i in itertools.chain.from_iterable(order)]
    return _Still(
        old=torch.cat([r.old_logp for r in reports]).double(),
        difference=torch.cat([r.logp - r.old_logp for r in reports]).double(),
        lengths=lengths,
        gradient=gradients[0],
        skipped=sum(r.skipped for r in reports),
    )


def _drift(still: _Still) -> Record:
    size = still.difference.abs()
    return {
        "mean": float(still.difference.mean()),
        "mean_abs": float(size.mean()),
        "max": float(size.max()),
        "unequal": share(size > 0),
        "clipped": share(_outside(still.difference.exp(), CLIP) != 0),
        "sequences_clipped": _sequences_clipped(still.difference, still.lengths),
        "skipped": still.skipped,
    }
