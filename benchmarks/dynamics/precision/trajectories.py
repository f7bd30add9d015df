"""Training in a variant, all else (policy, tasks, seeds of sampling) being the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import define, field

from dynamics.precision.common import ITERATIONS, Record, trial_config
from dynamics.precision.variants import VARIANTS, VariantPolicy
from isentrope.errors import TrainingError
from isentrope.learner.learner import Learner, StepReport
from isentrope.trainer import Trainer

BLOCK = 5
"""Iterations that one point of a recorded series averages."""
_SERIES: Mapping[str, str] = {
    "success": "success",
    "clip_high": "objective/clip_high",
    "clip_low": "objective/clip_low",
    "ratio_mean": "ratio/mean",
    "ratio_p01": "ratio/p01",
    "ratio_p99": "ratio/p99",
    "grad_norm": "grad_norm",
    "steps_skipped": "steps_skipped",
    "mismatch_mean": "mismatch_mean",
}
"""Name in a record, and in an iteration's metrics."""


def trajectory(seed: int, variant: str) -> Record:
    """Train in a variant; entropy by iteration, and the rest as means over blocks."""
    config, begun = trial_config(seed), time.monotonic()
    trainer = Trainer.build(config)
    policy = VariantPolicy(trainer.model.model, config.rollout.temperature, VARIANTS[variant])
    trainer.learner = learner = _Recording(policy, config.learner)
    history: list[Record] = []
    stopped: str | None = None
    with asyncio.Runner() as runner:
        trainer.publish(runner)
        try:
            while len(history) < ITERATIONS:
                metrics, *_ = trainer.iterate(runner)
                history.append({**metrics, "ratio/mean": learner.mean_ratio()})
        except TrainingError as error:  # the policy is none any more: that is a result
            stopped = str(error)
        finally:
            trainer.close(runner)
    return {
        "iterations": len(history),
        "stopped": stopped,
        "seconds_per_iteration": (time.monotonic() - begun) / max(len(history), 1),
        "entropy": [metrics["entropy"] for metrics in history],
        "block": BLOCK,
        **{name: _blocks(history, key) for name, key in _SERIES.items()},
    }


@define
class _Recording(Learner):
    """A learner that remembers the ratios of an iteration."""

    reports: list[StepReport] = field(factory=list, init=False)

    def step(self, *args: Any, **kwargs: Any) -> StepReport:
        """Take one optimizer step."""
        # Not super(): attrs makes the class anew, for its slots.
        self.reports.append(Learner.step(self, *args, **kwargs))
        return self.reports[-1]

    def mean_ratio(self) -> float | None:
        """Return the mean importance ratio over the tokens of all steps since the last call."""
        reports, self.reports = self.reports, []
        if not reports:
            return None
        ratios = torch.cat([(r.logp - r.old_logp).exp().double() for r in reports])
        return float(ratios.mean())


def _blocks(history: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    """Return the means of a metric over blocks of iterations; None where it was not measured."""
    blocks = [history[i : i + BLOCK] for i in range(0, len(history), BLOCK)]
    measured = [[m[key] for m in block if m.get(key) is not None] for block in blocks]
    return [float(np.mean(values)) if values else None for values in measured]


def distance(entropy: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Return how far one trajectory is from another, nats per token: mean |dH|, and mean dH.

    Over the iterations that both have.
    """
    length = min(len(entropy), len(reference))
    apart = np.subtract(entropy[:length], reference[:length])
    return {"mean_abs": float(np.abs(apart).mean()), "mean": float(apart.mean())}
