"""Packing: from episodes of uneven length to what a forward pass takes, and back to tokens.

A forward pass takes tokens end to end, without padding, and computes a prompt once that several of
its rollouts begin with. What follows a rollout's last sampled token predicts nothing, and is left
out. Only states that predict a sampled token go on to the head.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from isentrope.episodes import Episode, Segment
from isentrope.learner.attention import Rows, lay_out
from isentrope.learner.head import TokenScores
from isentrope.parts import TokenBatch

ATTENDED = 2
"""Tokens of a pack's rows, at most, for each token of its budget: memory of the attention."""


@frozen
class Inputs:
    """One forward pass. N packed tokens, T sampled ones."""

    ids: Tensor
    """[N] int64."""
    position: Tensor
    """[N] int64: in its own sequence."""
    rows: Rows
    """Which of them attend to which."""
    state: Tensor
    """[T] int64: the token after which each sampled token came."""
    target: Tensor
    """[T] int64: the sampled token."""
    pairs: int
    """How many times one token attends to another, or to itself."""


@frozen
class Trajectory:
    """An episode as the learner sees it; t sampled tokens."""

    episode: Episode = field(repr=False)
    group: int
    old: TokenScores = field(repr=False)
    """Under the policy that the iteration began with, [t] float32 each, on the CPU."""
    advantage: Tensor = field(repr=False)
    """[t] float32."""
    reference_logp: Tensor | None = field(default=None, repr=False)
    """[t] float32, on the CPU: under the policy that the run started from, if asked for."""

    def __len__(self) -> int:
        return self.old.logp.numel()


