"""The learner: recomputes log-probs, and turns minibatches into optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from attrs import define, field, frozen
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from isentrope.algorithms import Algorithm, of_tokens
from isentrope.config import LearnerConfig
from isentrope.episodes import Episode
from isentrope.errors import ConfigError
from isentrope.learner.aggregation import weighted
from isentrope.learner.head import KNOWN, TokenScores
from isentrope.learner.packing import (
    Inputs,
    Trajectory,
    collate,
    micro_batches,
    split,
    token_batch,
)
from isentrope.learner.policy import Policy
from isentrope.learner.ranks import Ranks
from isentrope.learner.scaling import LossScale
from isentrope.learner.sharding import shard
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
    """A policy and its optimizer; with several ranks, this one's shard of them.

    What it is given and what it returns is the same on every rank: each computes micro-batches of
    its own, and sums are taken over all.
    """

    policy: Policy
    config: LearnerConfig
    ranks: Ranks = field(factory=Ranks)
    optimizer: torch.optim.Optimizer = field(init=False)
    scale: LossScale = field(init=False)
    flops: float = field(default=0.0, init=False)
    """Floating-point operations of this rank so far, as a model needs them; what is computed twice
    to save memory counts once."""

    def __attrs_post_init__(self) -> None:
        """Shard the policy, and make the optimizer of what is to be trained."""
        shard(self.policy, self.config, self.ranks)
        trained = self.policy.trainable()
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in trained if p.dim() > 1],
                    "weight_decay": self.config.weight_decay,
                },
                {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=self.config.lr,
            betas=self.config.betas,
            fused=True,
        )
        # What AdamW makes at its first step, made now: a checkpoint before that is one like any.
        for parameter in self.policy.trainable():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.scale = LossScale() if self.config.dtype == "float16" else LossScale(1.0, fixed=True)

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return self.policy.device

    def set_rate(self, iteration: int, iterations: int) -> float:
        """Set the learning rate of an iteration, of so many, and return it."""
        rate = self.config.lr * _factor(self.config, iteration, iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def scores(self, episodes: Sequence[Episode], needs: frozenset[str]) -> list[TokenScores]:
        """Return what the present policy says of each episode's sampled tokens, [t], on the CPU.

        needs: what beside log-probs, of `parts.NEEDS`.
        """
        found: dict[int, TokenScores] = {}
        for indices in self._own_micro_batches(episodes):
            part = [episodes[i] for i in indices]
            inputs = self._collate(part)
            of_tokens = self.policy(inputs, needs=needs & KNOWN)
            self.flops += self.policy.flops(inputs)
            lengths = [e.sampled_tokens for e in part]
            found.update(zip(indices, split(of_tokens, lengths), strict=True))
        everywhere = {i: scores for own in self.ranks.gather(found) for i, scores in own.items()}
        return [everywhere[i] for i in range(len(episodes))]

    def reference_logps(self, episodes: Sequence[Episode]) -> list[Tensor]:
        """Return log-probs [t] of each episode's sampled tokens when training began, on the CPU.

        Raises `ConfigError` where the full weights are trained: nothing is left of the start.
        """
        with self.policy.at_start():
            return [scores.logp for scores in self.scores(episodes, frozenset())]

    def step(
        self,
        algorithm: Algorithm,
        minibatch: Sequence[Trajectory],
        *,
        nominal_sequences: int,
        step: int,
        watch: Callable[[Sequence[Trajectory], TokenBatch], None] | None = None,
    ) -> StepReport:
        """Take one optimizer step on a minibatch.

        nominal_sequences: episodes in a full minibatch. step: steps taken since the experience was
        collected. watch: called with each of this rank's micro-batches, its gradient known.
        """
        whole = token_batch(minibatch, self.device, step)
        total_tokens = int(whole.mask.sum())
        weigh = partial(
            weighted, algorithm, nominal_sequences=nominal_sequences, total_tokens=total_tokens
        )
        prepared = algorithm.prepare(weigh(whole))
        tally = _Tally()
        self.release()
        for indices in self._own_micro_batches([t.episode for t in minibatch]):
            own = [minibatch[i] for i in indices]
            inputs = self._collate([t.episode for t in own])
            scores = self.policy(inputs, needs=algorithm.needs & KNOWN)
            if not own:  # this rank only takes part in the others' sums
                (0.0 * scores.logp.sum()).backward()
                continue
            present = {n: x for n, x in scores._asdict().items() if x is not None}
            batch = attrs.evolve(token_batch(own, self.device, step), **present)
            batch = transformed(prepared, weigh(batch), tally)
            per_token = _loss(prepared, batch, tally)
            loss = (batch.weight * per_token.where(batch.mask, per_token.new_zeros(()))).sum()
            batch.logp.retain_grad()
            self.flops += self.policy.flops(inputs) * (3 if self.config.lora is None else 2)
            (self.scale.value * loss).backward()
            tally.add_tokens(batch, loss)
            if watch is not None:
                watch(own, batch)
        self.scale.undo(self.policy.trainable())
        norm = _norm(clip_grad_norm_(self.policy.trainable(), self.config.max_grad_norm))
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
        self.scale.update(finite)
        tally = _Tally.all(self.ranks.gather(tally))
        return StepReport(
            loss=tally.loss,
            grad_norm=norm,
            skipped=not finite,
            tokens=total_tokens,
            effective=tally.effective / max(total_tokens, 1),
            diagnostics={n: x / max(total_tokens, 1) for n, x in tally.sums.items()},
            logp=torch.cat(tally.logp),
            old_logp=torch.cat(tally.old_logp),
        )

    def release(self) -> None:
        """Forget the last step's gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _own_micro_batches(self, episodes: Sequence[Episode]) -> list[list[int]]:
        """Return this rank's: every rank has equally many, and some may be empty."""
        every = micro_batches(episodes, self.config.micro_batch_tokens, self.ranks.size)
        return every[self.ranks.rank :: self.ranks.size]

    def _collate(self, episodes: Sequence[Episode]) -> Inputs:
        return collate(episodes, self.device, self.config.torch_dtype)


