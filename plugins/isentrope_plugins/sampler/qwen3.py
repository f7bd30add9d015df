"""A lean decoder for Qwen3: its arithmetic on fused weights, without the module machinery.

For small models a step is bound by the number of operations and not by their size. So queries,
keys and values come from one product, gate and up from another; the query and key norms and their
rotation run once for both; and the cache has its room before it is needed.

    h = x + O attention(rotate(norm(Q n)), rotate(norm(K n)), V n),   n = rms_norm(x)
    y = h + D (silu(G m) * U m),                                      m = rms_norm(h)

Shape legend: B rows, T new tokens of each (1 in a step), S slots in use, C slots there is room for,
H query heads, K key-value heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch.nn import functional

from isentrope_plugins.sampler.weights import copy_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose frequencies do not depend on how long the sequence has become."""


def supports(model: PreTrainedModel) -> bool:
    """Whether the model is a Qwen3 without options that this decoder leaves out."""
    config = model.config
    return (
        config.model_type == "qwen3"
        and config.hidden_act == "silu"
        and not config.attention_bias
        and set(config.layer_types) == {"full_attention"}
        and config.rope_parameters["rope_type"] in _STATIC_ROPE
    )


@frozen
class _Layer:
    """Weights of one layer; E is the model's width, F that of its feed-forward."""

    norm: Tensor
    """[E]"""
    qkv: Tensor
    """[(H + 2 K) * D, E]: queries, keys, values."""
    q_norm: Tensor
    """[D]"""
    k_norm: Tensor
    """[D]"""
    output: Tensor
    """[E, H * D]"""
    mlp_norm: Tensor
    """[E]"""
    gate_up: Tensor
    """[2 F, E]: gate, up."""
    down: Tensor
    """[E, F]"""


class _Cache:
    """Keys and values, with room to grow, and where each row stands."""

    def __init__(self, layers: int, like: Tensor, width: int, pad: Tensor | None) -> None:
        self.used = 0
        self.pad = pad
        """[B] int64 slots of padding; None where no row has any."""
        rows, heads, _, size = like.shape
        shape = (rows, heads, _room(width), size)
        self.keys = [like.new_empty(shape) for _ in range(layers)]
        self.values = [like.new_empty(shape) for _ in range(layers)]
        self._dtype = like.dtype
        self._lay_mask()

