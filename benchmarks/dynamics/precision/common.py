"""What the measurements share: how a trial is made, and one iteration's experience of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynamics.studies import MANY_STEPS, TASK
from isentrope import Episode
from isentrope.algorithms import Algorithm
from isentrope.config import TrainConfig, read_config
from isentrope.learner.experience import usable
from isentrope.learner.learner import Learner, StepReport
from isentrope.learner.packing import Trajectory
from isentrope.seeding import derive
from isentrope.trainer import Trainer

ITERATIONS = 40
NOTHING: frozenset[str] = frozenset()
"""What is needed of a policy beside log-probs."""

Record = dict[str, Any]


def trial_config(seed: int) -> TrainConfig:
    """Return the configuration of a trial of GRPO."""
    changes = {"seed": seed, "model.seed": seed, "evaluation": None, "iterations": ITERATIONS}
    return read_config(TASK, {**MANY_STEPS["grpo"], **changes})


def collected(seed: int) -> tuple[Trainer, list[Episode]]:
    """Return a trainer with its starting policy, and the first iteration's usable episodes."""
    trainer = Trainer.build(trial_config(seed))
    with asyncio.Runner() as runner:
        trainer.publish(runner)
        episodes, _ = trainer._experience(runner)
        trainer.close(runner)
    return trainer, usable(episodes)


def minibatches(
    config: TrainConfig, trajectories: Sequence[Trajectory]
) -> Iterator[list[Trajectory]]:
    """Yield minibatches as the first iteration of a training run does, epoch after epoch."""
    size = config.algorithm.minibatch
    assert size is not None
    for epoch in itertools.count():
        rng = np.random.default_rng(derive(config.seed, "minibatch", 0, epoch))
        order = rng.permutation(len(trajectories))
        for start in range(0, len(order), size):
            yield [trajectories[i] for i in order[start : start + size]]


def take_step(
    learner: Learner, algorithm: Algorithm, minibatch: Sequence[Trajectory], step: int
) -> StepReport:
    """Take an optimizer step, the `step`-th on its experience."""
    assert algorithm.minibatch is not None
    return learner.step(algorithm, minibatch, nominal_sequences=algorithm.minibatch, step=step)


def share(mask: Tensor) -> float:
    """Return the share of what is True."""
    return float(mask.double().mean())
