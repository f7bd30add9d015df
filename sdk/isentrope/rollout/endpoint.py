"""Models behind an OpenAI-compatible endpoint: text in, text out.

Nothing here knows a token: a conversation is sent whole before each turn, and the server's own chat
template writes it anew. What the model sampled, and with what probability, is never seen, so such
episodes have no segments and nothing can be learnt from them; they can be evaluated.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from attrs import Attribute, define, field, frozen

from isentrope.config import RolloutConfig
from isentrope.episodes import TEXT_ONLY, Message, Segment, StopReason, Usage
from isentrope.errors import ConfigError
from isentrope.rollout.client import Client, ContextOverflowError
from isentrope.rollout.collector import Collector, Request
from isentrope.rollout.conversation import Said
from isentrope.rollout.hosting import host_of
from isentrope.specs import EnvRef
from isentrope.validation import real, text, whole

KEY_VARIABLE = "OPENAI_API_KEY"


def is_url(policy: object) -> bool:
    """Say whether a policy is named by an endpoint's URL."""
    return isinstance(policy, str) and policy.startswith(("http://", "https://"))


def _without_slash(url: Any) -> Any:
    return url.rstrip("/") if isinstance(url, str) else url


def _is_base(_: object, __: Attribute[Any], value: object) -> None:
    """Require the URL below which the API lies; what could hold a secret is not repeated."""
    if not is_url(value):
        raise ConfigError(
            "Endpoint.url must begin with http:// or https://, such as http://127.0.0.1:8000/v1."
        )
    try:
        parts = urlsplit(str(value))
        whole_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole_host = False
    if not whole_host:
        raise ConfigError("Endpoint.url has no host, or no port that there can be.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "Endpoint.url must have no user, password, query or fragment: it is written down with "
            f"the evaluation. An API key comes from an environment variable ({KEY_VARIABLE})."
        )
    if parts.path.endswith("/completions"):
        raise ConfigError(
            "Endpoint.url must be what comes before /chat/completions, which mostly ends in /v1."
        )


def _is_variable(_: object, __: Attribute[Any], value: object) -> None:
    """Require a variable's name; what is none may be the key itself, and is not repeated."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ConfigError(
            "Endpoint.key_variable must be the name of an environment variable that holds the API "
            "key, and not the key itself."
        )


@frozen(kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint, to be evaluated: text in, text out."""

    url: str = field(converter=_without_slash, validator=_is_base)
    """Below which there is ``/chat/completions``, such as ``http://127.0.0.1:8000/v1``."""
    model: str = field(validator=text())
    """As the endpoint calls it."""
    key_variable: str = field(default=KEY_VARIABLE, validator=_is_variable, repr=False)
    """Name of the environment variable that holds the API key. It is sent to `url`, and kept
    nowhere; where the default is not set, no key is sent."""
    at_a_time: int = field(default=8, validator=whole(1))
    """Episodes, and so requests, at a time."""
    deadline: float = field(default=600.0, validator=real(above=0))
    """Seconds until a request must be answered."""

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.model} at {self.url}"

    def about(self) -> dict[str, str]:
        """Return what of it changes results, and how those are marked."""
        return {"url": self.url, "model": self.model, "policy": TEXT_ONLY}

    def key(self) -> str | None:
        """Return the API key, if there is one.

        Raises `ConfigError` where the variable that was named is not set, or holds no key.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self.key_variable != KEY_VARIABLE:
            raise ConfigError("The environment variable that Endpoint.key_variable names is empty.")
        if re.search(r"[^!-~]", key):
            raise ConfigError(
                f"{self.key_variable} holds no API key: it has spaces, or characters that no "
                "header can hold."
            )
        return key or None


def models_of(endpoint: Endpoint) -> list[str]:
    """Return the names of the models that an endpoint says it has; none where it says nothing."""

    async def ask() -> list[str]:
        client = Client(endpoint.url, endpoint.key(), endpoint.deadline)
        try:
            return await client.models()
        finally:
            await client.close()

    return asyncio.run(ask())


@define
class EndpointCollector(Collector):
    """The collector of a policy behind an endpoint."""

    endpoint: Endpoint
    client: Client
    parameters: dict[str, Any]
    """Of every request: which model, and how to sample."""

    @classmethod
    def of(cls, env: EnvRef, endpoint: Endpoint, config: RolloutConfig) -> EndpointCollector:
        """Return a collector for a model behind an endpoint."""
        parameters: dict[str, Any] = {
            "model": endpoint.model,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "n": 1,
        }
        if config.top_k:  # which is no parameter of OpenAI's own: many refuse it
            parameters["top_k"] = config.top_k
        return cls(
            host=host_of(env, config.workers),
            config=config,
            endpoint=endpoint,
            client=Client(endpoint.url, endpoint.key(), endpoint.deadline),
            parameters=parameters,
        )

    @property
    def at_a_time(self) -> int:
        """How many episodes may run at a time: those that have an environment and may ask."""
        most = self.endpoint.at_a_time
        return most if self.host.at_a_time is None else min(most, self.host.at_a_time)

    def converse(self, request: Request, opening: Sequence[Message]) -> TextConversation:
        """Begin with the opening; the endpoint draws as it likes, and is given no seed."""
        del request
        return TextConversation(self, list(opening))

    async def close(self) -> None:
        """Close every environment, and the connections."""
        try:
            await super().close()
        finally:
            await self.client.close()


@define
class TextConversation:
    """A conversation in text, which is sent whole before each turn."""

    collector: EndpointCollector
    messages: list[Message]
    full: bool = field(default=False, init=False)
    _tokens: int | None = field(default=0, init=False)
    _retried: int = field(default=0, init=False)

    @property
    def usage(self) -> Usage:
        """What the endpoint counted, and how often it was asked again."""
        return Usage(self._tokens, self._retried)

    async def speak(self) -> Said:
        """Ask for a turn."""
        most = self.collector.config.max_tokens
        try:
            answer = await self.collector.client.ask(
                self.messages, self.collector.parameters, most, on_retry=self._count_retry
            )
        except ContextOverflowError:
            return Said(None, StopReason.CONTEXT)
        if self._tokens is not None:
            self._tokens = None if answer.tokens is None else self._tokens + answer.tokens
        self.messages.append({"role": "assistant", "content": answer.text})
        if not answer.cut:
            return Said(answer.text)
        clipped = answer.tokens is not None and answer.tokens < most
        return Said(answer.text, StopReason.CONTEXT if clipped else StopReason.MAX_TOKENS)

    def hear(self, messages: Sequence[Message]) -> None:
        """Remember what the environment said."""
        self.messages += messages

    def segments(self) -> tuple[Segment, ...]:
        """Return none: no token was seen."""
        return ()

    def _count_retry(self) -> None:
        self._retried += 1