def micro_batches(episodes: Sequence[Episode], budget: int, ranks: int = 1) -> list[list[int]]:
    """Split episodes into packs of at most `budget` tokens, as few and as even as can be.

    Returns indices; as many packs as are a multiple of `ranks`, the fullest first, some of them
    empty if there are too few episodes. Episodes with the same prompt stay together, and share it,
    as far as the budget allows, and as the pack's rows have no more than `ATTENDED` times as many
    tokens. An episode that is longer than the budget gets a pack of its own.
    """
    units = [unit for group in _by_prompt(episodes) for unit in _within(group, budget)]
    units.sort(key=lambda unit: unit.tokens, reverse=True)
    fewest = -(-sum(min(unit.tokens, budget) for unit in units) // budget)
    count = max(1, -(-fewest // ranks)) * ranks
    while (packs := _packed(units, count, budget)) is None:
        count += ranks
    return packs


@frozen
class _Unit:
    """Episodes that are packed together; or all of a pack."""

    episodes: tuple[int, ...] = ()
    tokens: int = 0
    attended: int = 0
    """Tokens of their rows: a shared prompt is in each."""

    def fits(self, budget: int) -> bool:
        return self.tokens <= budget and self.attended <= ATTENDED * budget

    def __add__(self, other: _Unit) -> _Unit:
        return _Unit(
            self.episodes + other.episodes,
            self.tokens + other.tokens,
            self.attended + other.attended,
        )


def _by_prompt(episodes: Sequence[Episode]) -> list[list[tuple[_Unit, int]]]:
    """Return each episode and the length of its prompt, by prompt."""
    groups: dict[bytes, list[tuple[_Unit, int]]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        spans = [_span(segment) for segment in episode.segments]
        # Of an episode in several segments, only the first one's prompt counts as shared.
        prompt, total = spans[0][0], sum(end for _, end in spans)
        key = episode.segments[0].ids[:prompt].tobytes()
        groups[key].append((_Unit((i,), total, total), prompt))
    return list(groups.values())


def _within(group: list[tuple[_Unit, int]], budget: int) -> list[_Unit]:
    """Join episodes of the same prompt to units that keep to the budget."""
    units: list[_Unit] = []
    for one, prompt in group:
        if units:
            joined = units[-1] + attrs.evolve(one, tokens=one.tokens - prompt)
            if joined.fits(budget):
                units[-1] = joined
                continue
        units.append(one)
    return units


def _packed(units: Sequence[_Unit], count: int, budget: int) -> list[list[int]] | None:
    """Put each unit, the largest first, into the emptiest pack; None where one overflows."""
    packs = [(0, i, _Unit()) for i in range(count)]
    for unit in units:
        _, i, pack = heapq.heappop(packs)
        filled = pack + unit
        if pack.episodes and not filled.fits(budget):
            return None
        heapq.heappush(packs, (filled.tokens, i, filled))
    packs.sort(key=lambda pack: (-pack[0], pack[1]))
    return [list(pack.episodes) for _, _, pack in packs]


def _span(segment: Segment) -> tuple[int, int]:
    """Return where a segment's first and last sampled tokens are; (0, 0) where there is none."""
    (sampled,) = segment.sampled.nonzero()
    return (int(sampled[0]), int(sampled[-1])) if len(sampled) else (0, 0)


def collate(
    episodes: Sequence[Episode], device: torch.device, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Pack episodes for one forward pass; sampled tokens come in the order of the episodes.

    dtype: what the attention is computed in. Of no episodes: a token that predicts nothing.
    """
    return pack([segment for episode in episodes for segment in episode.segments], device, dtype)


def pack(segments: Sequence[Segment], device: torch.device, dtype: torch.dtype) -> Inputs:
    """Pack segments; see `collate`."""
    packed = _Pack()
    for segment in segments:
        packed.add(segment)
    return packed.inputs(device, dtype)


class _Pack:
    """Tokens end to end, in the making."""

    def __init__(self) -> None:
        self.tokens = 0
        self.ids: list[NDArray[np.int64]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.rows: list[NDArray[np.int64]] = []
        self.states: list[NDArray[np.int64]] = []
        self.targets: list[NDArray[np.int64]] = []
        self.prompts: dict[bytes, NDArray[np.int64]] = {}

    def add(self, segment: Segment) -> None:
        """Add a segment; its prompt only if it is a new one."""
        (sampled,) = segment.sampled.nonzero()
        if not len(sampled):
            return
        first, last = int(sampled[0]), int(sampled[-1])
        prompt = segment.ids[:first]
        key = prompt.tobytes()
        if key not in self.prompts:
            self.prompts[key] = self._extend(prompt, 0)
        own = self._extend(segment.ids[first:last], first)
        row = np.concatenate((self.prompts[key], own))
        self.rows.append(row)
        self.states.append(row[sampled - 1])
        self.targets.append(segment.ids[sampled])

    def inputs(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return the pack as tensors."""
        if not self.rows:
            self.rows.append(self._extend(np.zeros(1, np.int64), 0))
        ids, position, state, target = (
            torch.from_numpy(np.concatenate(arrays or [np.zeros(0, np.int64)])).to(device)
            for arrays in (self.ids, self.positions, self.states, self.targets)
        )
        rows = lay_out(self.rows, self.tokens, device, dtype)
        pairs = sum(len(row) * (len(row) + 1) // 2 for row in self.rows)
        return Inputs(ids, position, rows, state, target, pairs)

    def _extend(self, ids: NDArray[np.int64], position: int) -> NDArray[np.int64]:
        """Append tokens, the first of them at a position of its sequence; return their indices."""
        start, self.tokens = self.tokens, self.tokens + len(ids)
        self.ids.append(ids)
        self.positions.append(np.arange(position, position + len(ids)))
        return np.arange(start, self.tokens)


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


def _joined(columns: Sequence[Tensor | None]) -> Tensor | None:
    known = [column for column in columns if column is not None]
    return torch.cat(known) if known else None


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
        reference_logp=_joined([t.reference_logp for t in trajectories]),
    )
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {name: x.to(device) for name, x in batch.tensors().items()}
    return attrs.evolve(batch, **moved)
