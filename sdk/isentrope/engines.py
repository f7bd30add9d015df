"""Engines: what samples from the policy. Token ids in, token ids out; text never passes here."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from attrs import field, frozen, validators

if TYPE_CHECKING:
    from torch import Tensor

    from isentrope.models import LanguageModel


def _integers(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _reals(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values)


@frozen
class Sampling:
    """How one completion is drawn. Every parameter is explicit: no engine fills in its own."""

    max_tokens: int = field(validator=validators.ge(1))
    temperature: float = field(default=1.0, validator=validators.gt(0.0))
    """Of the sampling distribution; log-probs, the engine's and the learner's, include it."""
    top_p: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(1.0)])
    top_k: int = field(default=0, validator=validators.ge(0))
    """0: off."""
    stop_ids: tuple[int, ...] = field(default=(), converter=_integers)
    """A completion ends with the first of these that is drawn; it is kept, as it was sampled."""
    seed: int = 0
    """With the prompt and the weights, decides the completion."""

    @property
    def truncates(self) -> bool:
        """Whether part of the distribution can never be drawn (top-p or top-k)."""
        return self.top_p < 1 or self.top_k > 0


@frozen
class Completion:
    """What an engine drew."""

    ids: tuple[int, ...] = field(converter=_integers)
    """The sampled tokens, a stop id included."""
    logp: tuple[float, ...] = field(converter=_reals)
    """Log-probability of each under the distribution that was sampled from, nats."""
    finish_reason: Literal["stop", "length"]
    version: int
    """`WeightsRef.version` of the policy that sampled it."""


@frozen
class Adapter:
    """Low-rank adapters of a model's layers, as peft keeps them in a folder."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    """By the names that peft's files have, float32, on the CPU."""
    config: Mapping[str, Any]
    """peft's ``adapter_config.json``."""

    def save(self, folder: Path) -> None:
        """Write them in peft's format, for ``PeftModel.from_pretrained`` and for servers.

        Raises `OSError` where the folder cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(self.config), indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in self.tensors.items()},
                folder / "adapter_model.safetensors",
                metadata={"format": "pt"},
            )
        except SafetensorError as error:  # a full disk, say
            raise OSError(str(error)) from error


@frozen
class WeightsRef:
    """Weights that a learner publishes to an engine: whole, or as adapters of those it has."""

    version: int
    """Counts publications from 0, the starting policy."""
    tensors: Mapping[str, Tensor] = field(factory=dict, repr=False)
    """Every parameter and buffer by its name in the plain transformers model, LoRA merged in.

    They may alias the learner's own: an engine copies what it keeps. Empty for one that
    ``takes_adapters``.
    """
    adapter: Adapter | None = field(default=None, repr=False)
    """What the policy adds to the model that the engine was built with, for one that
    ``takes_adapters``."""


@frozen(kw_only=True)
class EngineUse:
    """What a run does with its engine."""

    context: int
    """Tokens of the longest prompt and its completion together."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the learner computes in. An engine that computes in another samples from another
    policy."""
    rank: int | None = None
    """Of the adapters that will be published; None: none will."""
    staleness: int = 0
    """How many publications older than the newest a completion in flight may be."""


@runtime_checkable
class Engine(Protocol):
    """Samples completions from the newest published policy.

    Class attributes say what an engine is not obliged to be:

    - ``samples_together = True``: it samples together what is pending at the same time. Turns are
      then handed to it together, when no environment is at work, and in the episodes' order.
    - ``seeded = False``: `Sampling.seed` does not decide its completions; its runs cannot be
      repeated to the bit.

    And methods that one may have:

    - ``async generate_on_each(prompt, sampling) -> Sequence[Completion]``: one completion from each
      of its servers, for the proof that all of them have what was published.
    - ``async rest()`` and ``async wake()``: give up the accelerator's memory while the learner is
      at work, and take it back. Called in turns, ``rest`` with nothing in flight.
    - ``counts() -> Mapping[str, float]``: what there is to count since it was built, by name.
    """

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, conversation: Hashable = None
    ) -> Completion:
        """Draw one completion of `prompt` (token ids).

        The same prompt, sampling (seed included) and weights give the same completion whatever
        else is in flight, as far as the engine's arithmetic allows.

        conversation: the same for all turns of an episode, whose prompts begin with one another: an
        engine may keep them where they are cached. None: a prompt of its own.

        Raises `EngineError` where it cannot.
        """
        ...

    async def publish(self, weights: WeightsRef) -> None:
        """Sample from these weights from now on; completions then carry their version.

        Completions in flight go on with what they began with, and carry that version.

        Raises `EngineError` where it cannot; it then goes on with what it had.
        """
        ...

    async def close(self) -> None:
        """Release everything. May be called twice."""
        ...


class EngineConfig(Protocol):
    """A frozen config that builds its engine: what an ``engine`` component's entry point names.

    Class attributes say what its engines need:

    - ``takes_adapters = True``: publications bring an `Adapter`, not all weights.
    - ``proven = True``: after each publication the run has it sample, on every server, and compares
      with the learner's own log-probs; ``tolerance``, nats, may be a field of it.

    For `isentrope.plan`, which builds none, it may also have:

    - ``memory(model, use, at_once) -> Mapping[str, int]``: bytes that its engine takes of this
      process's device, by what for, with so many completions at once; `model` is one without
      numbers, on torch's meta device. ``"weights"`` are there all the time, all else while
      sampling. Raises what `build` raises.
    - ``missing() -> str | None``: one sentence, what `build` needs that is not on this machine.
    """

    def build(self, model: LanguageModel, use: EngineUse) -> Engine:
        """Make an engine that samples from `model`'s present weights, as version 0.

        Raises `EngineError` or `ConfigError` where it cannot.
        """
        ...
