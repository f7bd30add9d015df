"""Drawing tokens: from logits and uniform numbers to token ids and their log-probabilities.

Shape legend: B rows of the batch, R rows that truncate, V vocabulary.

Each row is drawn by inverting its cumulative distribution at a uniform number that belongs to its
own request, so that neighbours in the batch change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from isentrope import EngineError, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Uniforms:
    """One stream of uniform numbers in [0, 1) per row, decided by its seed alone.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), for
    all rows at once: a generator object per row would take as long as several tokens.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        # Mixed, the streams of neighbouring seeds have nothing in common.
        self._state = _mix(np.array([seed % 2**64 for seed in seeds], np.uint64))

    def __next__(self) -> NDArray[np.float64]:
        """Return the next number of every stream, [B]."""
        self._state = self._state + _GOLDEN
        return (_mix(self._state) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep these streams, in this order."""
        self._state = self._state[rows]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits of which each depends on all bits of `state`."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class Drawer:
    """How each row of a batch is drawn."""

    def __init__(self, samplings: Sequence[Sampling], device: str) -> None:
        self._samplings = list(samplings)
        self._device = device
        self._uniforms = Uniforms([sampling.seed for sampling in samplings])
        self._prepare()

    def _prepare(self) -> None:
        """Lay the parameters out as columns."""

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)[:, None]

        truncating = [row for row, s in enumerate(self._samplings) if s.truncates]
        self._rows = torch.tensor(truncating, dtype=torch.long, device=self._device)
        self._top_k = column([self._samplings[r].top_k for r in truncating], torch.long)
        self._top_p = column([self._samplings[r].top_p for r in truncating], torch.float64)
        temperatures = [sampling.temperature for sampling in self._samplings]
        tempered = any(temperature != 1 for temperature in temperatures)
        self._temperature = column(temperatures, torch.float32) if tempered else None

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep these rows, in this order."""
        self._samplings = [self._samplings[row] for row in rows.tolist()]
        self._uniforms.select(rows)
        self._prepare()

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one token of every row; `logits` [B, V] float32 are overwritten.

        Returns ids [B] int64 and log-probabilities [B] float32, in nats, of the distribution that
        was drawn from: at the row's temperature, renormalised over what top-k and top-p left.
        """
        logits -= logits.amax(-1, keepdim=True)
        if self._temperature is not None:
            logits /= self._temperature
        for rows, top_k, top_p in _blocks(logits.shape[1], self._rows, self._top_k, self._top_p):
            logits[rows] = truncate(logits[rows], top_k, top_p)
        uniform = torch.from_numpy(next(self._uniforms)).to(self._device)
        drawn = [invert(*block) for block in _blocks(logits.shape[1], logits, uniform)]
        ids, logp = zip(*drawn, strict=True)
        return torch.cat(ids), torch.cat(logp)


_ENTRIES = 2**23
"""Vocabulary entries handled at a time; with float64 sums, some 30 bytes each."""


def _blocks(vocabulary: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors [B, ...] alike into blocks of rows that are cheap on memory."""
    rows = max(1, _ENTRIES // vocabulary)
    for start in range(0, len(columns[0]), rows):
        yield tuple(column[start : start + rows] for column in columns)


def truncate(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return `scores` [R, V] with -inf where a token is not in the top k, then not in the top p.

    `top_k` [R, 1] int64, 0: off. `top_p` [R, 1] float64, 1: off; of the distribution that top-k
    left: the fewest tokens, most probable first, whose probabilities reach p. Ties go to the lower
    id, so exactly k tokens stay.
    """
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    ordered = ordered.masked_fill((rank >= top_k) & (top_k > 0), -torch.inf)
    probability = ordered.double().softmax(-1)
    before = probability.cumsum(-1) - probability
    ordered = ordered.masked_fill((before >= top_p) & (top_p < 1), -torch.inf)
    return torch.empty_like(scores).scatter_(-1, order, ordered)


def invert(scores: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from softmax(scores) at `uniform` [B] float64; scores [B, V] float32, at most 0.

    Returns ids [B] int64 and log-probabilities [B] float32.
    """
    cumulative = scores.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if not bool(total.isfinite().all()):
        raise EngineError("the model's logits are not finite; were its weights before publishing?")
    # A number of 53 bits below 1 times the total rounds to less than the total, so the first sum
    # above the product exists, and belongs to a token that has probability.
    ids = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    logp = scores.gather(-1, ids) - total.log().float()
    return ids[:, 0], logp[:, 0]