@define
class _Tally:
    """What a step's micro-batches add up to for the log."""

    loss: float = 0.0
    effective: int = 0
    sums: dict[str, float] = field(factory=dict)
    logp: list[Tensor] = field(factory=list)
    old_logp: list[Tensor] = field(factory=list)

    @torch.no_grad()
    def add(self, slot: str, part: TokenPart, batch: TokenBatch) -> None:
        """Add a part's own diagnostics."""
        for name, values in part.diagnostics(batch).items():
            total = torch.where(batch.mask, of_tokens(values, batch, part), 0).sum()
            key = f"{slot}/{name}"
            self.sums[key] = self.sums.get(key, 0.0) + float(total)

    def add_tokens(self, batch: TokenBatch, loss: Tensor) -> None:
        """Add what is known of any loss, after its gradient is."""
        self.loss += float(loss.detach())
        if batch.logp.grad is not None:  # where the loss is of the entropy alone, there is none
            self.effective += int(batch.logp.grad[batch.mask].count_nonzero())
        self.logp.append(batch.logp.detach()[batch.mask].cpu())
        self.old_logp.append(batch.old_logp[batch.mask].cpu())

    @classmethod
    def all(cls, tallies: Sequence[_Tally]) -> _Tally:
        """Add up the ranks'."""
        total = cls()
        for tally in tallies:
            total.loss += tally.loss
            total.effective += tally.effective
            for name, value in tally.sums.items():
                total.sums[name] = total.sums.get(name, 0.0) + value
            total.logp += tally.logp
            total.old_logp += tally.old_logp
        return total


def _factor(config: LearnerConfig, iteration: int, iterations: int) -> float:
    """Return what transformers' schedule multiplies the rate by."""
    from transformers import get_scheduler

    name: str = config.schedule
    if name == "constant" and config.warmup:
        name = "constant_with_warmup"
    nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # a schedule wants an optimizer
    schedule: Any = get_scheduler(name, nothing, config.warmup, iterations + 1)
    factor: float = schedule.lr_lambdas[0](iteration + 1)  # its 0 is before warm-up: at rest
    return factor


def _norm(norm: Tensor) -> float:
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


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
