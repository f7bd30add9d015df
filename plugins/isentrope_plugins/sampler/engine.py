"""The config of the embedded engine."""

from __future__ import annotations

from attrs import field, frozen, validators

from isentrope import Engine, EngineUse, LanguageModel
from isentrope_plugins.sampler.batching import BatchingEngine
from isentrope_plugins.sampler.choosing import decoder_for


@frozen(kw_only=True)
class TransformersEngine:
    """Samples from a transformers model in this process, many completions at a time."""

    max_batch: int = field(default=512, validator=validators.ge(1))
    """Completions decoded together at most; fewer take less memory for their caches."""
    device: str | None = None
    """A torch device for the engine's copy of the weights; None: where the model is."""

    def build(self, model: LanguageModel, use: EngineUse) -> Engine:
        """Copy the model's present weights into an engine, as version 0; it samples in float32."""
        del use
        policy = model.model
        decoder = decoder_for(policy, self.device or str(policy.device))
        return BatchingEngine(
            decoder,
            vocabulary=policy.get_input_embeddings().get_parameter("weight").shape[0],
            context=model.context,
            constants=dict(policy.named_buffers()).keys() - policy.state_dict().keys(),
            max_batch=self.max_batch,
        )
