"""The policy: a transformers model whose forward ends in log-probs, not logits.

`Policy` is written as the root that FSDP2 shards: everything between token ids and float32
log-probs happens inside its forward, where the head's weight is whole.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from isentrope.config import Head, LoraConfig
from isentrope.engines import Adapter
from isentrope.episodes import Segment
from isentrope.errors import ConfigError
from isentrope.learner.attention import NotPackedError, own_attention, use_rows
from isentrope.learner.cut import CutCrossEntropy
from isentrope.learner.head import TokenScores, token_scores
from isentrope.learner.packing import Inputs, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"  # peft's own name for the one there is
SELF_TEST_TOLERANCE = 1e-3  # nats; a missing soft-cap or scale is off by orders more


class Policy(nn.Module):
    """Log-probs of sampled tokens under the present weights, at the sampling temperature.

    Raises `ConfigError` where the model is not in float32 (16-bit weights lose small updates, and
    merged adapters, in rounding), where its own logits are more than its head's matrix product
    (soft-capped or scaled), which the head does not reproduce, where adapters of the head would
    change the embedding, and where Cut Cross-Entropy is asked for and cannot be had.

    device: where it is going to compute, once `shard` has brought it there; None: where it is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        lora: LoraConfig | None,
        backend: Head = "chunked",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        _check_supported(model)
        head: Any = model.get_output_embeddings()
        self._cut: CutCrossEntropy | None = None
        if backend == "cut-cross-entropy":
            if lora is not None and lora.head:
                raise ConfigError(
                    "learner.head = 'cut-cross-entropy' takes no adapters of the output layer: "
                    "use learner.head = 'chunked', or learner.lora.head = false."
                )
            self._cut = CutCrossEntropy.load(device or model.device, bias=head.bias is not None)
        model.eval()  # no dropout: old and new log-probs must be of the same function
        use_rows(model)
        self.temperature = temperature
        self.device = device or model.device
        self.plain = model
        self.model = model if lora is None else _with_lora(model, lora)
        self._sizes = _sizes(model)
        of_shapes = model.device.type == "meta"  # for a plan: there are no numbers to look at
        self.frozen = "" if of_shapes else _fingerprint(self)
        if not of_shapes:
            self._self_test()

    def check_context(self, context: int) -> None:
        """Raise `ConfigError` where episodes of so many tokens would disturb one another.

        Some models turn all positions of a pass by other angles once one of them is far out.
        """
        limit = _longest_of_rope(self.plain.config)
        if context > limit:
            raise ConfigError(
                f"{self.name} has other position embeddings for sequences longer than {limit} "
                "tokens, which cannot share a pack with shorter ones: set rollout.context to at "
                f"most {limit}."
            )

    def flops(self, inputs: Inputs) -> float:
        """Return the floating-point operations of a forward pass."""
        matrices, head, heads = self._sizes
        tokens, sampled = inputs.ids.numel(), inputs.target.numel()
        return 2.0 * (matrices * tokens + head * sampled) + 4.0 * heads * inputs.pairs

    @property
    def exact_softmax(self) -> bool:
        """Whether log-probs of confident tokens, and their gradients, keep all their digits."""
        return self._cut is None

    def check_needs(self, needs: Iterable[str]) -> None:
        """Raise `ConfigError` unless `forward` can compute all of `needs`."""
        if self._cut is not None and (wanted := ", ".join(sorted(needs))):
            raise ConfigError(
                "learner.head = 'cut-cross-entropy' computes log-probs only, and the algorithm "
                f"needs {wanted}: use learner.head = 'chunked'."
            )

    def forward(self, inputs: Inputs, *, needs: frozenset[str] = frozenset()) -> TokenScores:
        """Return log-probs [T] float32 of the sampled tokens, and what `needs` names.

        needs: of `head.KNOWN`.
        """
        hidden = self.states(inputs)
        if self._cut is not None:
            self.check_needs(needs)
            weight: Any = self.plain.get_output_embeddings().weight
            logp = self._cut(hidden, weight, inputs.target, self.temperature)
            return TokenScores(logp, None, None)
        return self.chunked(hidden, inputs.target, needs)

    def chunked(self, hidden: Tensor, target: Tensor, needs: frozenset[str]) -> TokenScores:
        """Return what our own head makes of hidden states [T, D] and sampled tokens [T]."""
        head: Any = self.plain.get_output_embeddings()
        return token_scores(
            hidden,
            head.weight,
            head.bias,
            target,
            self.temperature,
            needs=needs,
            adapter=_adapter(head, hidden),
        )

    def states(self, inputs: Inputs) -> Tensor:
        """Return the hidden states [T, D] after which the sampled tokens came."""
        decoder: Any = self.plain.get_decoder()
        states: Tensor = decoder(**of_decoder(inputs))[0]
        # Not states[0, state]: on a CPU its backward takes twice as long.
        return states[0].index_select(0, inputs.state)

    @property
    def name(self) -> str:
        """The model's class."""
        return type(self.plain).__name__

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Be the policy that training started from, by switching the adapters off.

        Raises `ConfigError` where the full weights are trained: nothing is left of the start.
        """
        model: Any = self.model
        if self.model is self.plain:
            raise ConfigError(
                "The start policy's log-probs are known only where adapters are trained: set "
                "learner.lora."
            )
        with model.disable_adapter():
            yield

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Score as if at another sampling temperature."""
        before, self.temperature = self.temperature, temperature
        try:
            yield
        finally:
            self.temperature = before

    def layers(self) -> list[nn.Module]:
        """Return the decoder's layers.

        Raises `ConfigError` for a model that does not list them as transformers' do.
        """
        decoder: Any = self.plain.get_decoder()
        layers = getattr(decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise ConfigError(
                f"{self.name} has no list of decoder layers, which several ranks, 16-bit dtypes "
                "and activation checkpointing need."
            )
        return list(layers)

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Return every tensor by its name in the plain model, adapters merged in, in float32.

        Gathered from all ranks, one after the other: each rank must call it, and those that do not
        `keep` what they get return nothing. What was sharded comes on the CPU.
        """
        modules = dict(self.plain.named_modules())
        found: dict[str, Tensor] = {}
        made: dict[Tensor, Tensor] = {}  # a tied weight is gathered once
        for name, tensor in self.plain.state_dict(keep_vars=True).items():
            if ".lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            layer: Any = modules.get(plain.removesuffix(".weight"))
            if tensor not in made:
                whole = _whole(tensor)
                if hasattr(layer, "lora_A") and plain.endswith(".weight"):
                    whole = whole + _delta(layer)
                made[tensor] = whole if keep else whole.new_zeros(())
            if keep:
                found[plain] = made[tensor]
        return found

    def adapter(self) -> Adapter | None:
        """Return the adapters, gathered from all ranks: each must call it. None: there are none."""
        if self.model is self.plain:
            return None
        import peft

        model: Any = self.model
        tensors = {n: _whole(t).cpu() for n, t in self.model.state_dict().items() if ".lora_" in n}
        named: dict[str, Tensor] = peft.get_peft_model_state_dict(
            model, tensors, save_embedding_layers=False
        )
        config = {**model.peft_config[ADAPTER].to_dict(), "inference_mode": True}
        return Adapter(named, json.loads(json.dumps(config, default=_plain)))

    def sample_inputs(self) -> Inputs:
        """Return a few sequences in one pack, two of which share a prompt."""
        return pack(self._samples(), self.device, torch.float32)

    def _samples(self) -> list[Segment]:
        vocabulary = int(self.plain.config.vocab_size)
        return [_sequence(*given, vocabulary) for given in ((4, 9), (4, 5), (1, 7))]

    @torch.no_grad()
    def _self_test(self) -> None:
        """Compare with the model's own logits, so that nothing unsupported can pass unseen."""
        here = self.plain.device
        inputs = pack(self._samples(), here, torch.float32)
        try:
            if here.type == self.device.type:
                ours = self(inputs).logp
            else:  # Cut Cross-Entropy may have kernels for its own device alone: ours is compared
                ours = self.chunked(self.states(inputs), inputs.target, frozenset()).logp
        except NotPackedError as error:
            raise ConfigError(
                f"{self.name} does not tell its attention what belongs together, so that sequences "
                "cannot be packed; such models are not supported."
            ) from error
        theirs = []
        with own_attention(self.plain):
            for segment in self._samples():
                ids = torch.from_numpy(segment.ids)[None].to(here)
                logits = self.plain(input_ids=ids, use_cache=False).logits[0, :-1].float()
                logp = torch.log_softmax(logits / self.temperature, -1)
                sampled = torch.from_numpy(segment.sampled[1:]).to(here)
                theirs.append(logp.gather(-1, ids[0, 1:, None]).squeeze(-1)[sampled])
        tolerance = SELF_TEST_TOLERANCE * max(1.0, 1.0 / self.temperature)
        if not (difference := float((ours - torch.cat(theirs)).abs().max())) <= tolerance:
            raise ConfigError(
                f"{self.name} does more than one matrix product after its last "
                "hidden state, or more than attention between tokens (log-probs differ by "
                f"{difference:.3g} nats); such models, and capped or scaled logits, are not "
                "supported."
            )


def _sizes(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return weights of the decoder's matrices, of the output layer, and of all heads' vectors."""
    embedding, head = (
        layer.get_parameter("weight").numel()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    decoder: Any = model.get_decoder()
    matrices = sum(p.numel() for p in decoder.parameters() if p.dim() > 1) - embedding
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return matrices, head, size * config.num_attention_heads * config.num_hidden_layers


def _sequence(prompt: int, sampled: int, vocabulary: int) -> Segment:
    """Make a segment: the same prompt for the same length, other tokens after it."""
    ids = np.array([*range(prompt), *range(20 + sampled, 20 + 2 * sampled)]) % vocabulary
    nothing = np.zeros(len(ids))
    return Segment(ids, np.arange(len(ids)) >= prompt, nothing, nothing, nothing)


def of_decoder(inputs: Inputs) -> dict[str, Any]:
    """Return a transformers decoder's arguments."""
    return {
        "input_ids": inputs.ids[None],
        "position_ids": inputs.position[None],
        "rows": inputs.rows,
        "use_cache": False,
    }


def _check_supported(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if dtypes := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise ConfigError(
            f"{name} has weights in {', '.join(sorted(map(str, dtypes)))}; training needs float32."
        )
    for part, tensor in (*model.named_parameters(), *model.named_buffers()):
        known = tensor.is_floating_point() and not tensor.is_meta
        if known and not bool(tensor.isfinite().all()):
            raise ConfigError(f"{name} has weights that are not finite: {part}.")
    for option in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, option, None) not in (None, 1, 1.0):
            raise ConfigError(
                f"{name} does more than one matrix product after its last hidden state (its config "
                f"sets {option}); models with capped or scaled logits are not supported."
            )


def _longest_of_rope(config: Any) -> float:
    """Return how long a sequence may be before its position embeddings change; inf: any length."""
    parameters = getattr(config, "rope_parameters", None) or {}
    of_layers = parameters.values() if "rope_type" not in parameters else [parameters]
    limits = [
        one.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for one in of_layers
        if isinstance(one, dict) and one.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=math.inf)


@torch.no_grad()
def _fingerprint(policy: nn.Module) -> str:
    """Return what tells frozen weights from others; exact sums, in whatever order they are taken.

    Of no frozen weights: the sum of nothing.
    """
    digest = sha256()
    for name, parameter in policy.named_parameters():
        if not parameter.requires_grad:
            bits = parameter.detach().contiguous().view(torch.int32)
            digest.update(f"{name} {tuple(bits.shape)} {int(bits.sum())}".encode())
    return digest.hexdigest()


@torch.no_grad()
def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor, with all its shards and then on the CPU, in float32 if it is of floats."""
    whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor.detach()
    return whole.float() if whole.is_floating_point() else whole


def _plain(value: Any) -> Any:
    """Return what JSON can hold of what peft keeps in a config: sets, enumerations."""
    return sorted(value) if isinstance(value, (set, frozenset)) else value.value


def _delta(layer: Any) -> Tensor:
    """Return what an adapter adds to its layer's weight, float32."""
    up, low = (_whole(part[ADAPTER].weight) for part in (layer.lora_B, layer.lora_A))
    delta: Tensor = up @ low * layer.scaling[ADAPTER]
    return delta.T if layer.fan_in_fan_out else delta


def _adapter(head: Any, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return low [T, r] and up [V, r] of an adapted output layer, scaling included."""
    if not hasattr(head, "lora_A") or head.disable_adapters:
        return None
    return head.lora_A[ADAPTER](hidden) * head.scaling[ADAPTER], head.lora_B[ADAPTER].weight


def _with_lora(model: PreTrainedModel, lora: LoraConfig) -> nn.Module:
    import peft
    from transformers.pytorch_utils import Conv1D

    targets: str | list[str] = "all-linear"  # peft's word for all but the output layer
    if lora.head:
        if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
            raise ConfigError(
                f"{type(model).__name__} has its embedding for an output layer, which merging an "
                "adapter would change: use learner.lora.head = false."
            )
        targets = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes any number
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        wrapped: nn.Module = peft.get_peft_model(model, config)
    return wrapped
