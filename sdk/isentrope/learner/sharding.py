"""Sharding: FSDP2 round each decoder layer and round the policy, with a precision policy of ours.

The policy comes to its device layer by layer, and of each layer only this rank's shard stays: until
all is sharded, a device has no more of it than that, and one layer.

Parameters are computed with in the training dtype and reduced in float32, and only what leaves the
policy is float32: a layer whose output were cast would hand a float32 residual to the next. Masters
are float32; frozen weights have none, and are stored in the training dtype.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.utils import swap_tensors
from torch.utils.checkpoint import checkpoint

from isentrope.config import LearnerConfig
from isentrope.errors import ConfigError
from isentrope.learner.head import TokenScores
from isentrope.learner.policy import Policy
from isentrope.learner.ranks import Ranks


def shard(policy: Policy, config: LearnerConfig, ranks: Ranks) -> None:
    """Shard a policy over the ranks, as configured; alone and in float32 there is nothing to do.

    Raises `ConfigError` where log-probs do not leave the policy as they were computed.
    """
    if config.activation_checkpointing:
        recompute(policy)
    if not config.shards(ranks.size):
        return
    policy.frozen = ranks.by_first(lambda: policy.frozen)
    dtype, device = config.torch_dtype, policy.device.type
    if config.cpu_offload and device == "cpu":
        raise ConfigError("learner.cpu_offload takes a policy off a GPU, but it is on the CPU.")
    if dtype == torch.float16 and device == "cpu" and ranks.first:
        warnings.warn(
            "float16 is about a hundred times slower than float32 on a CPU.", stacklevel=2
        )
    if device == "cuda" and any(ranks.gather(not _is_own(policy.device))):
        raise ConfigError(
            "The model is on one GPU for all ranks: choose its device 'cuda', each rank's own."
        )
    mesh = init_device_mesh(device, (ranks.size,))
    offload = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    inner = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    root = MixedPrecisionPolicy(
        param_dtype=inner.param_dtype,
        reduce_dtype=torch.float32,
        output_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for layer in policy.layers():
        _bring(layer, policy.device, dtype, ranks)
        fully_shard(layer, mesh=mesh, mp_policy=inner, offload_policy=offload)
    _bring(policy, policy.device, dtype, ranks)
    # Resharded like any layer: by default a root stays whole after a forward pass without backward,
    # and `parameters` would hand an optimizer what is gone at the next.
    fully_shard(
        policy, mesh=mesh, mp_policy=root, offload_policy=offload, reshard_after_forward=True
    )
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # The learner's weights are global: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    prove_unrounded(policy)


def _is_own(device: torch.device) -> bool:
    """Whether a GPU is the one that this rank computes on."""
    return device.index in (None, torch.cuda.current_device())


def _bring(module: nn.Module, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> None:
    """Bring what is not sharded yet to the device, the same on all ranks as on the first."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            _place(parameter, device, parameter.dtype if parameter.requires_grad else dtype)
            ranks.same(parameter.data)
    for buffer in module.buffers():
        _place(buffer, device, buffer.dtype)
        ranks.same(buffer)


def _place(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    if not tensor.is_meta:
        tensor.data = tensor.data.to(dtype).to(device)
        return
    like = torch.empty_like(tensor, dtype=dtype, device=device)  # of an outline: numbers will come
    if isinstance(tensor, nn.Parameter):
        like = nn.Parameter(like, requires_grad=tensor.requires_grad)
    swap_tensors(tensor, like)  # whoever has the tensor, such as a tied layer, keeps it


@torch.no_grad()
def prove_unrounded(policy: Policy) -> None:
    """Raise `ConfigError` unless log-probs leave the policy as its head computed them.

    A cast of outputs to 16 bits, as some trainers' default, would round every ratio.
    """
    inside: list[Tensor] = []

    def watch(module: nn.Module, args: Any, kwargs: Any, output: TokenScores) -> None:
        del module, args, kwargs
        inside.append(output.logp.clone())

    # Before the others: FSDP2 casts in a hook like this one.
    handle = policy.register_forward_hook(watch, prepend=True, with_kwargs=True)
    try:
        outside = policy(policy.sample_inputs()).logp
    finally:
        handle.remove()
    (computed,) = inside
    exact = outside.dtype == computed.dtype == torch.float32 and torch.equal(outside, computed)
    rounded = computed.bfloat16().float()
    if not exact or torch.equal(rounded, computed):
        raise ConfigError(
            f"Log-probs of {policy.name} are rounded to {outside.dtype} on their way out of the "
            "policy, which falsifies every importance ratio."
        )


def recompute(policy: Policy) -> None:
    """Keep only the layers' inputs for the backward pass, and compute the rest again there.

    Not by transformers' own switch, which asks for layers in training mode: some then drop out.
    """
    for layer in policy.layers():
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
