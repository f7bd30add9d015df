"""What learning will take of memory, told from shapes: no weights, no device.

The run's own policy and head go through the largest micro-batch on torch's meta device, where a
tensor is a shape, and what is there at a time is counted. So this knows no architecture, and what
changes in the learner changes here. Only two things are told in its place: attention, whose
kernels are not those of the meta device, and sharding, which needs ranks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isentrope.config import LearnerConfig
from isentrope.episodes import Episode
from isentrope.learner.attention import PaddedRows
from isentrope.learner.head import CHUNK_ELEMENTS, KNOWN
from isentrope.learner.packing import Inputs, collate
from isentrope.learner.policy import Policy
from isentrope.learner.rehearsal import fullest
from isentrope.learner.sharding import recompute

META = torch.device("meta")
MASTER = 4
"""Bytes of a trained weight, of its gradient, and of either of AdamW's moments: float32."""
FEW = 4
"""Layers that are gone through, where there are more of the same."""
WHOLE_LAYERS = 2
"""Layers that FSDP2 has whole at a time: the one at work, and the next, which it fetches."""


@frozen
class LearnerMemory:
    """What learning takes of the memory of the fullest rank, bytes."""

    loaded: int
    """While the run starts: the whole model, in float32; of one that comes to a GPU in shards, only
    the largest layer, beside the shards."""
    frozen: int
    """Weights that are not trained."""
    trained: int
    """Weights that are: the model's own, or adapters."""
    gradients: int
    """Their sums over micro-batches."""
    optimizer: int
    gathered: int
    """Of FSDP2: what is whole at a time of weights, and of gradients on their way to the shards."""
    kept: int
    """Activations that the largest micro-batch keeps for its backward pass."""
    passing: int
    """What that pass has beside them at its peak."""

    @property
    def resident(self) -> int:
        """What stays, learning or not."""
        return self.frozen + self.trained + self.optimizer

    @property
    def learning(self) -> int:
        """What there is at the peak."""
        return self.resident + self.gradients + self.gathered + self.kept + self.passing


def learner_memory(
    policy: Policy,
    config: LearnerConfig,
    *,
    ranks: int,
    context: int,
    needs: frozenset[str],
    device: str,
) -> LearnerMemory:
    """Return what a policy on the meta device will take; it is changed, and of no use afterwards.

    context: tokens of the longest episode. needs: what the algorithm needs. device: the type of the
    ranks' device, ``"cpu"`` or ``"cuda"``.
    """
    sharded = config.shards(ranks)
    itemsize = config.torch_dtype.itemsize
    whole = list(policy.plain.parameters())
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    trained = policy.trainable()
    masters = _sharded(trained, ranks, MASTER)
    groups = _Groups.of(policy, itemsize) if sharded else _Groups()
    kept, peak = _activations(policy, config, context, needs, device, groups.waiting)
    return LearnerMemory(
        loaded=groups.coming if sharded and device != "cpu" else MASTER * _count(whole),
        frozen=_sharded(frozen, ranks, itemsize if sharded else MASTER),
        trained=masters,
        gradients=masters,
        optimizer=2 * masters + MASTER * len(trained),  # and a count of steps for each
        gathered=groups.whole,
        kept=kept,
        passing=max(peak, kept + groups.fetching - groups.whole, groups.ending - groups.whole)
        - kept,
    )


@frozen
class _Groups:
    """What FSDP2 has whole, bytes; of a policy that is not sharded, nothing.

    A group for each layer, and the root's for all else: embedding, output layer, last norm.
    """

    coming: int = 0
    """When the run starts: one of them, which comes to the device before it is sharded."""
    whole: int = 0
    """In the backward pass: the root, some layers, and a layer's gradients on their way."""
    fetching: int = 0
    """Before it: the root twice, as it comes in and as it is laid out."""
    ending: int = 0
    """After it: the root's gradients, and these again in float32 to be added up."""
    waiting: tuple[Tensor, ...] = field(default=(), repr=False)
    """The root's trained weights, whose gradients stay whole until then."""

    @classmethod
    def of(cls, policy: Policy, itemsize: int) -> _Groups:
        """Look at a policy that is computed with in numbers of so many bytes."""
        layers = [list(layer.parameters()) for layer in policy.layers()]
        inner = {p for layer in layers for p in layer}
        root = [p for p in policy.parameters() if p not in inner]
        waiting = tuple(p for p in root if p.requires_grad)
        on_their_way = max(_count(p for p in layer if p.requires_grad) for layer in layers)
        coming = [
            sum(p.numel() * (MASTER if p.requires_grad else itemsize) for p in group)
            for group in (*layers, root)
        ]
        weights = _count(root) + WHOLE_LAYERS * max(map(_count, layers))
        return cls(
            coming=max(coming),
            whole=weights * itemsize + on_their_way * (itemsize + MASTER),
            fetching=2 * _count(root) * itemsize,
            ending=_count(waiting) * (itemsize + MASTER),
            waiting=waiting,
        )


