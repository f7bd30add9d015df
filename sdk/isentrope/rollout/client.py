"""The client of an OpenAI-compatible endpoint: what is asked again, and what is said of refusals.

A request that met a busy or broken server, or no server, is made again after a pause, which doubles
each time or is what the server asked for. What every request would meet (a wrong key, URL or model,
no server after all pauses) is a `ConfigError`; any other refusal is an `EngineError`, of its
episode alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
from attrs import frozen

from isentrope.episodes import Message
from isentrope.errors import ConfigError, EngineError, UnknownNameError

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each further try: over a minute, by which most rates are limited."""
_CONNECT = 10.0
"""Seconds until a connection must stand."""
_WORDS = 300
"""Characters of a server's answer that are repeated."""
_OVERFLOW = re.compile(
    r"context.?(length|size|window)|prompt is too long|input is too long"
    r"|exceeds the maximum number of tokens|max_tokens must be at least 1, got",
    re.IGNORECASE,
)
"""How servers (vLLM, OpenAI's, llama.cpp, Anthropic's, Google's) say that a conversation is too
long."""
_RENAMED = "max_completion_tokens"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_log = logging.getLogger(__name__)


class ContextOverflowError(EngineError):
    """A conversation, with the turn that was asked for, is longer than the model's context."""


@frozen
class Answer:
    """A turn, as an endpoint returned it."""

    text: str
    cut: bool
    """Whether it ended at a limit of tokens."""
    tokens: int | None
    """That were sampled, by the endpoint's own count; None where it does not count."""


