"""Models: a transformers causal LM with its tokenizer, and the configs that build one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from isentrope.errors import ConfigError, nearest_path
from isentrope.specs import EnvRef

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@frozen
class LanguageModel:
    """A policy to start from."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    path: str | None = None
    """A folder, or a name on the hub, that has the very same; None: it is nowhere else."""
    device: str = field()
    """A torch device, to which learner and engine bring their weights; where `model` is, unless it
    says otherwise. A policy that is sharded comes there layer by layer."""

    @device.default
    def _device_of_model(self) -> str:
        return str(self.model.device)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end the assistant's turn: the tokenizer's and the generation config's."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        ids = {self.tokenizer.eos_token_id, *listed} - {None}
        return tuple(sorted(int(i) for i in ids))

    @property
    def context(self) -> int:
        """Longest sequence, in tokens, that the model's positions allow.

        Raises `ConfigError` for a model that does not say.
        """
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if not isinstance(positions, int):
            raise ConfigError(
                f"{type(self.model).__name__} has no max_position_embeddings; such models are not "
                "supported."
            )
        return positions

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        device: str = "cpu",
    ) -> LanguageModel:
        """Load a model, in float32, and its tokenizer from a folder, or by a hub's name.

        device: where it is to compute; it is loaded on the CPU.

        Raises `ConfigError` with transformers' own reason where it cannot be loaded.
        """
        cls.check_path(path)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with _no_progress_bars():
            try:
                tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
                model = AutoModelForCausalLM.from_pretrained(
                    path, revision=revision, dtype=torch.float32
                )
                torch.empty(0, device=device)
            except (OSError, ValueError, RuntimeError) as error:  # a wrong name, file or device
                reason = " ".join(str(error).split())
                raise ConfigError(f"Model {str(path)!r} cannot be loaded: {reason}") from error
        return cls(model, tokenizer, None if revision else str(path), device)

    @staticmethod
    def check_path(path: str | Path) -> None:
        """Raise `ConfigError` for a folder that is not there, so that no hub is asked for it.

        What has one slash at most, and is like no folder that there is, may be a name on the hub.
        """
        name, folder = str(path), Path(path).expanduser()
        if folder.exists():
            return
        hint = nearest_path(folder, cutoff=0.8, among="*/")
        if hint or name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise ConfigError(f"{folder.absolute()} does not exist.{hint}")

    @staticmethod
    def architecture(path: str | Path, *, revision: str | None = None) -> PreTrainedConfig:
        """Read the config alone of what `load` would load.

        Raises `ConfigError` where it is not to be had.
        """
        LanguageModel.check_path(path)
        from transformers import AutoConfig

        try:
            found: PreTrainedConfig = AutoConfig.from_pretrained(path, revision=revision)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The config of model {str(path)!r} is not to be had: name a folder that has its "
                "config.json, or a name on the hub where that can be reached, or was before."
            ) from error
        return found

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write model and tokenizer in transformers' own format.

        weights: tensors by name to write in place of the model's own (merged adapters, say).

        Raises `OSError` where the folder cannot be written.
        """
        from safetensors import SafetensorError

        with _no_progress_bars():
            try:
                self.model.save_pretrained(folder, state_dict=weights)
                if weights is not None:
                    _declare_dtype(folder / "config.json", weights)
            except SafetensorError as error:  # a full disk, say
                raise OSError(str(error)) from error
            self.tokenizer.save_pretrained(folder)


def _declare_dtype(config: Path, weights: Mapping[str, Tensor]) -> None:
    """Write what the weights are in, which need not be what the model computes in."""
    dtypes = {w.dtype for w in weights.values() if w.is_floating_point()}
    if len(dtypes) == 1:
        data = json.loads(config.read_text(encoding="utf-8"))
        data["dtype"] = str(dtypes.pop()).removeprefix("torch.")
        config.write_text(json.dumps(data, indent=2), encoding="utf-8")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hold back transformers' bars, one per file, which would tear the output of a run apart."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class ModelConfig(Protocol):
    """A frozen config that builds a model: what a ``model`` component's entry point names.

    For `isentrope.plan`, which builds none, it may also have:

    - ``device``: a field, the torch device of the model that it builds; without it, ``"cpu"``.
    - ``architecture() -> PreTrainedConfig``: transformers' config of that model.
    - ``missing() -> str | None``: one sentence, what `build` needs that is not on this machine.
    """

    def build(self, env: EnvRef) -> LanguageModel:
        """Load or make the model; `env` is the run's, for models that warm up on it.

        Of several ranks the first alone is asked, unless what it makes cannot be pickled.
        Deterministic: the same config, and environment where it is used, give the same weights.
        """
        ...
