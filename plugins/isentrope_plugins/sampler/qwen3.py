"""A lean decoder for Qwen3: its arithmetic on fused weights, without the module machinery.

A step of a small model is bound by how many operations it has, not by their size. So queries, keys
and values come from one product, gate and up from another, queries and keys are rotated together,
and the cache has its room before it is needed. One layer, from x to y:

    n = rms_norm(x);  h = x + O attention(rotate(rms_norm(Q n)), rotate(rms_norm(K n)), V n)
    m = rms_norm(h);  y = h + D (silu(G m) * U m)

Shape legend: B rows, T tokens read at once (1 in a step), S slots in use, C slots there is room
for, L layers, H query heads, K key-value heads, D head dimension, E width, V vocabulary.
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
"""Rotary embeddings whose frequencies do not change as a sequence becomes longer."""


def supports(model: PreTrainedModel) -> bool:
    """Whether the model is a Qwen3 without the options that this decoder leaves out."""
    config = model.config
    return (
        config.model_type == "qwen3"
        and config.hidden_act == "silu"
        and not config.attention_bias
        and set(config.layer_types) == {"full_attention"}
        and config.rope_parameters["rope_type"] in _STATIC_ROPE
    )


class Qwen3Decoder:
    """Decodes with weights of its own, copied from the model."""

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        config = model.config
        self.device = device
        self._dtype = model.dtype
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._eps = config.rms_norm_eps

        source = model.state_dict()
        place = {name: _empty(tensor, model.dtype, device) for name, tensor in source.items()}
        self._layers = [
            _Layer.fuse(f"model.layers.{index}.", place)
            for index in range(config.num_hidden_layers)
        ]
        # In float32 whatever the model's dtype: the policy's logits are a float32 product.
        self._embedding = _empty(source["model.embed_tokens.weight"], torch.float32, device)
        self._head = self._embedding
        if not config.tie_word_embeddings:
            self._head = _empty(source["lm_head.weight"], torch.float32, device)
        self._norm = place["model.norm.weight"]
        self._weights = place | {
            "model.embed_tokens.weight": self._embedding,
            "lm_head.weight": self._head,
        }
        copy_weights(source, self._weights)
        self._rotation = _Rotation(model, device)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The parts of the fused weights, by the names they have in transformers."""
        return self._weights

    def prefill(self, ids: Tensor, pad: Tensor | None) -> tuple[Tensor, _Cache]:
        """Read prompts; see `Decoder`."""
        rows, width = ids.shape
        shape = (len(self._layers), 2, rows, self._kv_heads, _room(width), self._rotation.size)
        cache = _Cache(torch.empty(shape, dtype=self._dtype, device=self.device), pad)
        return self._forward(ids, cache), cache

    def step(self, ids: Tensor, cache: _Cache) -> Tensor:
        """Append one token to every row; see `Decoder`."""
        return self._forward(ids[:, None], cache)

    def _forward(self, ids: Tensor, cache: _Cache) -> Tensor:
        """Read ids [B, T] into the cache and return the logits [B, V] of the last slot."""
        positions = cache.extend(ids.shape[1])
        cos, sin = self._rotation.at(positions, cache.room)
        x = functional.embedding(ids, self._embedding).to(self._dtype)
        for layer, states in zip(self._layers, cache.states, strict=True):
            x += self._attend(layer, self._normed(x, layer.norm), cos, sin, states, cache)
            x += self._feed_forward(layer, self._normed(x, layer.mlp_norm))
        last = self._normed(x[:, -1], self._norm)
        return functional.linear(last.float(), self._head)

    def _feed_forward(self, layer: _Layer, x: Tensor) -> Tensor:
        gate, up = functional.linear(x, layer.gate_up).chunk(2, -1)
        return functional.linear(functional.silu(gate).mul_(up), layer.down)

    def _attend(
        self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor, states: Tensor, cache: _Cache
    ) -> Tensor:
        """Return the attention's output [B, T, E] for x [B, T, E], and remember its keys."""
        rows, new, _ = x.shape
        size = self._rotation.size
        heads = functional.linear(x, layer.qkv).view(rows, new, -1, size)
        # Queries and keys are normed and rotated as one: half the operations.
        rotated = self._heads + self._kv_heads
        both = functional.rms_norm(heads[:, :, :rotated], (size,), None, self._eps)
        both = rotate(both * layer.qk_norm(self._heads, self._kv_heads), cos, sin)
        queries, keys = both[:, :, : self._heads], both[:, :, self._heads :]
        values = heads[:, :, rotated:]
        states[0, :, :, cache.used - new : cache.used] = keys.transpose(1, 2)
        states[1, :, :, cache.used - new : cache.used] = values.transpose(1, 2)
        seen = states[:, :, :, : cache.used]
        attended = self._step_attention if new == 1 else self._prompt_attention
        output = attended(queries, seen[0], seen[1], cache)
        return functional.linear(output.reshape(rows, new, -1), layer.output)

    def _prompt_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, cache: _Cache
    ) -> Tensor:
        """Causal attention of queries [B, T, H, D] over their own slots; [B, T, H, D]."""
        mask = cache.causal_mask()
        return functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        ).transpose(1, 2)

    def _step_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, cache: _Cache
    ) -> Tensor:
        """Attention of one query per row [B, 1, H, D] over all slots [B, K, S, D]."""
        # The H / K query heads that share a key-value head go as so many queries of that head:
        # with a single token there is nothing causal to mask, and no key is read twice. On a CPU,
        # two products are faster than the fused kernel until contexts are long, and equal then.
        grouped = queries.reshape(keys.shape[0], self._kv_heads, -1, self._rotation.size)
        scores = grouped * self._rotation.size**-0.5 @ keys.mT
        mask = cache.step_mask()
        if mask is not None:
            scores = scores + mask
        return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(values.dtype), values)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._eps)


