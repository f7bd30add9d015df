"""The policy: a transformers model whose forward ends in log-probs, not logits.

`Policy` is written as the root that FSDP2 shards: everything between token ids and float32
log-probs happens inside its forward, where the head's weight is whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isentrope.config import Head, LoraConfig
from isentrope.errors import ConfigError
from isentrope.learner.cut import CutCrossEntropy
from isentrope.learner.head import TokenScores, token_scores
from isentrope.learner.packing import Inputs

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
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        lora: LoraConfig | None,
        backend: Head = "chunked",
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
            self._cut = CutCrossEntropy.load(head.weight.device, bias=head.bias is not None)
        model.eval()  # no dropout: old and new log-probs must be of the same function
        self.temperature = temperature
        self._plain = model
        self.model = model if lora is None else _with_lora(model, lora)
        self._self_test()

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
        """Return log-probs [T] float32 of the sampled tokens, and what `needs` names."""
        decoder: Any = self._plain.get_decoder()
        states = decoder(input_ids=inputs.ids, use_cache=False).last_hidden_state
        head: Any = self._plain.get_output_embeddings()
        # Not states[row, column]: on a CPU its backward takes twice as long.
        flat = inputs.row * inputs.ids.shape[1] + inputs.column
        hidden = states.flatten(0, 1).index_select(0, flat)
        if self._cut is not None:
            self.check_needs(needs)
            logp = self._cut(hidden, head.weight, inputs.target, self.temperature)
            return TokenScores(logp, None, None)
        return token_scores(
            hidden,
            head.weight,
            head.bias,
            inputs.target,
            self.temperature,
            needs=needs,
            adapter=_adapter(head, hidden),
        )

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def weights(self) -> dict[str, Tensor]:
        """Return every tensor by its name in the plain model, adapters merged in."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        if self.model is self._plain:
            return dict(self.model.state_dict())
        merged: dict[str, Tensor] = {}
        adapters = {n: m for n, m in self._plain.named_modules() if isinstance(m, BaseTunerLayer)}
        for name, tensor in self._plain.state_dict().items():
            if ".lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            layer: Any = adapters.get(plain.removesuffix(".weight"))
            merged[plain] = tensor
            if layer is not None and plain.endswith(".weight"):
                merged[plain] = tensor + layer.get_delta_weight(ADAPTER).to(tensor.dtype)
        return merged

    @torch.no_grad()
    def _self_test(self) -> None:
        """Compare with the model's own logits, so that an unsupported head cannot pass unseen."""
        vocabulary = int(self._plain.config.vocab_size)
        ids = torch.arange(1, 9, device=self._plain.device).remainder(vocabulary)[None]
        column = torch.arange(ids.shape[1] - 1, device=ids.device)
        inputs = Inputs(ids, torch.zeros_like(column), column, ids[0, 1:])
        ours = self(inputs).logp
        logits = self._plain(input_ids=ids, use_cache=False).logits[0, :-1].float()
        theirs = torch.log_softmax(logits / self.temperature, -1)
        theirs = theirs.gather(-1, ids[0, 1:, None]).squeeze(-1)
        tolerance = SELF_TEST_TOLERANCE * max(1.0, 1.0 / self.temperature)
        if not (difference := float((ours - theirs).abs().max())) <= tolerance:
            raise ConfigError(
                f"{type(self._plain).__name__} does more than one matrix product after its last "
                f"hidden state (log-probs differ by {difference:.3g} nats); models with capped or "
                "scaled logits are not supported."
            )


def _check_supported(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if dtypes := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise ConfigError(
            f"{name} has weights in {', '.join(sorted(map(str, dtypes)))}; training needs float32."
        )
    for option in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, option, None) not in (None, 1, 1.0):
            raise ConfigError(
                f"{name} does more than one matrix product after its last hidden state (its config "
                f"sets {option}); models with capped or scaled logits are not supported."
            )


def _adapter(head: Any, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return low [T, r] and up [V, r] of an adapted output layer, scaling included."""
    if not hasattr(head, "lora_A"):
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