class Client:
    """Asks one endpoint for turns.

    url: what comes before ``/chat/completions``. key: the API key, which no message ever repeats.
    deadline: seconds for an answer.
    """

    def __init__(self, url: str, key: str | None, deadline: float) -> None:
        self.url, self.deadline = url, deadline
        self._key = key
        self._http = httpx2.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(None, connect=_CONNECT),  # the rest has the deadline
            limits=httpx2.Limits(),  # none: who asks is who counts
            trust_env=urlsplit(url).hostname not in _LOOPBACK,  # a proxy is for other machines
        )
        self._limit = "max_tokens"
        """What this endpoint calls it."""
        self._met: set[str] = set()
        """Troubles that were told of."""

    async def ask(
        self,
        messages: Sequence[Message],
        parameters: Mapping[str, Any],
        max_tokens: int,
        on_retry: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Return the assistant's next turn.

        on_retry: called each time that the request is made again.

        Raises `ContextOverflowError`, another `EngineError` where this request fails, and
        `ConfigError` where every one would.
        """
        plain = [{"role": m["role"], "content": _whole(m["content"])} for m in messages]
        body = {**parameters, "messages": plain}
        limit = self._limit
        response = await self._post({**body, limit: max_tokens}, on_retry)
        if limit != _RENAMED and _renames_the_limit(response):
            self._limit = _RENAMED
            response = await self._post({**body, _RENAMED: max_tokens}, on_retry)
        if response.status_code != 200:
            await self._refuse(response, str(parameters["model"]))
        return self._read(response)

    async def models(self) -> list[str]:
        """Return the names of the models that the endpoint says it has; none where it does not."""
        try:
            async with asyncio.timeout(min(self.deadline, _CONNECT)):
                listed = (await self._http.get(f"{self.url}/models")).json()
            return [str(model["id"]) for model in listed["data"]]
        except (httpx2.HTTPError, TimeoutError, ValueError, LookupError, TypeError):
            return []

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _post(self, body: Mapping[str, Any], on_retry: Callable[[], object]) -> Any:
        """Return the response; what a later try may not meet is tried again."""
        for pause in (*PAUSES, None):
            try:
                async with asyncio.timeout(self.deadline):
                    response = await self._http.post(f"{self.url}/chat/completions", json=body)
            except TimeoutError:
                raise EngineError(
                    f"{self.url} did not answer within {self.deadline:g} s."
                ) from None
            except httpx2.TransportError as error:
                trouble, asked = f"{type(error).__name__}: {error}", None
                if pause is None and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                    raise ConfigError(
                        f"{self.url} cannot be reached ({self._safe(trouble)}), after "
                        f"{len(PAUSES)} more tries."
                    ) from None
            except httpx2.RequestError as error:
                raise EngineError(f"{self.url}: {self._safe(repr(error))}") from None
            else:
                code = response.status_code
                if (code < 500 and code not in (408, 429)) or _overflows(response):
                    return response
                trouble = f"{code}: {self._words(response)}"
                asked = _seconds(response.headers.get("Retry-After"))
            if pause is None or (asked is not None and asked > self.deadline):
                wish = f", and asks to wait {asked:,.0f} s" if asked is not None else ""
                raise EngineError(f"{self.url} failed ({self._safe(trouble)}){wish}.")
            wait = asked if asked is not None else pause * random.uniform(1, 1.25)
            self._tell(trouble, wait)
            on_retry()
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _read(self, response: Any) -> Answer:
        try:
            data = response.json()
            choice = data["choices"][0]
            spoken, reason = choice["message"]["content"], choice["finish_reason"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise EngineError(
                f"{self.url} answered with what is no chat completion: {self._words(response)}"
            ) from None
        if reason not in ("stop", "length") or not isinstance(spoken, str | None):
            raise EngineError(
                f"{self.url} ended a turn with finish_reason {reason!r} and content of type "
                f"{type(spoken).__name__}; expected 'stop' or 'length', and text."
            )
        usage = data.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return Answer(spoken or "", reason == "length", tokens if type(tokens) is int else None)

    async def _refuse(self, response: Any, model: str) -> None:
        """Raise what a response that is no answer comes to."""
        code, said = response.status_code, self._words(response)
        if _overflows(response):
            raise ContextOverflowError(f"{self.url}: {said}")
        if code in (401, 403):
            unset = "" if self._key else ", and no API key was sent: its variable is not set"
            raise ConfigError(f"{self.url} refused access ({code}: {said}){unset}.")
        if code == 404 or (code == 400 and "model" in said.lower()):
            listed = await self.models()
            if listed and model not in listed:
                words = f" It answered {code}: {said}"
                raise UnknownNameError(f"At {self.url}, model", model, listed, words)
        if code in (404, 405) or 300 <= code < 400:
            raise ConfigError(
                f"{self.url}/chat/completions answered {code} ({said}): give the URL that comes "
                "before /chat/completions, which mostly ends in /v1, and a model that is there."
            )
        raise EngineError(f"{self.url} refused a request ({code}): {said}")

    def _words(self, response: Any) -> str:
        """Return what a server says of an error, in a line."""
        try:
            said = json.loads(response.text)
            for key in ("error", "message", "detail"):
                if isinstance(said, dict) and said.get(key):
                    said = said[key]
        except (ValueError, RecursionError):
            said = response.text
        words = " ".join((said if isinstance(said, str) else json.dumps(said)).split())
        return self._safe(words)[:_WORDS] or "no words"

    def _safe(self, words: str) -> str:
        """Take out the key, which a server may repeat."""
        return words.replace(self._key, "***") if self._key else words

    def _tell(self, trouble: str, wait: float) -> None:
        """Say that there is trouble, once of each kind; how often is counted elsewhere."""
        kind = trouble.partition(":")[0]
        if kind not in self._met:
            self._met.add(kind)
            _log.info("%s: %s; trying again after %.0f s", self.url, self._safe(trouble), wait)


def _renames_the_limit(response: Any) -> bool:
    """Say whether this is one of OpenAI's own models that think, which call it otherwise."""
    return response.status_code == 400 and f"use '{_RENAMED}'" in response.text.lower()


def _overflows(response: Any) -> bool:
    wrong = response.status_code in (400, 413, 422, 500)
    return wrong and _OVERFLOW.search(response.text) is not None


def _whole(content: str) -> str:
    """Replace halves of characters, which no request can hold."""
    return content.encode("utf-8", "replace").decode()


def _seconds(header: str | None) -> float | None:
    """Read ``Retry-After``: seconds, or a date."""
    if header is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
