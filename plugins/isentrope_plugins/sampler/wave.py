"""One wave: requests sampled together, from prompts to completions.

Shape legend: B live rows of the batch, U distinct prompts, P slots of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from isentrope import Completion, Sampling
from isentrope_plugins.sampler.drawing import Drawer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from isentrope_plugins.sampler.decoder import CacheT, Decoder

_WORTH_COMPACTING = 0.25
"""Share of finished rows from which copying the others' cache costs less than decoding them on."""
_LOOK_EVERY = 16
"""Tokens between two looks at who has gone: asking every row takes time, too."""


class Request(Protocol):
    """What a wave needs to know of a request."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How to draw."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the completion any more; may turn true at any time."""
        ...


def sample(decoder: Decoder[CacheT], requests: Sequence[Request], version: int) -> list[Completion]:
    """Draw a completion of every request; an abandoned one's is cut off anywhere."""
    with torch.inference_mode():
        wave = _Wave(decoder, requests)
        while wave.live.any():
            wave.advance()
    return wave.completions(version)


class _Wave:
    """The rows in flight, and what has been drawn for each."""

    def __init__(self, decoder: Decoder[CacheT], requests: Sequence[Request]) -> None:
        samplings = [request.sampling for request in requests]
        self._decoder = decoder
        self._requests = requests
        self._drawer = Drawer(samplings, decoder.device)
        self._logits, self._cache = _prefill(decoder, [request.prompt for request in requests])
        self._steps = 0

        longest = max(sampling.max_tokens for sampling in samplings)
        self._ids = np.zeros((len(requests), longest), np.int64)
        self._logp = np.zeros((len(requests), longest), np.float32)
        self._lengths = np.zeros(len(requests), np.int64)
        self._stopped = np.zeros(len(requests), np.bool_)

        # Of the rows still in the batch: which request each belongs to, and whether it goes on.
        self._of = np.arange(len(requests))
        self.live = np.ones(len(requests), np.bool_)
        self._limits = np.array([sampling.max_tokens for sampling in samplings])
        self._stops = _stop_table(samplings)

    def advance(self) -> None:
        """Draw one token of every row, retire what ended, and compute the next logits."""
        drawn, logp = self._drawer.draw(self._logits)
        ids = drawn.cpu().numpy()
        self._ids[self._of, self._steps] = ids
        self._logp[self._of, self._steps] = logp.cpu().numpy()
        self._steps += 1
        self._retire(ids)
        if not self.live.any():
            return
        if 1 - self.live.mean() >= _WORTH_COMPACTING:
            drawn = drawn[self._compact()]
        self._logits = self._decoder.step(drawn, self._cache)

    def _retire(self, ids: NDArray[np.int64]) -> None:
        """Close the rows whose token `ids` [B] was their last."""
        stopped = (ids[:, None] == self._stops).any(1)
        ended = stopped | (self._limits <= self._steps)
        if self._steps % _LOOK_EVERY == 0:
            ended |= self._abandoned()
        closing = self._of[self.live & ended]
        self._lengths[closing] = self._steps
        self._stopped[closing] = stopped[self.live & ended]
        self.live &= ~ended

    def _abandoned(self) -> NDArray[np.bool_]:
        return np.array([self._requests[index].abandoned for index in self._of.tolist()])

    def _compact(self) -> Tensor:
        """Drop finished rows from the batch; return the rows [B'] that were kept."""
        kept = np.flatnonzero(self.live)
        rows = torch.from_numpy(kept).to(self._decoder.device)
        self._cache.select(rows)
        self._drawer.select(kept)
        self._of, self._limits, self._stops = self._of[kept], self._limits[kept], self._stops[kept]
        self.live = np.ones(len(kept), np.bool_)
        return rows

    def completions(self, version: int) -> list[Completion]:
        """Return what was drawn, in the order of the requests."""
        return [
            Completion(
                ids=ids[:length].tolist(),
                logp=logp[:length].tolist(),
                finish_reason="stop" if stopped else "length",
                version=version,
            )
            for ids, logp, length, stopped in zip(
                self._ids, self._logp, self._lengths, self._stopped, strict=True
            )
        ]


def _prefill(decoder: Decoder[CacheT], prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, CacheT]:
    """Read every distinct prompt once; return one row of logits and cache per prompt given."""
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    width = max(map(len, distinct))
    pads = [width - len(prompt) for prompt in distinct]
    padded = [[0] * pad + list(prompt) for pad, prompt in zip(pads, distinct, strict=True)]
    ids = torch.tensor(padded, device=decoder.device)
    pad = torch.tensor(pads, device=decoder.device) if any(pads) else None
    logits, cache = decoder.prefill(ids, pad)
    if len(distinct) < len(prompts):
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=decoder.device)
        logits = logits[rows]
        cache.select(rows)
    return logits, cache


def _stop_table(samplings: Sequence[Sampling]) -> NDArray[np.int64]:
    """Return every row's stop ids side by side, filled up with -1, which is no token."""
    table = np.full((len(samplings), max(len(s.stop_ids) for s in samplings)), -1)
    for row, sampling in zip(table, samplings, strict=True):
        row[: len(sampling.stop_ids)] = sampling.stop_ids
    return table
