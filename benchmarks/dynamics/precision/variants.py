"""How log-probs are computed: the variants that the numerics study compares.

Mixed precision as FSDP2 has it: float32 master parameters, cast to a variant's dtype inside the
forward, so that everything between token ids and hidden states is in that dtype, and gradients are
float32 again where they reach the masters. What differs behind the hidden states is the head (the
SDK's own, or logits as a matrix product of that dtype and then `log_softmax`), and whether the
log-probs that leave the model are rounded. The SDK refuses any of this on purpose; `VariantPolicy`
is a way round for benchmarks.

float64 is what all others are held against: parameters, every layer and the head are in it. Qwen3's
own norms and rotary embedding would come back to float32 in any model, and are replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.func import functional_call

from isentrope.learner.head import TokenScores, token_scores
from isentrope.learner.packing import Inputs
from isentrope.learner.policy import Policy, of_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOSS_SCALE = 2.0**13
"""Of fp16's gradients, static; a power of two, so that it leaves no trace but in what it saves
from underflow."""


@frozen
class Variant:
    """One way to compute log-probs."""

    dtype: torch.dtype
    """Of parameters and activations inside the forward."""
    exact: bool = False
    """The SDK's head, in float32 with the exact softmax gradient; else logits as a product of
    `dtype`, then `log_softmax` in float32 (of float64: in float64)."""
    output: torch.dtype | None = None
    """What log-probs are rounded to where they leave the model; None: they are not."""
    loss_scale: float = 1.0
    """Factor of gradients inside the part of `dtype`."""


VARIANTS: Mapping[str, Variant] = {
    "float64": Variant(torch.float64),
    "float32": Variant(torch.float32, exact=True),
    "float32 plain": Variant(torch.float32),
    "bf16": Variant(torch.bfloat16, exact=True),
    "bf16 logits": Variant(torch.bfloat16),
    "bf16 log-probs": Variant(torch.bfloat16, exact=True, output=torch.bfloat16),
    "fp16": Variant(torch.float16, exact=True, loss_scale=LOSS_SCALE),
    "fp16 logits": Variant(torch.float16, loss_scale=LOSS_SCALE),
}
REFERENCE = "float64"


class VariantPolicy(Policy):
    """A policy whose log-probs are those of a variant; its weights are a copy of the model's.

    Knows log-probs only: no entropy, no adapters.
    """

    def __init__(self, model: PreTrainedModel, temperature: float, variant: Variant) -> None:
        self.variant = variant
        super().__init__(copy.deepcopy(model), temperature, None)
        if variant.dtype == torch.float64:
            _to_float64(self.plain)

    @property
    def exact_softmax(self) -> bool:
        """Whether the head is the SDK's."""
        return self.variant.exact

    def forward(self, inputs: Inputs, *, needs: frozenset[str] = frozenset()) -> TokenScores:
        """Return log-probs [T] of the sampled tokens: float32, of float64 float64."""
        assert not needs, f"a variant knows log-probs only, not {sorted(needs)}"
        variant, head = self.variant, self._output_layer()
        cast = {p: self._cast(p) for p in self.parameters()}  # a tied parameter once
        hidden = self._hidden(inputs, cast)
        weight = cast[head.weight]
        if variant.exact:
            logp = token_scores(hidden, weight, None, inputs.target, self.temperature).logp
        else:
            logp = _log_softmax(hidden @ weight.T, inputs.target, self.temperature)
        if variant.loss_scale != 1:
            logp = _Cast.apply(logp, logp.dtype, variant.loss_scale)
        if variant.output is not None:
            logp = logp.to(variant.output).to(logp.dtype)
        return TokenScores(logp, None, None)

    def weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Return every tensor in float32 by its name in the plain model."""
        del keep
        return {name: tensor.float() for name, tensor in self.plain.state_dict().items()}

    def _output_layer(self) -> Any:
        head: Any = self.plain.get_output_embeddings()
        assert head.bias is None, "no variant has been written for a bias"
        return head

    def _hidden(self, inputs: Inputs, cast: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """Return the states [T, D] that predict the sampled tokens, of the variant's dtype.

        cast: what to compute with in each parameter's place. Buffers stay as they are, float32.
        """
        decoder: Any = self.plain.get_decoder()
        parameters = {name: cast[p] for name, p in decoder.named_parameters()}
        states: Tensor = functional_call(decoder, parameters, (), of_decoder(inputs))[0]
        return states[0].index_select(0, inputs.state)

    def _cast(self, parameter: nn.Parameter) -> Tensor:
        """Cast a master parameter, which gets its gradient back in its own dtype, unscaled."""
        if parameter.dtype == self.variant.dtype and self.variant.loss_scale == 1:
            return parameter
        cast: Tensor = _Cast.apply(parameter, self.variant.dtype, 1 / self.variant.loss_scale)
        return cast

    def _self_test(self) -> None:
        """Pass: the trainer's own policy was tested, and 16 bits are not to agree with it."""


class _Cast(torch.autograd.Function):
    """Cast to a dtype; the gradient is cast back, and then multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dtype: torch.dtype, factor: float) -> Tensor:
        ctx.dtype, ctx.factor = values.dtype, factor
        return values.to(dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype) * ctx.factor, None, None


def _log_softmax(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return log-probs [T] of the targets [T], in float32 at least, of logits [T, V]."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    chosen = torch.log_softmax(wide / temperature, -1).gather(-1, target[:, None])
    return chosen.squeeze(-1)


def _to_float64(model: PreTrainedModel) -> None:
    """Turn a Qwen3 into float64 in place, the layers that insist on float32 included."""
    whole: nn.Module = model
    whole.double()
    for name, layer in list(model.named_modules()):
        kind = type(layer).__name__
        if kind.endswith("RMSNorm"):
            model.set_submodule(name, _Norm(layer))
        elif kind.endswith("RotaryEmbedding"):
            model.set_submodule(name, _Rotary(layer))


class _Norm(nn.Module):
    """A root-mean-square norm in the dtype of what comes in."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:
        """Return normalised states [..., D]."""
        return nn.functional.rms_norm(states, self.weight.shape, self.weight, self.epsilon)


class _Rotary(nn.Module):
    """Rotary position embeddings, unscaled, of the very frequencies that the model holds."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        assert rotary.rope_type == "default"
        assert rotary.attention_scaling == 1
        self.frequencies: Tensor
        self.register_buffer("frequencies", rotary.inv_freq.double(), persistent=False)

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [R, L, D] of the positions [R, L], in the states' dtype."""
        angles = position_ids[..., None].double() * self.frequencies
        both = torch.cat((angles, angles), -1)
        return both.cos().to(states.dtype), both.sin().to(states.dtype)
