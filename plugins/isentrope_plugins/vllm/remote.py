"""One vLLM server over HTTP: completions by token ids, adapters by name."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import aiohttp
from attrs import define, field, frozen

from isentrope import ConfigError, EngineError, EngineUse, Sampling

QUICK = 30.0
"""Seconds for what a server that is well answers at once: anything but a completion."""
TOKEN = "token_id:"  # noqa: S105  # how vLLM writes ids in the place of text


class LostError(Exception):
    """A server gave no answer that can be used: it is gone, hangs, or failed within."""

    useless = False
    """Whether it is of no use even if it says that it is well."""


class HungError(LostError):
    """It took longer than it may."""

    useless = True


class RestartedError(LostError):
    """It no longer knows what it was sent."""

    useless = True


@frozen
class About:
    """What a server says of itself."""

    model: str
    """The name of what it serves without an adapter."""
    root: str
    """Where that came from."""
    context: int
    """Longest sequence, in tokens."""
    dtype: str
    logprobs_mode: str
    max_loras: int
    """Adapters in use at the same time; 0: it takes none."""
    max_lora_rank: int
    adapters: tuple[str, ...]
    """Names of those that it has now, whoever sent them."""

    def check(self, url: str, use: EngineUse, dtype: str) -> None:
        """Raise `ConfigError` where it would not do, which says how to start it."""
        if self.dtype != dtype:
            raise ConfigError(
                f"{url} computes in {self.dtype}, and the learner in {dtype}: start it with "
                f"--dtype {dtype}."
            )
        if self.logprobs_mode != "processed_logprobs":
            raise ConfigError(
                f"{url} reports {self.logprobs_mode}, which leave out the temperature: start it "
                "with --logprobs-mode processed_logprobs."
            )
        if self.context < use.context:
            raise ConfigError(
                f"{url} has a context of {self.context} tokens, and episodes {use.context}: start "
                f"it with --max-model-len {use.context}, or set rollout.context."
            )
        if use.rank is None:
            return
        if self.max_loras < (needed := slots(use)):
            raise ConfigError(
                f"{url} holds {self.max_loras} adapters at a time, and {needed} are needed "
                f"(rollout.staleness + 2): start it with --enable-lora --max-loras {needed}."
            )
        if self.max_lora_rank < use.rank:
            raise ConfigError(
                f"{url} takes adapters of rank {self.max_lora_rank} at most, and learner.lora.r "
                f"is {use.rank}: start it with --max-lora-rank {use.rank} or more (isentrope "
                "vllm serve has the same)."
            )


def slots(use: EngineUse) -> int:
    """Return how many adapters are in use: stale ones, the newest, and the one to replace it."""
    return use.staleness + 2


@frozen
class Drawn:
    """What a server drew."""

    ids: tuple[int, ...]
    logp: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


@define(eq=False)
class Remote:
    """A server, as one engine uses it."""

    url: str
    session: aiohttp.ClientSession = field(repr=False)
    deadline: float
    """Seconds for a completion; a server that takes longer counts as hung."""
    about: About | None = None
    lost: str | None = None
    """Why it is not used at present."""
    outstanding: int = 0
    """Tokens of the requests in flight, prompts and longest completions."""
    in_flight: Counter[str] = field(factory=Counter)
    """Requests by the name of the model or adapter."""
    completed: int = 0
    """Completions that it drew so far."""
    adapters: set[str] = field(factory=set)
    """Names of the adapters that it was given by this engine."""

    async def ask(self) -> About:
        """Return what it says of itself.

        Raises `LostError` where it does not answer, and `EngineError` where it does not say.
        """
        models = await self._call("GET", "/v1/models")
        try:
            info = await self._call("GET", "/server_info?config_format=json")
        except EngineError as error:
            raise EngineError(
                f"{self.url} does not say how it computes: start it with VLLM_SERVER_DEV_MODE=1, "
                "as `isentrope vllm serve` does."
            ) from error
        try:
            listed = models["data"]
            base = next(one for one in listed if one.get("parent") is None)
            config = info["vllm_config"]
            lora = config.get("lora_config") or {}
            return About(
                model=base["id"],
                root=base["root"],
                context=int(base["max_model_len"]),
                dtype=str(config["model_config"]["dtype"]).removeprefix("torch."),
                logprobs_mode=config["model_config"]["logprobs_mode"],
                max_loras=int(lora.get("max_loras", 0)),
                max_lora_rank=int(lora.get("max_lora_rank", 0)),
                adapters=tuple(one["id"] for one in listed if one is not base),
            )
        except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
            raise EngineError(f"{self.url} is no vLLM server that Isentrope knows.") from error

    async def tokenize(self, text: str) -> list[int]:
        """Return a text's token ids, by the server's tokenizer."""
        assert self.about is not None
        body = {"model": self.about.model, "prompt": text, "add_special_tokens": False}
        answer = await self._call("POST", "/tokenize", body)
        return list(answer["tokens"])

    async def load(self, name: str, path: str) -> None:
        """Have it load an adapter."""
        await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        self.adapters.add(name)

    async def unload(self, name: str) -> None:
        """Have it forget an adapter, which nothing in flight may use."""
        self.adapters.discard(name)
        await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def post(self, path: str) -> None:
        """Have it do something that needs no words, such as ``/sleep``."""
        await self._call("POST", path, seconds=self.deadline)

    async def healthy(self) -> bool:
        """Say whether it answers that all is well."""
        try:
            await self._call("GET", "/health", seconds=5.0)
        except (LostError, EngineError):
            return False
        return True

    async def complete(self, name: str, prompt: Sequence[int], sampling: Sampling) -> Drawn:
        """Draw one completion by a model or adapter; cancelled, it ends there, too.

        Every parameter that changes what is sampled is said: what is left out, vLLM may take from
        the model's generation config. No seed: on CPUs it ends the server (docs/vllm.md).

        Raises `LostError` where the server fails, and `EngineError` where it refuses.
        """
        body = {
            "model": name,
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            "min_tokens": 0,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "n": 1,
            "stop_token_ids": list(sampling.stop_ids),
            "ignore_eos": True,  # what stops it is in stop_token_ids
            "logprobs": 0,  # of the sampled tokens only
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "stream": False,
        }
        size = len(prompt) + sampling.max_tokens
        self.outstanding += size
        self.in_flight[name] += 1
        try:
            answer = await self._call("POST", "/v1/completions", body, seconds=self.deadline)
        finally:
            self.outstanding -= size
            self.in_flight[name] -= 1
        return self._drawn(answer, name, len(prompt), sampling)

    def _drawn(self, answer: Any, name: str, prompt: int, sampling: Sampling) -> Drawn:
        """Take a completion apart, and check that it is what was asked for."""
        try:
            (choice,) = answer["choices"]
            texts = choice["logprobs"]["tokens"]
            ids = tuple(int(text.removeprefix(TOKEN)) for text in texts)
            logp = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
            reason, served = choice["finish_reason"], answer["model"]
            read = int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise LostError(f"its answer is no completion: {type(error).__name__}") from error
        if served != name:
            raise LostError(f"it was asked for {name} and answered by {served}")
        if read != prompt:
            raise EngineError(f"{self.url} read {read} tokens of a prompt of {prompt}.")
        if reason not in ("stop", "length") or not ids or len(ids) != len(logp):
            raise LostError(f"a completion of {len(ids)} tokens ended with {reason!r}")
        if reason == "length" and len(ids) < sampling.max_tokens:
            raise EngineError(
                f"{self.url} cut a completion after {len(ids)} of {sampling.max_tokens} tokens, "
                f"which with {prompt} of the prompt do not fit its context."
            )
        if not all(math.isfinite(value) for value in logp):
            raise EngineError(f"{self.url} gave a sampled token a log-prob that is not finite.")
        self.completed += 1
        return Drawn(ids, logp, reason)

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        seconds: float = QUICK,
    ) -> Any:
        """Return an answer's JSON, or its text where it has none.

        Raises `EngineError` where it refuses (4xx), and `LostError` for everything else.
        """
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self.session.request(
                method, self.url + path, json=body, timeout=limit
            ) as response:
                text = await response.text(errors="replace")
                status = response.status
        except TimeoutError as error:
            raise HungError(f"no answer to {path} within {seconds:g} s") from error
        except aiohttp.ClientConnectorError as error:  # whose own words are of its sockets
            raise LostError(error.os_error.strerror or str(error.os_error)) from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise LostError(f"{type(error).__name__}: {error}") from error
        if status >= 500 or status == 429:
            raise LostError(f"status {status} at {path}: {_message(text)}")
        if status >= 400:
            raise EngineError(f"{self.url}{path} refused with {status}: {_message(text)}")
        try:
            return json.loads(text)
        except ValueError:
            return text


def _message(text: str) -> str:
    """Return what an answer says in words, on one line."""
    try:
        said = json.loads(text)
        found = said.get("error", said)
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300]
