"""Any transformers causal LM, from a folder or a hub."""

from __future__ import annotations

from attrs import field, frozen, validators

from isentrope import EnvRef, LanguageModel


@frozen(kw_only=True)
class Pretrained:
    """Load a model and its tokenizer by `LanguageModel.load`."""

    path: str = field(validator=validators.min_len(1))
    """A folder, or a name on the hub."""
    revision: str | None = None
    device: str = "cpu"

    def build(self, env: EnvRef) -> LanguageModel:
        """Load it; `env` plays no part."""
        del env
        return LanguageModel.load(self.path, revision=self.revision, device=self.device)
