"""Models: a transformers causal LM with its tokenizer, and the configs that build one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from isentrope.specs import EnvRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@frozen
class LanguageModel:
    """A policy to start from."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end the assistant's turn: the tokenizer's and the generation config's."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        ids = {self.tokenizer.eos_token_id, *listed} - {None}
        return tuple(sorted(int(i) for i in ids))

    @property
    def context(self) -> int:
        """Longest sequence, in tokens, that the model's positions allow."""
        return int(self.model.config.max_position_embeddings)


class ModelConfig(Protocol):
    """A frozen config that builds a model: what a ``model`` component's entry point names."""

    def build(self, env: EnvRef) -> LanguageModel:
        """Load or make the model; `env` is the run's, for models that warm up on it.

        Deterministic: the same config, and environment where it is used, give the same weights.
        """
        ...
