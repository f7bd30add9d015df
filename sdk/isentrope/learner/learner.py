"""The learner: recomputes log-probs, and turns minibatches into optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs
import torch
from attrs import define, field, frozen
from torch import Tensor

from isentrope.algorithms import Algorithm, of_tokens
from isentrope.config import LearnerConfig
from isentrope.episodes import Episode
from isentrope.errors import ConfigError
from isentrope.learner.aggregation import weighted
from isentrope.learner.head import TokenScores
from isentrope.learner.packing import Trajectory, collate, micro_batches, split, token_batch
from isentrope.learner.policy import Policy
from isentrope.parts import AdvantageTransform, Objective, TokenBatch, TokenPart


@frozen
class StepReport:
    """What one optimizer step did. Means are over the minibatch's unmasked tokens."""

    loss: float
    grad_norm: float
    """L2 norm before clipping."""
    skipped: bool
    """The gradient was not finite: nothing was changed."""
    tokens: int
    effective: float
    """Share of tokens whose log-prob had a gradient."""
    diagnostics: dict[str, float]
    """The parts' own, by ``slot/name``."""
    logp: Tensor = field(eq=False, repr=False)
    """[tokens] float32, on the CPU: log-probs that the step began with."""
    old_logp: Tensor = field(eq=False, repr=False)
    """[tokens] float32: the old policy's."""


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
    def scores(self, episodes: Sequence[Episode], needs: frozenset[str]) -> list[TokenScores]:
        """Return what the present policy says of each episode's sampled tokens, [t], on the CPU.

        needs: what beside log-probs, of `parts.NEEDS`.
        """
        found: dict[int, TokenScores] = {}
        for indices in micro_batches(episodes, self.config.micro_batch_tokens):
            part = [episodes[i] for i in indices]
            of_tokens = self.policy(collate(part, self.device), needs=needs)
            lengths = [e.sampled_tokens for e in part]
            found.update(zip(indices, split(of_tokens, lengths), strict=True))
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
        total_tokens = int(whole.mask.sum())
        weigh = partial(
            weighted, algorithm, nominal_sequences=nominal_sequences, total_tokens=total_tokens
        )
        prepared = algorithm.prepare(weigh(whole))
        total_loss = torch.zeros((), device=self.device)
        tally = _Tally()
        self.optimizer.zero_grad(set_to_none=True)
        episodes = [t.episode for t in minibatch]
        for indices in micro_batches(episodes, self.config.micro_batch_tokens):
            batch = self._forward(prepared, [minibatch[i] for i in indices], step)
            batch = transformed(prepared, weigh(batch), tally)
            per_token = _loss(prepared, batch, tally)
            loss = (batch.weight * per_token.where(batch.mask, per_token.new_zeros(()))).sum()
            batch.logp.retain_grad()
            loss.backward()
            total_loss += loss.detach()
            tally.add_tokens(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.trainable(), self.config.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
        return StepReport(
            loss=float(total_loss),
            grad_norm=float(norm),
            skipped=not finite,
            tokens=total_tokens,
            effective=float(sum(tally.effective)) / max(total_tokens, 1),
            diagnostics={n: float(x) / max(total_tokens, 1) for n, x in tally.sums.items()},
            logp=torch.cat(tally.logp).cpu(),
            old_logp=torch.cat(tally.old_logp).cpu(),
        )

    def _forward(
        self, algorithm: Algorithm, trajectories: Sequence[Trajectory], step: int
    ) -> TokenBatch:
        """Run the policy on one micro-batch."""
        inputs = collate([t.episode for t in trajectories], self.device)
        batch = token_batch(trajectories, self.device, step)
        return attrs.evolve(batch, **self.policy(inputs, needs=algorithm.needs)._asdict())


@define
class _Tally:
    """What a step's micro-batches add up to for the log."""

    sums: dict[str, Tensor] = field(factory=dict)
    effective: list[Tensor] = field(factory=list)
    logp: list[Tensor] = field(factory=list)
    old_logp: list[Tensor] = field(factory=list)

    @torch.no_grad()
    def add(self, slot: str, part: TokenPart, batch: TokenBatch) -> None:
        """Add a part's own diagnostics."""
        for name, values in part.diagnostics(batch).items():
            total = torch.where(batch.mask, of_tokens(values, batch, part), 0).sum()
            key = f"{slot}/{name}"
            self.sums[key] = self.sums[key] + total if key in self.sums else total

    def add_tokens(self, batch: TokenBatch) -> None:
        """Add what is known of any loss, after its gradient is."""
        if batch.logp.grad is not None:  # where the loss is of the entropy alone, there is none
            self.effective.append(batch.logp.grad[batch.mask].count_nonzero())
        self.logp.append(batch.logp.detach()[batch.mask])
        self.old_logp.append(batch.old_logp[batch.mask])


def transformed(algorithm: Algorithm, batch: TokenBatch, tally: _Tally | None = None) -> TokenBatch:
    """Return the batch with its advantages transformed."""
    for slot, part in algorithm.slots().items():
        if isinstance(part, AdvantageTransform):
            if tally is not None:
                tally.add(slot, part, batch)
            advantage = of_tokens(part(batch), batch, part).detach().to(batch.logp.dtype)
            batch = attrs.evolve(batch, advantage=advantage)
    return batch


def _loss(algorithm: Algorithm, batch: TokenBatch, tally: _Tally) -> Tensor:
    """Return the loss per token [T]: the objective's and the regularizers', added up."""
    total = torch.zeros_like(batch.logp)
    for slot, part in algorithm.slots().items():
        if isinstance(part, Objective):
            tally.add(slot, part, batch)
            loss = of_tokens(part(batch), batch, part)
            if not loss.requires_grad:
                raise ConfigError(
                    f"{type(part).__name__} returned a loss without gradient; it must depend on "
                    "batch.logp or batch.entropy."
                )
            total = total + loss
    return total
