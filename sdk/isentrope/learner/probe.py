"""The probe: what an update does to entropy, measured on the same tokens before and after.

The entropy of two iterations' experience differs also because the tasks do. Here the tokens are
held fixed: their positions' exact entropy is computed before the update and again after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from isentrope.algorithms import Algorithm
from isentrope.diagnostics import predicted_entropy_change, quantiles
from isentrope.learner.aggregation import weighted
from isentrope.learner.head import KNOWN
from isentrope.learner.learner import Learner, transformed
from isentrope.learner.packing import Trajectory, concatenate, token_batch
from isentrope.parts import TokenBatch


@frozen
class Probe:
    """Some of an iteration's trajectories, before an update."""

    trajectories: tuple[Trajectory, ...]
    entropy: Tensor
    """[T] float32: exact, under the policy that the iteration began with."""
    predicted: float
    """First-order change of mean entropy for a unit step along the estimator's advantages."""
    predicted_transformed: float
    """The same along the transformed ones."""

    @classmethod
    @torch.no_grad()
    def take(
        cls, learner: Learner, algorithm: Algorithm, trajectories: Sequence[Trajectory], size: int
    ) -> Probe | None:
        """Measure `size` trajectories, evenly spread; None where there are none to measure."""
        count = min(size, len(trajectories))
        if count == 0:
            return None
        chosen = [trajectories[i * len(trajectories) // count] for i in range(count)]
        scores = learner.scores([t.episode for t in chosen], KNOWN)
        chosen = [evolve(t, old=old) for t, old in zip(chosen, scores, strict=True)]
        batch = _weighted(learner, algorithm, chosen)
        # Prepared on everything: what is fitted to the probe itself would say nothing of the rest.
        after = transformed(algorithm.prepare(_weighted(learner, algorithm, trajectories)), batch)
        return cls(
            tuple(chosen),
            batch.entropy.cpu(),
            predicted_entropy_change(batch.advantage, batch.entropy_response, batch.weight),
            predicted_entropy_change(after.advantage, batch.entropy_response, batch.weight),
        )

    def metrics(self, learner: Learner) -> dict[str, float]:
        """Measure again, after the update, and return what there is to log."""
        scores = learner.scores([t.episode for t in self.trajectories], frozenset({"entropy"}))
        entropy = concatenate(scores).entropy
        assert entropy is not None  # asked for
        low, middle, high = quantiles(self.entropy, (0.1, 0.5, 0.9))
        return {
            "probe/entropy": float(self.entropy.double().mean()),
            "probe/entropy_p10": low,
            "probe/entropy_p50": middle,
            "probe/entropy_p90": high,
            "probe/entropy_change": float((entropy.double() - self.entropy.double()).mean()),
            "probe/predicted_change": self.predicted,
            "probe/predicted_change_transformed": self.predicted_transformed,
        }


def _weighted(
    learner: Learner, algorithm: Algorithm, trajectories: Sequence[Trajectory]
) -> TokenBatch:
    batch = token_batch(trajectories, learner.device, step=0)
    tokens = int(batch.mask.sum())
    return weighted(algorithm, batch, nominal_sequences=len(trajectories), total_tokens=tokens)
