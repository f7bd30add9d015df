"""A decoder for any transformers causal LM: its own forward, with its own cache.

Shape legend: B rows, P slots of the longest prompt, S slots in use, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


class _Cache:
    """Keys and values in transformers' own container, and where each row stands."""

    def __init__(self, config: PreTrainedConfig, ids: Tensor, pad: Tensor | None) -> None:
        rows, width = ids.shape
        self.states = DynamicCache(config=config)
        self.mask: Tensor | None = None
        """[B, S] int64, 0 where a slot is padding; None where no row has any."""
        slots = torch.arange(width, device=ids.device)
        if pad is None:
            self.positions = slots.expand(rows, width)
        else:
            self.mask = (slots >= pad[:, None]).long()
            self.positions = (slots - pad[:, None]).clamp(min=0)

    def extend(self, limit: int) -> None:
        """Make room for one more token in every row."""
        # A row that ended early goes on in its slot until it is dropped: its positions may not
        # leave the model's table.
        self.positions = (self.positions[:, -1:] + 1).clamp(max=limit - 1)
        if self.mask is not None:
            self.mask = nn.functional.pad(self.mask, (0, 1), value=1)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.states.batch_select_indices(rows)
        self.positions = self.positions[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]


class CachedDecoder:
    """Decodes by calling a copy of the model."""

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        self.device = device
        self._config = model.config
        self._model = _copied(model, device)
        self._limit = int(model.config.max_position_embeddings)
        # Nearly all models can compute the last logits only; the others compute them all.
        parameters = inspect.signature(self._model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The model's own parameters and persistent buffers."""
        return self._model.state_dict(keep_vars=True)

    def prefill(self, ids: Tensor, pad: Tensor | None) -> tuple[Tensor, _Cache]:
        """Read prompts; see `Decoder`."""
        cache = _Cache(self._config, ids, pad)
        return self._forward(ids, cache), cache

    def step(self, ids: Tensor, cache: _Cache) -> Tensor:
        """Append one token to every row; see `Decoder`."""
        cache.extend(self._limit)
        return self._forward(ids[:, None], cache)

    def _forward(self, ids: Tensor, cache: _Cache) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=cache.mask,
            position_ids=cache.positions,
            past_key_values=cache.states,
            use_cache=True,
            **self._options,
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]  # untyped


def _copied(model: nn.Module, device: str) -> nn.Module:
    """Copy a model to a device, without a second copy where it is now."""
    there: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        copied = tensor.detach().to(device, copy=True)
        is_weight = isinstance(tensor, nn.Parameter)
        there[id(tensor)] = nn.Parameter(copied, requires_grad=False) if is_weight else copied
    # A plain module here: transformers decorates `to` beyond what a type checker can follow.
    return copy.deepcopy(model, there).to(device).eval().requires_grad_(False)
