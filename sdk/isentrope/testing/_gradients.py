"""Comparing an objective's gradient with finite differences of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from isentrope.parts import AdvantageTransform, Objective, TokenBatch
from isentrope.testing._report import require

_STOPS = {
    Tensor.detach,
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__bool__,
    Tensor.data.__get__,  # type: ignore[attr-defined]  # a getset descriptor
}
"""Where a value leaves the graph, and counts as a constant for the gradient."""


class _HoldDetached(TorchFunctionMode):
    """Replays, from the second run on, everything that the first took out of the graph.

    The loss is then the function whose derivative autograd computes, stop-gradients included.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[Any] = []
        self._at: int | None = None

    def rewind(self) -> None:
        """Begin a run that replays."""
        self._at = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _STOPS and torch.is_grad_enabled():
            return result
        if self._at is None:
            # A detached tensor shares its memory, and could be written to afterwards.
            self._tape.append(result.clone() if isinstance(result, Tensor) else result)
            return result
        self._at += 1
        return self._tape[self._at - 1] if self._at <= len(self._tape) else result


def compare_with_differences(part: Objective | AdvantageTransform, batch: TokenBatch) -> bool:
    """Require that autograd's gradient is the central difference, for log-probs and entropies.

    batch: float64. Tokens at a kink, where the one-sided differences disagree, are left out.
    Returns whether any gradient differs from 0.
    """
    names = [name for name in ("logp", "entropy") if name in batch.tensors()]
    leaves = [getattr(batch, n).detach().clone().requires_grad_() for n in names]
    held = _HoldDetached()

    def total(values: Sequence[Tensor]) -> Tensor:
        given: dict[str, Any] = dict(zip(names, values, strict=True))
        with held:
            loss = part(attrs.evolve(batch, **given))
        return loss[batch.mask].sum()

    loss = total(leaves)
    if not loss.requires_grad:
        return False
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    coarse = loss.dtype != torch.float64  # it rounds to float32 by itself
    step, tolerance = (1e-2, 2e-2) if coarse else (1e-6, 1e-4)

    def at(which: int, token: int, shift: float) -> float:
        moved = [leaf.detach().clone() for leaf in leaves]
        moved[which][token] += shift
        held.rewind()
        return float(total([m.requires_grad_() for m in moved]).detach())

    for which, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
        found = torch.zeros_like(leaves[which]) if gradient is None else gradient
        _require_agreement(name, found, partial(at, which), step, tolerance)
    return any(g is not None and bool(g.any()) for g in gradients)


def _require_agreement(
    name: str,
    gradient: Tensor,
    at: Callable[[int, float], float],
    step: float,
    tolerance: float,
) -> None:
    for token, by_autograd in enumerate(gradient.tolist()):
        middle, up, down = at(token, 0.0), at(token, step), at(token, -step)
        above, below = (up - middle) / step, (middle - down) / step
        scale = max(1.0, abs(above), abs(below))
        if abs(above - below) > 10 * tolerance * scale:
            continue  # a kink
        expected = (above + below) / 2
        require(
            abs(expected - by_autograd) <= tolerance * scale,
            f"the gradient with respect to {name} is {by_autograd:.6g} at a token where finite "
            f"differences of the loss give {expected:.6g}",
        )
