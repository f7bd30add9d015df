"""An iteration in numbers: what was collected, what was learnt from it, where the time went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from attrs import define, field
from torch import Tensor

from isentrope.episodes import Episode, StopReason
from isentrope.learner.experience import Experience
from isentrope.learner.learner import StepReport

Metrics = dict[str, Any]


def rollout_metrics(
    episodes: Sequence[Episode], good: Sequence[Episode], old_logp: Sequence[Tensor]
) -> Metrics:
    """What was collected, what went wrong, and how far engine and learner disagree."""
    stops = Counter(e.stop_reason for e in episodes)
    engine = np.concatenate([s.logp[s.sampled] for e in good for s in e.segments])
    mismatch = np.abs(engine - np.concatenate([x.numpy() for x in old_logp]))
    parts = sorted({key for e in good for key in e.metrics})
    return {
        "tokens": int(sum(e.sampled_tokens for e in episodes)),
        "tokens_per_episode": float(np.mean([e.sampled_tokens for e in good])),
        "turns_per_episode": float(np.mean([e.turns for e in good])),
        "episodes": len(episodes),
        **{f"stop/{reason.value}": stops[reason] for reason in StopReason},
        "mismatch_mean": float(mismatch.mean()),
        "mismatch_p99": float(np.quantile(mismatch, 0.99)),
        "mismatch_max": float(mismatch.max()),
        **{
            f"env/{k}": float(np.mean([e.metrics[k] for e in good if k in e.metrics]))
            for k in parts
        },
    }


def learning_metrics(experience: Experience, reports: Sequence[StepReport]) -> Metrics:
    """What was learnt from, what was left out, and what the steps did."""
    counts = attrs.asdict(experience, filter=lambda a, _: a.name != "trajectories")
    tokens = sum(r.tokens for r in reports)
    names = sorted({name for r in reports for name in r.diagnostics})
    return {
        **counts,
        "episodes_learnt": len(experience.trajectories),
        "steps": len(reports),
        "steps_skipped": sum(r.skipped for r in reports),
        "loss": float(np.mean([r.loss for r in reports])) if reports else None,
        "grad_norm": float(np.mean([r.grad_norm for r in reports])) if reports else None,
        **{
            name: sum(r.diagnostics.get(name, 0.0) * r.tokens for r in reports) / tokens
            for name in names
        },
    }


@define
class Clock:
    """Seconds per phase of an iteration."""

    seconds: dict[str, float] = field(factory=dict)
    _last: float = field(factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        """Charge the time since the last lap to `phase`."""
        now = time.perf_counter()
        self.seconds[f"seconds/{phase}"] = now - self._last
        self._last = now
