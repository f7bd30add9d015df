"""Engines: what samples from the policy. Token ids in, token ids out; text never passes here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

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
class WeightsRef:
    """Weights that a learner publishes to an engine."""

    version: int
    """Counts publications from 0, the starting policy."""
    tensors: Mapping[str, Tensor]
    """Every parameter and buffer by its name in the plain transformers model, LoRA merged in.

    They may alias the learner's own: an engine copies what it keeps.
    """


@runtime_checkable
class Engine(Protocol):
    """Samples completions from the newest published policy.

    One that samples together what is pending at the same time may say so with a class attribute,
    ``samples_together = True``: turns are then handed to it together, when no environment is at
    work, and in the episodes' order.
    """

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        """Draw one completion of `prompt` (token ids).

        The same prompt, sampling (seed included) and weights give the same completion whatever
        else is in flight, as far as the engine's arithmetic allows.

        Raises `EngineError` where it cannot.
        """
        ...

    async def publish(self, weights: WeightsRef) -> None:
        """Sample from these weights from now on; completions then carry their version."""
        ...

    async def close(self) -> None:
        """Release everything. May be called twice."""
        ...


class EngineConfig(Protocol):
    """A frozen config that builds its engine: what an ``engine`` component's entry point names."""

    def build(self, model: LanguageModel) -> Engine:
        """Make an engine that samples from `model`'s present weights, as version 0."""
        ...
