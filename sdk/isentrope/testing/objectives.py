"""`check_objective`: what an objective, a transform or an estimator must do, carried out.

Shape legend: T tokens of the batch, S episodes, G rollouts of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from isentrope.parts import (
    AdvantageEstimator,
    AdvantageTransform,
    Knob,
    Objective,
    TokenBatch,
)
from isentrope.testing._report import Inspection, Listener, Report, describe, require
from isentrope.testing.estimators import estimator_checks

if TYPE_CHECKING:
    from torch import Tensor

TokenPart = Objective | AdvantageTransform


def check_objective(
    part: Objective | AdvantageTransform | AdvantageEstimator, *, on_finding: Listener | None = None
) -> Report:
    """Check an objective, an advantage transform or an advantage estimator, by what it is.

    Objectives and transforms run on random tokens, as the learner would run them: ``prepare``
    first, on the whole minibatch. Gradients are compared with finite differences in float64,
    with whatever the objective detaches held constant. on_finding: called with the outcome of each
    check as it ends.

    Raises `TypeError` for anything else.
    """
    inspection = Inspection(type(part).__name__, on_finding)
    checks: Mapping[str, Callable[[], None]]
    if isinstance(part, AdvantageEstimator):
        checks = estimator_checks(part)
    elif isinstance(part, AdvantageTransform):
        checks = _shared_checks(_Probe(part))
    elif isinstance(part, Objective):
        probe = _Probe(part)
        checks = {**_shared_checks(probe), "gradient": probe.gradient}
    else:
        raise TypeError(
            "An Objective, an AdvantageTransform or an AdvantageEstimator was expected, "
            f"not {describe(part)}."
        )
    for check, probe_it in checks.items():
        inspection.run(check, probe_it)
    return inspection.report()


def _shared_checks(probe: _Probe) -> dict[str, Callable[[], None]]:
    return {
        "shape": probe.shape,
        "finite": probe.finite,
        "extremes": probe.extremes,
        "mask": probe.mask,
        "splitting": probe.splitting,
        "pure": probe.pure,
        "diagnostics": probe.diagnostics,
    }


@frozen
class _Probe:
    """The checks of a part that goes token by token, by name."""

    part: TokenPart

    def batch(self, seed: int, **changes: Any) -> TokenBatch:
        """Return random tokens such as this part may be given."""
        from isentrope.testing._tokens import random_batch

        return random_batch(
            seed,
            on_policy=getattr(self.part, "on_policy", False),
            needs=self.part.needs,
            **changes,
        )

    def shape(self) -> None:
        """One float32 number for each token."""
        import torch

        for seed in range(3):
            batch = self.batch(seed)
            values = run(self.part, batch)
            require(isinstance(values, torch.Tensor), f"it returned {describe(values)}, no Tensor")
            require(
                values.shape == batch.logp.shape,
                f"it returned shape {tuple(values.shape)} for {len(batch.logp)} tokens; the "
                "learner does all averaging and summing",
            )
            require(
                values.dtype == torch.float32,
                f"it returned {values.dtype} for float32 tokens",
            )

    def finite(self) -> None:
        """Values and gradients are finite numbers for ordinary tokens, at every end of a knob."""
        for part in _at_knob_ends(self.part):
            for seed in range(3):
                values, gradients = values_and_gradients(part, self.batch(seed))
                for name, found in {"value": values, **gradients}.items():
                    require(found.isfinite().all(), f"a {name} is not finite with {part!r}")

    def extremes(self) -> None:
        """No NaN for a token of log-probability -80, or where the ratio is exp(80)."""
        from isentrope.testing._tokens import extreme_batch

        batch = extreme_batch(
            on_policy=getattr(self.part, "on_policy", False), needs=self.part.needs
        )
        for part in _at_knob_ends(self.part):
            values, gradients = values_and_gradients(part, batch)
            for name, found in {"value": values, **gradients}.items():
                nan = found.isnan()
                point = ", ".join(
                    f"{field} {float(getattr(batch, field).detach()[nan][0]):g}"
                    for field in ("logp", "old_logp", "advantage")
                    if nan.any()
                )
                require(not nan.any(), f"the {name} is NaN at {point}, with {part!r}")

    def mask(self) -> None:
        """What a masked token holds changes nothing for the others."""
        from isentrope.testing._tokens import scramble_masked

        for seed in range(3):
            batch = self.batch(seed)
            other = scramble_masked(batch, seed)
            before, gradients_before = values_and_gradients(self.part, batch)
            after, gradients_after = values_and_gradients(self.part, other)
            kept = batch.mask
            require(
                close(before[kept], after[kept]),
                "what masked tokens hold changed the value of an unmasked one",
            )
            for name, found in gradients_after.items():
                require(
                    close(gradients_before[name][kept], found[kept]),
                    f"what masked tokens hold changed the {name} of an unmasked one",
                )
                require(not found[~kept].any(), f"a masked token has a {name} that is not 0")

    def splitting(self) -> None:
        """Cut into micro-batches, a minibatch gives every token the same value."""
        from isentrope.testing._tokens import split

        for seed in range(3):
            batch = self.batch(seed)
            prepared = _prepared(self.part, batch)
            whole = prepared(batch).detach()
            for positions, micro in split(batch):
                require(
                    close(whole[positions], prepared(micro).detach()),
                    "a token's value depends on which other episodes are in its micro-batch; "
                    "statistics over a minibatch belong in prepare()",
                )

    def pure(self) -> None:
        """Called twice it returns the same, and it leaves the batch alone."""
        batch = self.batch(0)
        before = {k: v.detach().clone() for k, v in batch.tensors().items()}
        first, second = (run(self.part, batch).detach() for _ in range(2))
        require(bool((first == second).all()), "two calls on the same tokens differ")
        for name, tensor in batch.tensors().items():
            require(bool((tensor == before[name]).all()), f"it changed batch.{name} in place")

    def diagnostics(self) -> None:
        """Whatever it wants logged is one finite number for each token."""
        batch = self.batch(0)
        for name, values in _prepared(self.part, batch).diagnostics(batch).items():
            require(
                getattr(values, "shape", None) == batch.logp.shape,
                f"diagnostic {name!r} is {describe(values)} for {len(batch.logp)} tokens",
            )
            require(values.isfinite().all(), f"diagnostic {name!r} is not finite")

    def gradient(self) -> None:
        """The gradient is that of the loss, and there is one."""
        from isentrope.testing._gradients import compare_with_differences

        flows = False
        for seed in range(3):
            batch = self.batch(seed, double=True)
            prepared = _prepared(self.part, batch)
            flows |= compare_with_differences(prepared, batch)
        require(flows, "the gradient is 0 everywhere: was logp detached?")


def run(part: TokenPart, batch: TokenBatch) -> Tensor:
    """Prepare a part for a batch and call it on all of it."""
    return _prepared(part, batch)(batch)


def values_and_gradients(part: TokenPart, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return values [T], and for an objective the gradients of their unmasked sum, [T] each."""
    import torch

    leaves: dict[str, Any] = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in batch.tensors().items()
        if name in ("logp", "entropy")
    }
    values = run(part, attrs.evolve(batch, **leaves))
    if not isinstance(part, Objective) or not values.requires_grad:
        return values.detach(), {}
    found = torch.autograd.grad(values[batch.mask].sum(), list(leaves.values()), allow_unused=True)
    return values.detach(), {
        f"gradient with respect to {name}": torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def close(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are equal up to float32's rounding in another order."""
    import torch

    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _prepared(part: TokenPart, batch: TokenBatch) -> TokenPart:
    """Prepare a part as the learner does: before the forward pass, without gradient."""
    old: dict[str, Any] = {name: tensor.detach() for name, tensor in batch.tensors().items()}
    prepared = part.prepare(attrs.evolve(batch, **{**old, "logp": old["old_logp"]}))
    require(
        isinstance(prepared, type(part)),
        f"prepare() returned {describe(prepared)}, not the {type(part).__name__} to use",
    )
    return prepared


def _at_knob_ends(part: TokenPart) -> Sequence[TokenPart]:
    """Return the part as it is, and with each of its knobs at either bound."""
    cls: type = type(part)
    if not attrs.has(cls):
        return [part]
    ends: list[dict[str, Any]] = [
        {a.alias: end}
        for a in attrs.fields(cls)
        if isinstance(bounds := a.metadata.get("knob"), Knob)
        for end in (bounds.low, bounds.high)
        if math.isfinite(end)
    ]
    evolve: Callable[..., TokenPart] = attrs.evolve
    return [part, *(evolve(part, **change) for change in ends)]
