"""The config of the engine of vLLM servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import converters, field, frozen, validators

from isentrope import ConfigError, Engine, EngineUse, LanguageModel
from isentrope.validation import flag, one_of, real, whole
from isentrope_plugins.vllm.fleet import Fleet
from isentrope_plugins.vllm.place import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = ("float32", "bfloat16", "float16")


def _urls(values: str | Iterable[str]) -> tuple[str, ...]:
    listed = [values] if isinstance(values, str) else values
    return tuple(url.rstrip("/").removesuffix("/v1") for url in listed)


def _words(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen(kw_only=True)
class VllmEngine:
    """Samples on vLLM servers: running ones, or ones that the run starts and stops itself.

    Whoever can reach a server can load weights into it: keep them on a network that you trust.
    """

    takes_adapters: ClassVar[bool] = True
    proven: ClassVar[bool] = True

    urls: tuple[str, ...] = field(default=(), converter=_urls)
    """Of running servers (`isentrope vllm serve`). None: the run starts its own."""
    servers: int = field(default=1, validator=whole(1))
    """How many it starts, on this machine."""
    flags: tuple[str, ...] = field(default=(), converter=_words)
    """More flags of ``vllm serve`` for those."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, validator=validators.optional(one_of(_DTYPES))
    )
    """What servers compute in, where nothing is trained; in training it is `learner.dtype`."""
    adapters: Path | None = field(default=None, converter=converters.optional(Path))
    """A folder for adapters that servers on other machines see under the same path; None: one of
    this machine's own, which ends with the run."""
    deadline: float = field(default=600.0, validator=real(above=0))
    """Seconds for one completion; a server that takes longer counts as hung, and is given up."""
    tolerance: float | None = field(default=None, validator=validators.optional(real(above=0)))
    """How far log-probs after a publication may be from the learner's in the mean, nats, before
    the run stops; None: 0.0003 in float32, 0.01 in float16, 0.05 in bfloat16."""
    sleep: bool = field(default=False, validator=flag())
    """Have servers give their GPU to the learner while it works (started with --enable-sleep-mode).
    """

    def __attrs_post_init__(self) -> None:
        """Check what goes together."""
        if self.urls and self.flags:
            raise ConfigError("engine.flags are for servers that the run starts: leave out urls.")
        if len(set(self.urls)) < len(self.urls):
            raise ConfigError("engine.urls names a server twice.")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"engine.urls must be like http://127.0.0.1:8000; got {url!r}.")

    def build(self, model: LanguageModel, use: EngineUse) -> Engine:
        """Return an engine; servers are started, or asked, when it is first used.

        Raises `ConfigError` where they would compute in another dtype than the learner, or sleep
        while they are needed.
        """
        self._check(use)
        return Fleet(self, model, use)

    def memory(self, model: PreTrainedModel, use: EngineUse, at_once: int) -> Mapping[str, int]:
        """Return nothing: servers are processes of their own. Raises what `build` raises."""
        del model, at_once
        self._check(use)
        return {}

    def missing(self) -> str | None:
        """Say whether servers are to be started, and vLLM is not installed."""
        if self.urls or Place.default().python.is_file():
            return None
        return "vLLM is not installed here: isentrope vllm install."

    def _check(self, use: EngineUse) -> None:
        if use.rank is not None and self.dtype not in (None, use.dtype):
            raise ConfigError(
                f"engine.dtype is {self.dtype} and learner.dtype {use.dtype}: what samples and "
                "what learns must compute in the same; leave out engine.dtype."
            )
        if self.sleep and use.staleness:
            raise ConfigError(
                "engine.sleep gives up the servers' GPU while the learner works, and with "
                f"rollout.staleness = {use.staleness} they sample meanwhile: choose one of them."
            )
