"""An iteration in numbers: what was collected, what was learnt from it, where the time went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from attrs import define, field
from numpy.typing import NDArray

from isentrope import diagnostics
from isentrope.episodes import Episode, Status, StopReason
from isentrope.learner.accounting import peak_flops, peak_memory
from isentrope.learner.experience import Experience
from isentrope.learner.head import TokenScores
from isentrope.learner.learner import Learner, StepReport
from isentrope.learner.packing import concatenate

Metrics = dict[str, Any]
POSITIONS = (0, 128, 512, 2048, 8192)
"""Where bins of a token's position in its context begin."""
ENTROPIES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0)
"""Where bins of entropy and of surprise begin, nats."""


def rollout_metrics(
    episodes: Sequence[Episode],
    good: Sequence[Episode],
    scores: Sequence[TokenScores],
    version: int,
) -> Metrics:
    """What was collected, what went wrong, and how far engine and learner disagree.

    version: the policy's, which learns from it.
    """
    stops = Counter(e.stop_reason for e in episodes)
    statuses = Counter(e.status for e in episodes)
    age = version - of_sampled(good, "version")
    parts = sorted({key for e in good for key in e.metrics})
    return {
        "tokens": int(sum(e.sampled_tokens for e in episodes)),
        "tokens_per_episode": float(np.mean([e.sampled_tokens for e in good])),
        "segments_per_episode": float(np.mean([len(e.segments) for e in good])),
        "turns_per_episode": float(np.mean([e.turns for e in good])),
        "episodes": len(episodes),
        "episodes_unjudged": sum(not e.judged for e in good),
        **{f"stop/{reason.value}": stops[reason] for reason in StopReason},
        **{f"status/{status.value}": statuses[status] for status in Status},
        "staleness_mean": float(age.mean()),
        "staleness_max": int(age.max()),
        **_mismatch_metrics(good, concatenate(scores)),
        **{
            f"env/{k}": float(np.mean([e.metrics[k] for e in good if k in e.metrics]))
            for k in parts
        },
    }


def of_sampled(episodes: Sequence[Episode], name: str) -> NDArray[Any]:
    """Return a column of all segments, at the tokens that were sampled."""
    return np.concatenate([getattr(s, name)[s.sampled] for e in episodes for s in e.segments])


def _mismatch_metrics(good: Sequence[Episode], scores: TokenScores) -> Metrics:
    """How far the engine's log-probs are from the learner's: in all, and where."""
    theirs = torch.from_numpy(of_sampled(good, "logp"))
    position = torch.from_numpy(
        np.concatenate([s.sampled.nonzero()[0] for e in good for s in e.segments])
    )
    where = {"position": diagnostics.mismatch_by(position, POSITIONS, scores.logp, theirs)}
    if scores.entropy is not None:
        where["entropy"] = diagnostics.mismatch_by(scores.entropy, ENTROPIES, scores.logp, theirs)
    where["surprise"] = diagnostics.mismatch_by(-scores.logp, ENTROPIES, scores.logp, theirs)
    return {
        **{f"mismatch_{n}": x for n, x in diagnostics.mismatch(scores.logp, theirs).items()},
        **{f"mismatch_{n}/{low:g}": x for n, found in where.items() for low, x in found.items()},
    }


def learning_metrics(experience: Experience, reports: Sequence[StepReport]) -> Metrics:
    """What was learnt from, what was left out, and what the steps did."""
    counts = attrs.asdict(experience, filter=lambda a, _: a.name != "trajectories")
    metrics: Metrics = {
        **counts,
        "episodes_learnt": len(experience.trajectories),
        "steps": len(reports),
        "steps_skipped": sum(r.skipped for r in reports),
        "loss": float(np.mean([r.loss for r in reports])) if reports else None,
        "grad_norm": float(np.mean([r.grad_norm for r in reports])) if reports else None,
    }
    if not reports:
        return metrics
    tokens = sum(r.tokens for r in reports)
    names = sorted({name for r in reports for name in r.diagnostics})
    means = {n: sum(r.diagnostics.get(n, 0.0) * r.tokens for r in reports) / tokens for n in names}
    metrics["tokens_effective"] = sum(r.effective * r.tokens for r in reports) / tokens
    return {**metrics, **means, **_advantage_metrics(experience), **_ratio_metrics(reports)}


def performance_metrics(
    learner: Learner,
    clock: Clock,
    episodes: Sequence[Episode],
    reports: Sequence[StepReport],
    collecting: float,
) -> Metrics:
    """How fast the iteration was, on all ranks together: each must call it.

    collecting: seconds that its episodes took, which may have run while others were learnt from.
    The learner's operations are counted from zero again.
    """
    ranks, seconds = learner.ranks, clock.seconds
    learning = seconds["seconds/learn"] + seconds["seconds/recompute"]
    computing = learning + seconds["seconds/probe"]  # whose passes count in `flops` too
    flops, learner.flops = sum(ranks.gather(learner.flops)), 0.0
    peak = peak_flops(learner.device, learner.config.torch_dtype) * ranks.size
    sampled = sum(e.sampled_tokens for e in episodes)
    return {
        "performance/rollout_tokens_per_second": sampled / collecting,
        "performance/learn_tokens_per_second": sum(r.tokens for r in reports) / learning,
        "performance/flop_utilisation": flops / computing / peak,
        "performance/peak_memory_gib": max(ranks.gather(peak_memory(learner.device))),
    }


def _advantage_metrics(experience: Experience) -> Metrics:
    """How advantage and log-prob go together, before any transform."""
    advantage = torch.cat([t.advantage for t in experience.trajectories])
    logp = torch.cat([t.old.logp for t in experience.trajectories])
    return {
        "advantage_logp_covariance": diagnostics.covariance(advantage, logp),
        "advantage_logp_correlation": diagnostics.correlation(advantage, logp),
    }


def _ratio_metrics(reports: Sequence[StepReport]) -> Metrics:
    """How far the policy moved over all steps, and what 16 bits would have made of that."""
    logp = torch.cat([r.logp for r in reports])
    old_logp = torch.cat([r.old_logp for r in reports])
    places = {"min": 0.0, "p01": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}
    ratios = diagnostics.quantiles(
        (logp.double() - old_logp.double()).exp(), tuple(places.values())
    )
    metrics: Metrics = {f"ratio/{n}": q for n, q in zip(places, ratios, strict=True)}
    for dtype in ("bf16", "fp16"):
        found = attrs.asdict(diagnostics.rounding(logp, old_logp, dtype))
        metrics |= {f"rounding/{dtype}_{name}": value for name, value in found.items()}
    return metrics


@define
class Clock:
    """Seconds per phase of an iteration."""

    seconds: dict[str, float] = field(factory=dict)
    _last: float = field(factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        """Charge the time since the last lap to `phase`."""
        now = time.perf_counter()
        key = f"seconds/{phase}"
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self._last
        self._last = now