@frozen(eq=False)
class _Layer:
    """Weights of one layer; F is the width of its feed-forward."""

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

    @classmethod
    def fuse(cls, prefix: str, place: dict[str, Tensor]) -> _Layer:
        """Make a layer of what is in `place`, where fused weights become views of the whole."""
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        return cls(
            norm=place[f"{prefix}input_layernorm.weight"],
            qkv=_fuse([f"{attention}{part}_proj.weight" for part in "qkv"], place),
            q_norm=place[f"{attention}q_norm.weight"],
            k_norm=place[f"{attention}k_norm.weight"],
            output=place[f"{attention}o_proj.weight"],
            mlp_norm=place[f"{prefix}post_attention_layernorm.weight"],
            gate_up=_fuse([f"{mlp}{part}_proj.weight" for part in ("gate", "up")], place),
            down=place[f"{mlp}down_proj.weight"],
        )

    def qk_norm(self, heads: int, kv_heads: int) -> Tensor:
        """Return the weights of the query and key norms, side by side: [H + K, D]."""
        return torch.cat([self.q_norm.expand(heads, -1), self.k_norm.expand(kv_heads, -1)])


class _Cache:
    """Keys and values, with room to grow, and where each row stands."""

    def __init__(self, states: Tensor, pad: Tensor | None) -> None:
        self.states = states
        """[L, 2, B, K, C, D]: keys, then values."""
        self.used = 0
        """S, of every row alike."""
        self._pad = pad
        """[B] int64, slots of padding; None where no row has any."""
        self._mask = self._key_mask()

    @property
    def room(self) -> int:
        """C."""
        return self.states.shape[-2]

    def extend(self, new: int) -> Tensor:
        """Take `new` slots into use; return their positions, [B, T] or, if all agree, [1, T]."""
        slots = torch.arange(self.used, self.used + new, device=self.states.device)
        self.used += new
        if self.used > self.room:
            more = _room(self.used) - self.room
            self.states = functional.pad(self.states, (0, 0, 0, more))
            self._mask = self._key_mask()
        return slots[None] if self._pad is None else (slots - self._pad[:, None]).clamp(min=0)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.states = self.states[:, :, rows]
        if self._pad is not None:
            self._pad = self._pad[rows]
            self._mask = self._key_mask()

    def step_mask(self) -> Tensor | None:
        """Return what is added to the scores of a single query, [B, 1, 1, S]; None: nothing."""
        return None if self._mask is None else self._mask[..., : self.used]

    def causal_mask(self) -> Tensor | None:
        """Return which slot sees which in a padded prompt, [B, 1, T, T] bool; None: all before."""
        if self._pad is None:
            return None
        slots = torch.arange(self.used, device=self.states.device)
        own = slots[:, None] == slots
        before = slots[:, None] > slots
        # Padding sees itself: a softmax over nothing is NaN, and would stay in the cache.
        return own | before & (slots >= self._pad[:, None, None, None])

    def _key_mask(self) -> Tensor | None:
        """Return 0 where a slot holds a token and -inf where padding, [B, 1, 1, C]."""
        if self._pad is None:
            return None
        slots = torch.arange(self.room, device=self.states.device)
        padding = slots < self._pad[:, None, None, None]
        return torch.zeros_like(padding, dtype=self.states.dtype).masked_fill(padding, -torch.inf)


class _Rotation:
    """Cosines and sines of the rotary embedding, made once for as many positions as were needed."""

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        rotary = model.get_submodule("model.rotary_emb")
        self._frequencies = rotary.get_buffer("inv_freq").to(device, torch.float32, copy=True)
        self._scale = float(rotary.attention_scaling)  # type: ignore[arg-type]  # untyped there
        self._dtype = model.dtype
        self._table = self._make(0)

    @property
    def size(self) -> int:
        """D."""
        return 2 * len(self._frequencies)

    def at(self, positions: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """Return cos and signed sin, each [B, T, 1, D]; `positions` [B, T] are below `room`."""
        if room > self._table.shape[1]:
            self._table = self._make(room)
        cos, sin = self._table[:, positions, None]
        return cos, sin

    def _make(self, length: int) -> Tensor:
        """Return [2, length, D]."""
        positions = torch.arange(length, device=self._frequencies.device).float()
        angles = positions[:, None] * self._frequencies
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        both = [torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]
        return torch.stack(both).to(self._dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, T, heads, D] by its position; the first half of `sin` is negated."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _room(used: int) -> int:
    """Return how many slots to make room for: growing by half, copies cost little in all."""
    return used + max(32, used // 2)


def _fuse(names: list[str], place: dict[str, Tensor]) -> Tensor:
    """Return the named matrices as one, of which each becomes a view in `place`."""
    sizes = [place[name].shape[0] for name in names]
    fused = torch.cat([place[name] for name in names])
    place.update(zip(names, fused.split(sizes), strict=True))
    return fused


def _empty(like: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty_like(like, dtype=dtype, device=device)
