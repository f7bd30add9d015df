"""Any transformers causal LM, from a folder or a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from isentrope import EnvRef, LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


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

    def architecture(self) -> PreTrainedConfig:
        """Read its config alone."""
        return LanguageModel.architecture(self.path, revision=self.revision)

    def missing(self) -> str | None:
        """Say whether a folder has no weights."""
        folder = Path(self.path)
        if not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            return None
        return f"The folder of the model, {folder}, has no weights in it."