def _sharded(parameters: Iterable[Tensor], ranks: int, itemsize: int) -> int:
    """Return the bytes of the largest shards: FSDP2 cuts along the first axis, and pads."""
    return sum(
        -(-p.shape[0] // ranks) * (p.numel() // p.shape[0]) * itemsize
        for p in parameters
        if p.numel()
    )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _activations(
    policy: Policy,
    config: LearnerConfig,
    context: int,
    needs: frozenset[str],
    device: str,
    waiting: Sequence[Tensor],
) -> tuple[int, int]:
    """Return the bytes that the largest micro-batch keeps, and all there is at its peak.

    waiting: trained weights whose gradients stay until the backward pass is over.
    """
    if config.activation_checkpointing:
        recompute(policy)
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(config.torch_dtype)  # as they are computed with
    head: Any = policy.plain.get_output_embeddings()
    if not head.weight.requires_grad and head.weight is not _embedding(policy):
        head.weight.data = head.weight.data.float()  # read at once, where blocks take seconds
    packs = fullest(context, config.micro_batch_tokens)
    soon = [p for p in policy.trainable() if all(p is not other for other in waiting)]
    handles = [p.register_post_accumulate_grad_hook(_forget) for p in soon]

    def measured() -> list[tuple[int, int]]:
        return [_measure(policy, e, config.torch_dtype, needs & KNOWN, device) for e in packs]

    try:
        found = _of_all_layers(policy, measured)
    finally:
        for handle in handles:
            handle.remove()
    return max(found, key=lambda pair: pair[1])


def _embedding(policy: Policy) -> Any:
    return policy.plain.get_input_embeddings().weight


def _of_all_layers(
    policy: Policy, measured: Callable[[], list[tuple[int, int]]]
) -> list[tuple[int, int]]:
    """Return what is measured: where all layers are alike, of a few, and then of as many more."""
    decoder: Any = policy.plain.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) <= FEW or not _alike(layers):
        return measured()
    try:
        decoder.layers = layers[: FEW - 1]
        fewer = measured()
        decoder.layers = layers[:FEW]
        few = measured()
    finally:
        decoder.layers = layers
    more = [
        (len(layers) - FEW) * (kept - before)
        for (kept, _), (before, _) in zip(few, fewer, strict=True)
    ]
    return [(kept + n, peak + n) for (kept, peak), n in zip(few, more, strict=True)]


def _alike(layers: nn.ModuleList) -> bool:
    """Whether all layers have the same modules and weights, by class and shape."""
    shapes = {
        (
            tuple((name, type(module)) for name, module in layer.named_modules()),
            tuple((name, p.shape) for name, p in layer.named_parameters()),
        )
        for layer in layers
    }
    return len(shapes) == 1


def _measure(
    policy: Policy,
    episodes: list[Episode],
    dtype: torch.dtype,
    needs: frozenset[str],
    device: str,
) -> tuple[int, int]:
    """Return the bytes that are there after a forward pass, and at the peak of both passes."""
    inputs = collate(episodes, META, dtype)
    assert isinstance(inputs.rows, PaddedRows)  # the meta device has no other
    fused = device == "cuda" and dtype != torch.float32
    rows = _ShapedRows.like(inputs.rows, repeats=device == "cuda" and not fused)
    with _Live(policy) as live:
        total = _loss(policy, attrs.evolve(inputs, rows=rows), needs)
        kept = live.bytes
        total.backward()
    policy.zero_grad(set_to_none=True)
    return kept, live.peak


def _loss(policy: Policy, inputs: Inputs, needs: frozenset[str]) -> Tensor:
    """Go forward; the head through two chunks only, since all are alike, and there may be many."""
    hidden = policy.states(inputs)
    vocabulary: int = policy.plain.get_output_embeddings().weight.shape[0]
    some = 2 * max(1, CHUNK_ELEMENTS // vocabulary)
    scores = policy.chunked(hidden[:some], inputs.target[:some], needs)
    return sum((c.sum() for c in scores if c is not None), start=torch.zeros((), device=META))


def _forget(parameter: Tensor) -> None:
    """Drop a gradient when it is there: sums of gradients are counted apart."""
    parameter.grad = None


class _Live(TorchDispatchMode):
    """Counts the bytes of what operations make, for as long as it is there."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        tensors = (*policy.parameters(), *policy.buffers())
        self._there = {t.untyped_storage()._cdata for t in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let an operation happen, and count what it made."""
        del types
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._there:
            return
        self._there.add(storage._cdata)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._there.discard(key)
        self.bytes -= size


@frozen
class _ShapedRows:
    """Attention as far as memory goes: fused kernels keep their inputs, output and row sums."""

    index: Tensor = field(repr=False)
    """[M] int64."""
    place: Tensor = field(repr=False)
    """[N] int64."""
    longest: int
    repeats: bool
    """Whether keys and values are repeated for every head that uses them."""

    @classmethod
    def like(cls, rows: PaddedRows, *, repeats: bool) -> _ShapedRows:
        index = torch.cat([index.flatten() for index in rows.buckets])
        return cls(index, rows.place, rows.longest, repeats)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `attention.Rows`."""
        del scaling
        q, k, v = (x.index_select(0, self.index) for x in (query, key, value))
        if self.repeats:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        output: Tensor = _Attended.apply(q, k, v)
        return output.index_select(0, self.place)


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        del grads
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
