"""The config of the embedded engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from isentrope import Engine, EngineUse, LanguageModel
from isentrope_plugins.sampler.batching import BatchingEngine
from isentrope_plugins.sampler.choosing import decoder_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GROWING = 2.5
"""Room for keys and values grows by half, and what was there is copied."""


@frozen(kw_only=True)
class TransformersEngine:
    """Samples from a transformers model in this process, many completions at a time."""

    max_batch: int = field(default=512, validator=validators.ge(1))
    """Completions decoded together at most; fewer take less memory for their caches."""
    device: str | None = None
    """A torch device for the engine's copy of the weights; None: the model's."""

    def build(self, model: LanguageModel, use: EngineUse) -> Engine:
        """Copy the model's present weights into an engine, as version 0; it samples in float32."""
        del use
        policy = model.model
        decoder = decoder_for(policy, self.device or model.device)
        return BatchingEngine(
            decoder,
            vocabulary=policy.get_input_embeddings().get_parameter("weight").shape[0],
            context=model.context,
            constants=dict(policy.named_buffers()).keys() - policy.state_dict().keys(),
            max_batch=self.max_batch,
        )

    def memory(self, model: PreTrainedModel, use: EngineUse, at_once: int) -> Mapping[str, int]:
        """Return bytes of the copy of the weights, and at most of keys and values."""
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        a_token = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
        rows = min(self.max_batch, at_once)
        return {
            "weights": sum(p.numel() * p.itemsize for p in model.parameters()),
            f"keys and values of {rows:,} completions": int(
                _GROWING * rows * use.context * a_token
            ),
        }
