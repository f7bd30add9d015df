"""What precision does to ratios, clips and entropy: each variant of `variants` against float64.

Four measurements, each of one seed:

- fixed: the log-probs of one iteration's tokens before and after some float32 GRPO steps, by every
  variant, under the same weights. What rounding does to ratios and clips, and nothing else.
- drift: an epoch of training at lr = 0. Old log-probs were recomputed in other batches than those
  that the steps see, and all that ratios differ from 1 by is that. Beside it, under `error_*`, how
  far old log-probs and the first step's gradient are from float64's: what ratios would differ from
  1 by if old log-probs were somebody else's, an engine's of another precision.
- softmax: the gradient of each token's log-prob by its own logit, 1 - p, of real logits.
- trajectory: training in a variant, all else (policy, tasks, seeds of sampling) being the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from dynamics.precision.common import ITERATIONS, Record
from dynamics.precision.gradients import TRAINED, softmax
from dynamics.precision.ratios import drift, fixed
from dynamics.precision.trajectories import trajectory
from dynamics.precision.variants import VARIANTS
from dynamics.running import fingerprint
from dynamics.studies import MANY_STEPS, TASK

SEEDS = (2, 3, 4)


@frozen
class Job:
    """One measurement of one seed; a trajectory's is of one variant too."""

    kind: str
    seed: int
    variant: str | None = None

    @property
    def key(self) -> str:
        """Names the job, and its record."""
        parts = ("precision", self.kind, self.variant, self.seed)
        return "/".join(str(part) for part in parts if part is not None)

    @property
    def fingerprint(self) -> str:
        """What decides the record."""
        variants = VARIANTS if self.variant is None else VARIANTS[self.variant]
        return fingerprint(TASK, MANY_STEPS["grpo"], ITERATIONS, TRAINED, variants)


def jobs() -> list[Job]:
    """Return every measurement, the quick ones first."""
    quick = [Job(kind, seed) for seed in SEEDS for kind in ("fixed", "drift", "softmax")]
    return quick + [Job("trajectory", seed, name) for seed in SEEDS for name in VARIANTS]


def run(job: Job, out: Path) -> Record:
    """Return a job's record: the one on disk, or else measured and written there."""
    path = out / f"{job.key}-{job.fingerprint}.json"
    if not path.exists():
        torch.set_num_threads(1)
        found = (
            _OF_A_SEED[job.kind](job.seed)
            if job.variant is None
            else trajectory(job.seed, job.variant)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(_rounded(found)), encoding="utf-8")
        draft.replace(path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


_OF_A_SEED: Mapping[str, Callable[[int], Record]] = {
    "fixed": fixed,
    "drift": drift,
    "softmax": softmax,
}


def _rounded(value: Any) -> Any:
    """Round what is to be written as JSON to 6 significant digits; what is not finite is None."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
