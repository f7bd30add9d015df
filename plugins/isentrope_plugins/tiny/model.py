"""`TinyQwen3`: the model to try everything with, on one CPU core, without a download."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import platformdirs
from attrs import field, frozen, validators

from isentrope import ConfigError, EnvRef, IsentropeError, LanguageModel, Message
from isentrope_plugins.tiny.demonstrations import demonstrations

if TYPE_CHECKING:
    from transformers import Qwen3Config

_log = logging.getLogger("isentrope.models")
_FORMAT = 1  # raise when warm-up or tokenizer change, so that no stale policy is used
DEMONSTRATIONS, FINGERPRINT = 8192, 256  # played for a warm-up; hashed to find it again
PER_TASK = 32  # at most, for environments of few tasks and long episodes
BYTES = 262
"""The smallest vocabulary: every byte, and 6 tokens of its own."""
_at_least_one = validators.ge(1)


@frozen(kw_only=True)
class TinyQwen3:
    """A Qwen3 of about 100,000 parameters that solves a task now and then, in many ways.

    It is made in code and warmed up on the environment's own noisy demonstrations, about twenty
    seconds once; then it comes from the user's cache, found by a hash of all that decides it.
    """

    hidden_size: int = field(default=64, validator=_at_least_one)
    layers: int = field(default=2, validator=_at_least_one)
    vocab_size: int = field(default=512, validator=validators.ge(BYTES))
    """At most: the 256 bytes, 6 of its own, and merges learnt from demonstrations."""
    context: int = field(default=512, validator=_at_least_one)
    """Positions."""
    warmup_env: EnvRef | None = None
    """Environment to warm up on; None: the run's own."""
    warmup_steps: int = field(default=300, validator=validators.ge(0))
    """0: no demonstrations are played, and text is encoded byte by byte."""
    warmup_batch: int = field(default=128, validator=_at_least_one)
    warmup_lr: float = field(default=3e-3, validator=validators.gt(0))
    warmup_noise: float = field(default=0.3, validator=[validators.ge(0), validators.le(1)])
    """Probability that a step of a demonstration is wrong: leaves something to learn."""
    seed: int = field(default=0, validator=validators.ge(0))
    """Of weights and demonstrations; not the run's, so that runs of all seeds begin alike."""

    def build(self, env: EnvRef) -> LanguageModel:
        """Take the model from the cache, or make it and put it there."""
        source = self.warmup_env or env

        def play(count: int, per_task: int) -> list[list[Message]]:
            if not self.warmup_steps:  # nothing to learn from: an environment may have none
                return []
            try:
                return demonstrations(source, count, per_task, self.warmup_noise, self.seed)
            except ConfigError:
                raise
            except IsentropeError as error:
                raise IsentropeError(
                    "The model's warm-up failed, before the run began: demonstrations of the "
                    f"environment may not. {error}"
                ) from error

        # The first few stand for all: who plays these, plays the rest the same.
        folder = cache_folder() / f"tiny-qwen3-{self._hash(play(FINGERPRINT, 1))}"
        if not folder.exists():
            _log.info("Warming up a tiny Qwen3 on %r: once, half a minute or so.", source.id)
            self._make(play(DEMONSTRATIONS, PER_TASK), folder)
        return LanguageModel.load(folder)

    def architecture(self) -> Qwen3Config:
        """Return its config with the largest vocabulary that it may have."""
        return self._config(self.vocab_size if self.warmup_steps else BYTES)

    def _config(self, vocabulary: int) -> Qwen3Config:
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=self.hidden_size,
            intermediate_size=3 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=max(16, self.hidden_size // 4),
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )

    def _hash(self, corpus: list[list[Message]]) -> str:
        import torch

        decides = attrs.asdict(self, filter=lambda a, _: a.name != "warmup_env")
        content = json.dumps([_FORMAT, torch.__version__, decides, corpus], sort_keys=True)
        return sha256(content.encode()).hexdigest()[:20]

    def _make(self, corpus: list[list[Message]], folder: Path) -> None:
        import torch
        from transformers import Qwen3ForCausalLM

        from isentrope_plugins.tiny.tokenizer import train_tokenizer
        from isentrope_plugins.tiny.warmup import label, warm_up

        tokenizer = train_tokenizer(
            (m["content"] for conversation in corpus for m in conversation), self.vocab_size
        )
        config = self._config(len(tokenizer))
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Qwen3ForCausalLM(config)
            warm_up(
                model,
                [label(tokenizer, conversation) for conversation in corpus],
                steps=self.warmup_steps,
                batch=self.warmup_batch,
                lr=self.warmup_lr,
                seed=self.seed,
            )
        _write_atomically(folder, LanguageModel(model, tokenizer))


def cache_folder() -> Path:
    """Where warmed-up models are kept: ``ISENTROPE_CACHE``, or the user's cache folder."""
    given = os.environ.get("ISENTROPE_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("isentrope"))


def _write_atomically(folder: Path, model: LanguageModel) -> None:
    """Write beside and rename, so that a killed process leaves no half a model behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    model.save(draft)
    try:
        draft.rename(folder)
    except OSError:  # another process was faster; its model is the same
        shutil.rmtree(draft)
        if not folder.exists():
            raise
