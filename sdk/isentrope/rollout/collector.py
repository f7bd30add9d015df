"""Running episodes: environments and an engine, side by side in one event loop."""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import attrs
from attrs import define, field, frozen

from isentrope.components import make
from isentrope.config import RolloutConfig
from isentrope.engines import Completion, Engine, Sampling, WeightsRef
from isentrope.environments import TextEnv
from isentrope.episodes import Episode, Message, Status, StopReason
from isentrope.errors import EngineError
from isentrope.models import LanguageModel
from isentrope.rollout.chat import ChatTemplate
from isentrope.rollout.ledger import TokenLedger
from isentrope.seeding import derive
from isentrope.specs import EnvRef


@frozen
class Request:
    """One episode to run."""

    task: str
    seed: int
    """The environment's seed: the same for a whole group."""
    rollout: int
    """Index in the group."""
    sampling_seed: int
    """What this rollout's turns are sampled with."""


@define
class RolloutCollector:
    """Runs episodes to their end, whatever an environment does: a failure becomes a `Status`.

    Environments run in this process, are reused after a clean episode and thrown away after a
    failure. `close` closes them all, and the engine.
    """

    env: EnvRef
    engine: Engine
    template: ChatTemplate
    config: RolloutConfig
    sampling: Sampling
    context: int
    """Tokens that fit into one episode."""
    version: int = 0
    """Of the policy that every completion must come from."""
    environment_seconds: float = field(default=0.0, init=False)
    """Spent in environments so far: resets, steps, rewards."""
    _idle: list[TextEnv] = field(factory=list, init=False)

    @classmethod
    def of(
        cls, env: EnvRef, engine: Engine, model: LanguageModel, config: RolloutConfig
    ) -> RolloutCollector:
        """Return a collector for a model and an engine that samples from it."""
        return cls(
            env=env,
            engine=engine,
            template=ChatTemplate(model.tokenizer, model.stop_ids),
            config=config,
            sampling=config.sampling(model.stop_ids),
            context=config.context_within(model.context),
        )

    async def publish(self, weights: WeightsRef) -> None:
        """Have the engine sample from these weights, and accept nothing else."""
        await self.engine.publish(weights)
        self.version = weights.version

    async def collect(self, requests: Sequence[Request]) -> list[Episode]:
        """Run all of them side by side; episodes come back in the order of the requests."""
        return list(await asyncio.gather(*(self._run(request) for request in requests)))

    async def close(self) -> None:
        """Close every environment, and the engine."""
        while self._idle:
            with suppress(Exception):  # the run is over, and so is what they could spoil
                self._idle.pop().close()
        await self.engine.close()

    async def _run(self, request: Request) -> Episode:
        record = _Record(request)
        lowest = 0.0
        env = None
        try:
            env = self._idle.pop() if self._idle else make(self.env.id, **self.env.config)
            lowest = env.reward_range[0]
            await self._play(env, record)
        except EngineError as error:
            record.fail(Status.ENGINE_ERROR, str(error))
        except (Exception, SystemExit):  # a stranger's code: whatever it raises is data
            record.fail(Status.ENV_ERROR, traceback.format_exc(limit=-8))
        if env is not None:
            self._release(env, clean=record.status is Status.OK)
        return record.episode(lowest)

    def _check(self, completion: Completion) -> None:
        if not completion.ids:
            raise EngineError("The engine returned an empty completion: no token, no stop.")
        if len(completion.logp) != len(completion.ids):
            raise EngineError(
                f"The engine returned {len(completion.logp)} log-probs for {len(completion.ids)} "
                "tokens."
            )
        if completion.version != self.version:
            raise EngineError(
                f"The engine sampled with version {completion.version} of the policy, but "
                f"{self.version} was published."
            )

    @contextmanager
    def _in_environment(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.environment_seconds += time.perf_counter() - start

    def _release(self, env: TextEnv, *, clean: bool) -> None:
        if clean:
            self._idle.append(env)
            return
        with suppress(Exception):  # it failed already, and its episode says how
            env.close()

    async def _play(self, env: TextEnv, record: _Record) -> None:
        request = record.request
        with self._in_environment():
            observation, info = env.reset(seed=request.seed, options={"task": request.task})
        ledger = record.open(self.template, _messages(observation, info))
        for turn in range(self.config.max_turns):
            room = self.context - len(ledger.ids)
            if room < 1:
                record.stop(StopReason.CONTEXT)
                return
            completion = await self.engine.generate(
                ledger.ids,
                attrs.evolve(
                    self.sampling,
                    max_tokens=min(self.sampling.max_tokens, room),
                    seed=derive(request.sampling_seed, turn),
                ),
            )
            self._check(completion)
            action = record.say(ledger.policy_said(completion))
            if completion.finish_reason == "length":
                short = room <= self.sampling.max_tokens
                record.stop(StopReason.CONTEXT if short else StopReason.MAX_TOKENS)
                return
            with self._in_environment():
                observation, reward, terminated, truncated, info = env.step(action)
            record.rewards.append(float(reward))
            if terminated or truncated:
                record.finish(info, terminated=terminated)
                return
            answer = _messages(observation, info)
            record.messages += answer
            ledger.environment_said(answer)
        record.stop(StopReason.MAX_TURNS)


def _messages(observation: str, info: Mapping[str, Any]) -> list[Message]:
    return list(info.get("messages") or [{"role": "user", "content": observation}])


@define
class _Record:
    """An episode in the making."""

    request: Request
    ledger: TokenLedger | None = None
    messages: list[Message] = field(factory=list)
    rewards: list[float] = field(factory=list)
    success: bool = False
    status: Status = Status.OK
    stop_reason: StopReason = StopReason.FAILED
    error: str | None = None
    metrics: dict[str, float] = field(factory=dict)

    def open(self, template: ChatTemplate, messages: list[Message]) -> TokenLedger:
        self.messages += messages
        self.ledger = TokenLedger(template, messages)
        return self.ledger

    def say(self, text: str) -> str:
        self.messages.append({"role": "assistant", "content": text})
        return text

    def stop(self, reason: StopReason) -> None:
        self.stop_reason = reason

    def finish(self, info: Mapping[str, Any], *, terminated: bool) -> None:
        reason = StopReason.TERMINATED if terminated else info.get("stop_reason")
        self.stop_reason = StopReason(reason or StopReason.TRUNCATED)
        self.success = bool(info.get("success", False))
        self.metrics = {k: float(v) for k, v in info.get("metrics", {}).items()}

    def fail(self, status: Status, error: str) -> None:
        self.status, self.error, self.stop_reason = status, error, StopReason.FAILED
        self.success = False

    def episode(self, lowest: float) -> Episode:
        cut = self.stop_reason in (
            StopReason.CONTEXT,
            StopReason.MAX_TOKENS,
            StopReason.MAX_TURNS,
        )
        fall = sum(self.rewards) - lowest
        return Episode(
            task=self.request.task,
            seed=self.request.seed,
            rollout=self.request.rollout,
            segments=self.ledger.segments() if self.ledger else (),
            messages=tuple(self.messages),
            rewards=tuple(self.rewards),
            penalty=-fall if cut and 0 < fall < math.inf else 0.0,
            success=self.success,
            stop_reason=self.stop_reason,
            status=self.status,
            error=self.error,
            metrics=self.metrics,
        )
