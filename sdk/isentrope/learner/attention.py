"""Attention over packed tokens: which of them attend to which, and how that is computed.

transformers' models hand their attention to a function that is registered by name. Ours gets the
tokens of a pack end to end, with the `Rows` that they form: row after row, each causal, no row sees
another. Rows may share tokens (the prompt of a group): a shared token is computed once, everywhere
but in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from isentrope.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "isentrope-rows"
GROWTH, SLACK = 1.25, 16
"""Rows of a bucket are at most so many times as long as its shortest, and so many tokens longer."""


class NotPackedError(RuntimeError):
    """A learner's model was called without rows, or with padding."""


class Rows(Protocol):
    """Which of N packed tokens attend to which."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Return [N, H, D] for query [N, H, D], key and value [N, K, D]; K divides H."""
        ...


@frozen
class PaddedRows:
    """Rows of similar length at a time, padded for the attention alone: any device, any dtype."""

    buckets: tuple[Tensor, ...]
    """[R, L] int64 each: the tokens of R rows, padded on the right with any."""
    place: Tensor
    """[N] int64: where each token is, in the buckets end to end."""
    longest: int

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.int64]], tokens: int, device: torch.device) -> PaddedRows:
        """Lay out rows of token indices for a pack of so many tokens."""
        place = np.zeros(tokens, np.int64)
        buckets, done = [], 0
        for bucket in _buckets(sorted(rows, key=len)):
            index = np.zeros((len(bucket), len(bucket[-1])), np.int64)
            for i, row in enumerate(bucket):
                index[i, : len(row)] = row
                place[row] = done + i * index.shape[1] + np.arange(len(row))
            buckets.append(torch.from_numpy(index).to(device))
            done += index.size
        longest = max(map(len, rows), default=0)
        return cls(tuple(buckets), torch.from_numpy(place).to(device), longest)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `Rows`."""
        found = []
        for index in self.buckets:
            # Causal and padded on the right: no token sees what is behind it, so no mask is needed.
            q, k, v = (
                x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
                for x in (query, key, value)
            )
            grouped = k.shape[1] != q.shape[1]
            if grouped and q.is_cuda:  # whose fast float32 kernels may want equal heads
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
                grouped = False
            output = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped
            )
            found.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(found).index_select(0, self.place)


@frozen
class RaggedRows:
    """All rows in one call of flash attention, without padding: 16-bit numbers on a GPU."""

    index: Tensor
    """[M] int64: the rows' tokens, row after row."""
    start: Tensor
    """[R + 1] int32: where each row starts in it, and its end."""
    place: Tensor
    """[N] int64: where each token is in it."""
    longest: int

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.int64]], tokens: int, device: torch.device) -> RaggedRows:
        """Lay out rows of token indices for a pack of so many tokens."""
        index = np.concatenate(rows)
        place = np.zeros(tokens, np.int64)
        place[index] = np.arange(len(index))
        start = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        return cls(
            torch.from_numpy(index).to(device),
            torch.from_numpy(start).to(device),
            torch.from_numpy(place).to(device),
            max(map(len, rows)),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `Rows`."""
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (x.index_select(0, self.index) for x in (query, key, value))
        output: Any = varlen_attn(
            q,
            k,
            v,
            self.start,
            self.start,
            self.longest,
            self.longest,
            scale=scaling,
            window_size=(-1, 0),  # causal
            enable_gqa=k.shape[1] != q.shape[1],
        )
        return output.index_select(0, self.place)  # type: ignore[no-any-return]  # a tensor


def lay_out(
    rows: Sequence[NDArray[np.int64]], tokens: int, device: torch.device, dtype: torch.dtype
) -> Rows:
    """Return the fastest layout for where and in what the attention will be computed."""
    if dtype != torch.float32 and _has_flash_attention(device):
        return RaggedRows.of(rows, tokens, device)
    return PaddedRows.of(rows, tokens, device)


@cache
def _has_flash_attention(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def use_rows(model: PreTrainedModel) -> None:
    """Have a model compute its attention here; its forward then needs ``rows``.

    Raises `ConfigError` for a model whose attention cannot be replaced.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    if not model._can_set_attn_implementation():
        raise ConfigError(
            f"{type(model).__name__} computes its attention in a way of its own, which cannot pack "
            "sequences; models that use transformers' AttentionInterface are supported."
        )
    model.set_attn_implementation(NAME)


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Give a model its own attention back for a while."""
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


def _attention(
    module: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    rows: Rows | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, H, N, D] to output [1, N, H, D]."""
    name = type(module).__name__
    if rows is None or attention_mask is not None or len(query) != 1:
        raise NotPackedError(
            f"{name} belongs to a learner, which packs sequences: it takes `rows` and no padding. "
            "Sample with an engine, or load the run's policy."
        )
    for option in ("softcap", "s_aux"):
        if others.get(option) is not None:
            raise ConfigError(f"{name} uses {option} in its attention, which is not supported.")
    if sliding_window is not None and rows.longest > sliding_window:
        raise ConfigError(
            f"{name} attends to the last {sliding_window} tokens only, which is not supported for "
            f"sequences as long as {rows.longest}: lower rollout.context."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return rows.attend(q, k, v, scale)[None], None


def _buckets(rows: Sequence[NDArray[np.int64]]) -> Iterator[Sequence[NDArray[np.int64]]]:
    """Cut rows, shortest first, where padding would grow too much."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or len(rows[end]) > GROWTH * len(rows[start]) + SLACK:
            yield rows[start:end]
            start = end
