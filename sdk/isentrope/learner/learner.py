"""The learner: recomputes log-probs, and turns minibatches into optimizer steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import attrs
import torch
from attrs import define, field, frozen
from torch import Tensor

from isentrope.algorithms import Algorithm
from isentrope.config import LearnerConfig
from isentrope.episodes import Episode
from isentrope.errors import ConfigError
from isentrope.learner.aggregation import token_weights
from isentrope.learner.packing import Trajectory, collate, micro_batches, token_batch
from isentrope.learner.policy import Policy
from isentrope.parts import AdvantageTransform, Component, TokenBatch


@frozen
class StepReport:
    """What one optimizer step did. Means are over the minibatch's unmasked tokens."""

    loss: float
    grad_norm: float
    """L2 norm before clipping."""
    skipped: bool
    """The gradient was not finite: nothing was changed."""
    tokens: int
    diagnostics: dict[str, float]


@define
class Learner:
    """A policy and its optimizer."""

    policy: Policy
    config: LearnerConfig
    optimizer: torch.optim.Optimizer = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the optimizer."""
        self.optimizer = torch.optim.AdamW(
            self.policy.trainable(),
            lr=self.config.lr,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        # What AdamW makes at its first step, made now: a checkpoint before that is one like any.
        for parameter in self.policy.trainable():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.policy.parameters()).device

    @torch.no_grad()
    def log_probs(self, episodes: Sequence[Episode]) -> list[Tensor]:
        """Return the present policy's log-probs [t] float32 of each episode's sampled tokens."""
        found: dict[int, Tensor] = {}
        for indices in micro_batches(episodes, self.config.micro_batch_tokens):
            part = [episodes[i] for i in indices]
            logp, _ = self.policy(collate(part, self.device))
            lengths = [e.sampled_tokens for e in part]
            found.update(zip(indices, logp.cpu().split(lengths), strict=True))
        return [found[i] for i in range(len(episodes))]

    def step(
        self,
        algorithm: Algorithm,
        minibatch: Sequence[Trajectory],
        *,
        nominal_sequences: int,
        step: int,
    ) -> StepReport:
        """Take one optimizer step on a minibatch.

        nominal_sequences: episodes in a full minibatch. step: steps taken since the experience was
        collected.
        """
        whole = token_batch(minibatch, self.device, step)
        prepared, total_tokens = algorithm.prepare(whole), int(whole.mask.sum())
        total_loss = torch.zeros((), device=self.device)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.optimizer.zero_grad(set_to_none=True)
        episodes = [t.episode for t in minibatch]
        for indices in micro_batches(episodes, self.config.micro_batch_tokens):
            batch = self._forward(prepared, [minibatch[i] for i in indices], step, sums)
            weights = token_weights(
                prepared, batch, nominal_sequences=nominal_sequences, total_tokens=total_tokens
            )
            per_token = _of_tokens(prepared.objective(batch), batch, prepared.objective)
            if not per_token.requires_grad:
                name = type(prepared.objective).__name__
                raise ConfigError(
                    f"{name} returned a loss without gradient; it must depend on batch.logp."
                )
            loss = (weights * per_token.where(batch.mask, per_token.new_zeros(()))).sum()
            loss.backward()
            total_loss += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.trainable(), self.config.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
        means = {name: float(total) / max(total_tokens, 1) for name, total in sums.items()}
        return StepReport(float(total_loss), float(norm), not finite, total_tokens, means)

    def _forward(
        self,
        algorithm: Algorithm,
        trajectories: Sequence[Trajectory],
        step: int,
        sums: dict[str, Tensor],
    ) -> TokenBatch:
        """Run the policy on one micro-batch and transform its advantages."""
        inputs = collate([t.episode for t in trajectories], self.device)
        logp, entropy = self.policy(inputs, entropy="entropy" in algorithm.needs)
        batch = token_batch(trajectories, self.device, step)
        batch = attrs.evolve(batch, logp=logp, entropy=entropy)
        for slot, part in algorithm.slots().items():
            if isinstance(part, AdvantageTransform):
                _add_diagnostics(sums, slot, part, batch)
                advantage = _of_tokens(part(batch), batch, part).detach().to(batch.logp.dtype)
                batch = attrs.evolve(batch, advantage=advantage)
        _add_diagnostics(sums, "objective", algorithm.objective, batch)
        return batch


def _of_tokens(values: object, batch: TokenBatch, part: Component) -> Tensor:
    """Check that a part returned one value per token: any other shape would broadcast."""
    if isinstance(values, Tensor) and values.shape == batch.logp.shape:
        return values
    shape = f"shape {list(values.shape)}" if isinstance(values, Tensor) else repr(values)
    raise ConfigError(
        f"{type(part).__name__} must return one value per token, shape {list(batch.logp.shape)}; "
        f"got {shape}."
    )


@torch.no_grad()
def _add_diagnostics(
    sums: dict[str, Tensor], slot: str, part: Component, batch: TokenBatch
) -> None:
    for name, values in part.diagnostics(batch).items():
        checked = _of_tokens(values, batch, part)
        sums[f"{slot}/{name}"] += torch.where(batch.mask, checked, 0).sum()
