"""Loss scaling: what keeps small gradients from vanishing in float16."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define
from torch import nn

GROWTH_INTERVAL = 2000
"""Steps without overflow before the loss is scaled up."""


@define
class LossScale:
    """What the loss is multiplied by before its gradient is taken.

    Halved when a gradient overflows, doubled after many that did not (Micikevicius et al. 2018).
    """

    value: float = 2.0**16
    steps: int = 0
    """Taken since it last changed."""
    fixed: bool = False

    def undo(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide gradients by it."""
        if self.value != 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.value)

    def update(self, finite: bool) -> None:
        """Learn whether a step's gradients were finite."""
        if self.fixed:
            return
        self.steps = self.steps + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self.steps == GROWTH_INTERVAL:
            self.value, self.steps = self.value * 2, 0
