"""Packing: from episodes of uneven length to what a forward pass takes, and back to tokens.

A forward pass takes rows of similar length, padded on the right: causal attention then needs no
mask, since no token sees what is behind it. Only states that predict a sampled token go on to the
head, so that everything after the decoder is packed: [T] tokens, no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from isentrope.episodes import Episode
from isentrope.learner.head import TokenScores
from isentrope.parts import TokenBatch


@frozen
class Inputs:
    """One forward pass. R rows, L positions, T sampled tokens."""

    ids: Tensor
    """[R, L] int64, padded on the right with 0."""
    row: Tensor
    """[T] int64: row of the state that predicts each sampled token."""
    column: Tensor
    """[T] int64: its position."""
    target: Tensor
    """[T] int64: the sampled token."""


@frozen
class Trajectory:
    """An episode as the learner sees it; t sampled tokens."""

    episode: Episode = field(repr=False)
    group: int
    old: TokenScores = field(repr=False)
    """Under the policy that the iteration began with, [t] float32 each, on the CPU."""
    advantage: Tensor = field(repr=False)
    """[t] float32."""

    def __len__(self) -> int:
        return self.old.logp.numel()


def row_tokens(episode: Episode) -> int:
    """Return the length of an episode's longest segment."""
    return max(len(segment.ids) for segment in episode.segments)


def micro_batches(episodes: Sequence[Episode], budget: int) -> list[list[int]]:
    """Split episodes into batches of similar length, each of at most `budget` padded tokens.

    Returns indices. An episode longer than the budget gets a batch of its own.
    """
    order = sorted(range(len(episodes)), key=lambda i: row_tokens(episodes[i]))
    batches: list[list[int]] = []
    rows = 0
    for i in order:
        rows += len(episodes[i].segments)
        if not batches or rows * row_tokens(episodes[i]) > budget:
            batches.append([])
            rows = len(episodes[i].segments)
        batches[-1].append(i)
    return batches


def collate(episodes: Sequence[Episode], device: torch.device) -> Inputs:
    """Lay episodes out for one forward pass; tokens come in the order of the episodes."""
    segments = [segment for episode in episodes for segment in episode.segments]
    lengths = np.array([len(segment.ids) for segment in segments])
    inside = np.arange(lengths.max()) < lengths[:, None]
    ids, sampled = np.zeros(inside.shape, np.int64), np.zeros(inside.shape, np.bool_)
    ids[inside] = np.concatenate([segment.ids for segment in segments])
    sampled[inside] = np.concatenate([segment.sampled for segment in segments])
    row, position = sampled.nonzero()
    arrays = (ids, row, position - 1, ids[row, position])
    return Inputs(*(torch.from_numpy(x).to(device) for x in arrays))


def concatenate(scores: Sequence[TokenScores]) -> TokenScores:
    """Return the scores of all tokens, end to end; what one of them lacks, all lack."""

    def column(name: str) -> Any:
        parts = [getattr(one, name) for one in scores]
        return None if parts[0] is None else torch.cat(parts)

    return TokenScores(*map(column, TokenScores._fields))


def split(scores: TokenScores, lengths: list[int]) -> list[TokenScores]:
    """Cut scores into those of each episode, on the CPU."""
    columns: list[Any] = [
        [None] * len(lengths) if column is None else column.detach().cpu().split(lengths)
        for column in scores
    ]
    return [TokenScores(*row) for row in zip(*columns, strict=True)]


def token_batch(trajectories: Sequence[Trajectory], device: torch.device, step: int) -> TokenBatch:
    """Concatenate trajectories; all is the old policy's until a forward pass replaces it."""
    lengths = torch.tensor([len(t) for t in trajectories])
    old = concatenate([t.old for t in trajectories])
    segments = [s for t in trajectories for s in t.episode.segments]
    sampled = np.concatenate([s.sampled for s in segments])

    def per_token(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(s, name) for s in segments])[sampled])

    batch = TokenBatch(
        logp=old.logp,
        old_logp=old.logp,
        engine_logp=per_token("logp"),
        advantage=torch.cat([t.advantage for t in trajectories]),
        mask=torch.ones(old.logp.shape, dtype=torch.bool),
        sequence=torch.repeat_interleave(torch.arange(len(trajectories)), lengths),
        group=torch.repeat_interleave(torch.tensor([t.group for t in trajectories]), lengths),
        turn=per_token("turn"),
        num_sequences=len(trajectories),
        step=step,
        entropy=old.entropy,
        entropy_response=old.entropy_response,
    )
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {name: x.to(device) for name, x in batch.tensors().items()}
    return attrs.evolve(batch, **moved)
