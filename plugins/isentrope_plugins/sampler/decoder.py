"""The seam between sampling and arithmetic: a `Decoder` turns token ids into next-token logits.

Shape legend: B rows of the batch, P slots of the longest prompt, V vocabulary. Prompts are padded
on the left, so that every row's next token goes to the same slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


class Cache(Protocol):
    """What a decoder remembers of the rows it is decoding; only that decoder reads it."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order: [B'] int64. A row may be repeated, or left out."""
        ...


CacheT = TypeVar("CacheT", bound=Cache)


class Decoder(Protocol[CacheT]):
    """A causal language model that decodes a batch one token at a time."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Where each parameter lives, by its transformers name; writing there changes the policy.

        Tied parameters are one tensor under several names.
        """
        ...

    @property
    def device(self) -> str:
        """Where ids are expected and logits are returned."""
        ...

    def prefill(self, ids: Tensor, pad: Tensor | None) -> tuple[Tensor, CacheT]:
        """Read prompts and return the logits [B, V] float32 that follow them, with their cache.

        `ids`: [B, P] int64, padded on the left. `pad`: [B] int64, how many slots of each row are
        padding; None where all prompts are equally long, which needs no mask.
        """
        ...

    def step(self, ids: Tensor, cache: CacheT) -> Tensor:
        """Append one token to every row ([B] int64) and return the next logits [B, V] float32."""
        ...
