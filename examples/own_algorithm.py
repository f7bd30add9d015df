"""An objective and a controller of one's own, composed with parts that are there, and trained.

    python examples/own_algorithm.py

To give them to others, see plugins/examples/isentrope-example-algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

import isentrope
from isentrope import Knob, Objective, Statistics, TokenBatch, knob


@frozen(kw_only=True)
class Soft(Objective):
    """Pulls ratios back where PPO cuts them off: ``-r A + |A| (r - 1)^2 / (2 width)``.

    Per token; its gradient vanishes where the ratio is `width` from 1 in the advantage's direction.
    """

    width: float = knob(0.2, low=0.01, high=5.0)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss of each token, [T]."""
        off = batch.ratio - 1
        return -batch.ratio * batch.advantage + batch.advantage.abs() * off**2 / (2 * self.width)

    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Return the share of tokens that are pushed back, logged as ``objective/beyond``."""
        beyond = (batch.ratio - 1) * torch.sign(batch.advantage) > self.width
        return {"beyond": beyond.float()}


@frozen(kw_only=True)
class Follow(isentrope.Controller):
    """Sets a knob in proportion to the entropy that is left of the first iteration's."""

    knob: str = "objective.width"
    least: float = 0.05
    most: float = 0.5

    @property
    def moves(self) -> Mapping[str, Knob]:
        """The one knob, and how far."""
        return {self.knob: Knob(self.least, self.most)}

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        """Narrow the width as entropy falls."""
        del knobs, memory
        left = min(statistics.entropy / statistics.initial_entropy, 1.0)
        return {self.knob: self.least + (self.most - self.least) * left}


def main(**changes: Any) -> isentrope.Run:
    """Train on arithmetic; changes: of the run's keys."""
    algorithm = isentrope.Algorithm(
        advantage=isentrope.component("advantage", "leave-one-out"),
        objective=Soft(),
        controllers=[Follow()],
        epochs=2,
        minibatch=128,
    )
    defaults = {"rollout": {"tasks": 32, "group": 8, "max_tokens": 40}, "iterations": 50}
    run = isentrope.train(env="arithmetic", algorithm=algorithm, **defaults | changes)
    for metrics in run.metrics:
        print(
            f"{metrics['iteration']:3}  reward {metrics['reward']:.3f}  "
            f"entropy {metrics['entropy']:.3f}  width {metrics['objective.width']:.3f}  "
            f"beyond {metrics['objective/beyond']:.3f}"
        )
    return run


if __name__ == "__main__":
    main()
