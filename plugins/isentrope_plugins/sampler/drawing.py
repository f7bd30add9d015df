"""Drawing tokens: from logits and uniform numbers to token ids and their log-probabilities.

Shape legend: B rows of the batch, R rows that truncate, V vocabulary.

Each row is drawn by inverting its cumulative distribution at a uniform number that belongs to its
own request, so that neighbours in the batch change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from isentrope import EngineError, Sampling

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 64
"""Uniform numbers drawn at a time: a bound on memory where max_tokens is large."""


class Uniforms:
    """One stream of uniform numbers in [0, 1) per row, decided by its seed alone."""

    def __init__(self, seeds: Sequence[int]) -> None:
        # Philox is made for this: any two keys, neighbours included, give unrelated streams.
        self._streams = [np.random.Generator(np.random.Philox(key=seed % 2**128)) for seed in seeds]
        self._block = np.empty((len(seeds), 0))
        self._at = 0

    def __next__(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return the next number of every stream, [B] float64."""
        if self._at == self._block.shape[1]:
            self._block = np.stack([stream.random(_BLOCK) for stream in self._streams])
            self._at = 0
        self._at += 1
        return self._block[:, self._at - 1]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these streams, in this order."""
        self._streams = [self._streams[row] for row in rows]
        self._block = self._block[rows]


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
        self._temperature = (
            None if set(temperatures) <= {1.0} else column(temperatures, torch.float32)
        )

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._samplings = [self._samplings[row] for row in rows]
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
        if len(self._rows):
            logits[self._rows] = truncate(logits[self._rows], self._top_k, self._top_p)
        uniform = torch.from_numpy(next(self._uniforms)).to(self._device)
        return invert(logits, uniform)


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
    # Below the total even where the product rounds up: the token found has probability then.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, target, right=True)
    logp = scores.gather(-1, ids) - total.log().float()
    return ids[:, 0], logp[:, 0]
