"""Any transformers causal LM, from a folder or a hub."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen, validators

from isentrope import ConfigError, EnvRef, LanguageModel


@frozen(kw_only=True)
class Pretrained:
    """Load a model and its tokenizer with transformers' own loaders."""

    path: str = field(validator=validators.min_len(1))
    """A folder, or a name on the hub."""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    def build(self, env: EnvRef) -> LanguageModel:
        """Load it; `env` plays no part.

        Raises `ConfigError` with the loader's own reason where it cannot be loaded.
        """
        del env
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
            model = AutoModelForCausalLM.from_pretrained(
                self.path, revision=self.revision, dtype=getattr(torch, self.dtype)
            )
        except (OSError, ValueError) as error:  # what transformers raises for a wrong name or file
            reason = " ".join(str(error).split())
            raise ConfigError(f"Model {self.path!r} cannot be loaded: {reason}") from error
        return LanguageModel(model.to(self.device), tokenizer)
