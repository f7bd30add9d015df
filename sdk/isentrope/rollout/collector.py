"""Running episodes: environments and an engine, side by side in one event loop."""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from attrs import define, field, frozen

from isentrope.config import EarlyStop, RolloutConfig
from isentrope.engines import Completion, Engine, Sampling, WeightsRef
from isentrope.episodes import Episode, Message, Segment, Status, StopReason
from isentrope.errors import EngineError, GraderError, IsentropeError
from isentrope.models import LanguageModel
from isentrope.rollout.chat import ChatTemplate
from isentrope.rollout.conversation import Conversation, Said
from isentrope.rollout.hosting import Host, Hosted, host_of
from isentrope.rollout.ledger import TokenLedger
from isentrope.rollout.turnstile import Turnstile
from isentrope.seeding import derive
from isentrope.specs import EnvRef
from isentrope.workers.worker import WorkerError

OF_ENVIRONMENTS = frozenset(Status) - {Status.OK, Status.ENGINE_ERROR, Status.CANCELLED}
"""Failures that another attempt, on a fresh environment, may not meet."""


LATE = "rollout.max_seconds passed while an environment was at work: its own, or another's."


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
class Collector(ABC):
    """Runs episodes to their end, whatever an environment does: a failure becomes a `Status`.

    One collection runs at a time; another that is asked for waits.
    """

    host: Host
    config: RolloutConfig
    seconds: float = field(default=0.0, init=False)
    """Spent collecting so far."""
    environment_seconds: float = field(default=0.0, init=False)
    """Spent in environments so far, all of them added up: resets, steps, rewards."""
    retried: int = field(default=0, init=False)
    """Episodes so far that were begun again, on a fresh environment, after a failure."""
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False)

    @property
    def at_a_time(self) -> int | None:
        """How many episodes may run at a time; None: any number."""
        return self.host.at_a_time

    @property
    def together(self) -> bool:
        """Whether turns are sampled together (see `Engine`)."""
        return False

    @abstractmethod
    def converse(self, request: Request, opening: Sequence[Message]) -> Conversation:
        """Tell the policy how an episode begins."""

    async def collect(
        self,
        requests: Sequence[Request],
        early_stop: EarlyStop | None = None,
        on_episode: Callable[[Episode], object] | None = None,
    ) -> list[Episode]:
        """Run all of them side by side; episodes come back in the order of the requests.

        early_stop: when enough of them are done, the others come back as ``cancelled``.
        on_episode: called with each as it ends.
        """
        async with self._turn:
            start = time.perf_counter()
            try:
                return await self._collect(requests, early_stop, on_episode)
            finally:
                self.seconds += time.perf_counter() - start

    async def _collect(
        self,
        requests: Sequence[Request],
        early_stop: EarlyStop | None,
        on_episode: Callable[[Episode], object] | None,
    ) -> list[Episode]:
        async def run(place: int, request: Request) -> Episode:
            episode = await self._run(place, request, turnstile, enough)
            if on_episode is not None:
                on_episode(episode)
            return episode

        turnstile = Turnstile(self.at_a_time, self.together)
        enough = asyncio.Event()
        running = [
            asyncio.create_task(run(place, request)) for place, request in enumerate(requests)
        ]
        try:
            if early_stop is not None:
                await _until_enough(requests, running, early_stop)
                enough.set()
                for task in running:
                    task.cancel()
            return list(await asyncio.gather(*running))
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    def counts(self) -> dict[str, float]:
        """Return what there is to count since the run began, by the metrics' names."""
        return {
            "performance/collect_seconds": self.seconds,
            "performance/environment_seconds": self.environment_seconds,
            "episodes_retried": self.retried,
            **{f"workers/{name}": count for name, count in self.host.counts().items()},
        }

    async def close(self) -> None:
        """Close every environment."""
        await self.host.close()

    async def _run(
        self, place: int, request: Request, turnstile: Turnstile, enough: asyncio.Event
    ) -> Episode:
        """Run one episode, and on a fresh environment again where that may go better."""
        try:
            async with turnstile.episode():
                for attempt in range(self.config.retries + 1):
                    self.retried += attempt > 0
                    episode = await self._attempt(place, request, turnstile)
                    if episode.status not in OF_ENVIRONMENTS:
                        break
                return episode
        except asyncio.CancelledError:
            if not enough.is_set():
                raise
            record = _Record(request)
            record.fail(Status.CANCELLED, "Enough other episodes were done.")
            return record.episode(0.0)

    async def _attempt(self, place: int, request: Request, turnstile: Turnstile) -> Episode:
        record, env, lowest = _Record(request), None, 0.0
        limit = asyncio.timeout(self.config.max_seconds)
        try:
            with self._in_environment():
                env = await self.host.borrow()
            lowest = env.lowest
            async with limit:
                await self._play(place, env, record, turnstile)
        except EngineError as error:
            record.fail(Status.ENGINE_ERROR, str(error))
        except WorkerError as error:
            record.fail(error.status, str(error))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            if isinstance(error, IsentropeError) and record.sampling:
                raise  # of the policy, and so of every episode
            if limit.expired() and record.sampling:
                record.stop(StopReason.MAX_SECONDS)
            elif limit.expired():
                record.fail(Status.TIMEOUT, LATE)
            else:  # a stranger's code: whatever it raises is data
                record.fail(_status_of(error), traceback.format_exc(limit=-8))
        finally:
            if env is not None:
                await self.host.give_back(env, clean=record.status is Status.OK)
        return record.episode(lowest)

    @contextmanager
    def _in_environment(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.environment_seconds += time.perf_counter() - start

    async def _play(self, place: int, env: Hosted, record: _Record, turnstile: Turnstile) -> None:
        request = record.request
        with self._in_environment():
            observation, info = await env.reset(request.task, request.seed)
        opening = _messages(observation, info)
        record.messages += opening
        conversation = record.conversation = self.converse(request, opening)
        for _ in range(self.config.max_turns):
            if conversation.full:
                record.stop(StopReason.CONTEXT)
                return
            async with turnstile.turn(place):
                record.sampling = True
                said = await conversation.speak()
                record.sampling = False
            action = record.say(said)
            if said.cut is not None:
                record.stop(said.cut)
                return
            with self._in_environment():
                observation, reward, terminated, truncated, info = await env.step(action)
            record.rewards.append(reward)
            if terminated or truncated:
                record.finish(info, terminated=terminated)
                return
            answer = _messages(observation, info)
            record.messages += answer
            conversation.hear(answer)
        record.stop(StopReason.MAX_TURNS)


@define
class RolloutCollector(Collector):
    """The collector of a policy that an engine samples from: token by token."""

    engine: Engine
    template: ChatTemplate
    sampling: Sampling
    context: int
    """Tokens that fit into one episode."""
    staleness: int = 0
    """How many versions older than the newest a completion may be."""
    version: int = 0
    """Of the policy that was published last."""

    @classmethod
    def of(
        cls, env: EnvRef, engine: Engine, model: LanguageModel, config: RolloutConfig
    ) -> RolloutCollector:
        """Return a collector for a model and an engine that samples from it."""
        return cls(
            host=host_of(env, config.workers),
            engine=engine,
            template=ChatTemplate(model.tokenizer, model.stop_ids),
            config=config,
            sampling=config.sampling(model.stop_ids),
            context=config.context_within(model.context),
            staleness=config.staleness,
        )

    async def publish(self, weights: WeightsRef) -> None:
        """Have the engine sample from these weights, and accept nothing that is too old."""
        self.version = weights.version  # before: the engine may sample from them at any moment
        await self.engine.publish(weights)

    async def sample_on_each(
        self, prompt: Sequence[int], sampling: Sampling
    ) -> Sequence[Completion]:
        """Have each of the engine's servers complete a prompt."""
        each = getattr(self.engine, "generate_on_each", None)
        if each is None:
            return [await self.engine.generate(prompt, sampling)]
        return await each(prompt, sampling)  # type: ignore[no-any-return]  # so it says

    async def rest(self) -> None:
        """Let the engine give up an accelerator that it shares with the learner."""
        if (rest := getattr(self.engine, "rest", None)) is not None:
            await rest()

    async def wake(self) -> None:
        """Let it take that back."""
        if (wake := getattr(self.engine, "wake", None)) is not None:
            await wake()

    @property
    def together(self) -> bool:
        """Whether the engine samples together what is pending."""
        return getattr(self.engine, "samples_together", False)

    def converse(self, request: Request, opening: Sequence[Message]) -> TokenConversation:
        """Have the chat template write the opening."""
        ledger = TokenLedger(self.template, opening, self.config.history)
        return TokenConversation(self, request, ledger)

    def counts(self) -> dict[str, float]:
        """Return what the engine counts too."""
        counts = getattr(self.engine, "counts", dict)
        return {**super().counts(), **{f"engine/{name}": n for name, n in counts().items()}}

    async def close(self) -> None:
        """Close every environment, and the engine."""
        try:
            await super().close()
        finally:
            await self.engine.close()

    def check(self, completion: Completion) -> None:
        """Raise `EngineError` for what cannot have come of the policy."""
        if not completion.ids:
            raise EngineError("The engine returned an empty completion: no token, no stop.")
        if len(completion.logp) != len(completion.ids):
            raise EngineError(
                f"The engine returned {len(completion.logp)} log-probs for {len(completion.ids)} "
                "tokens."
            )
        if not self.version - self.staleness <= completion.version <= self.version:
            older = f", and rollout.staleness is {self.staleness}" if self.staleness else ""
            raise EngineError(
                f"The engine sampled with version {completion.version} of the policy, but "
                f"{self.version} was published{older}."
            )


@define
class TokenConversation:
    """A conversation in tokens: exactly those that were sampled, and the chat template's."""

    collector: RolloutCollector
    request: Request
    ledger: TokenLedger
    usage: None = field(default=None, init=False)
    _turns: int = field(default=0, init=False)

    @property
    def full(self) -> bool:
        """Whether there is no room for a token more."""
        return self._room < 1

    @property
    def _room(self) -> int:
        return self.collector.context - len(self.ledger.ids)

    async def speak(self) -> Said:
        """Sample a turn."""
        room, most = self._room, self.collector.sampling.max_tokens
        sampling = attrs.evolve(
            self.collector.sampling,
            max_tokens=min(most, room),
            seed=derive(self.request.sampling_seed, self._turns),
        )
        self._turns += 1
        completion = await self.collector.engine.generate(
            self.ledger.ids, sampling, conversation=self.request.sampling_seed
        )
        self.collector.check(completion)
        text = self.ledger.policy_said(completion)
        if completion.finish_reason != "length":
            return Said(text)
        return Said(text, StopReason.CONTEXT if room <= most else StopReason.MAX_TOKENS)

    def hear(self, messages: Sequence[Message]) -> None:
        """Append what the chat template makes of them."""
        self.ledger.environment_said(messages)

    def segments(self) -> tuple[Segment, ...]:
        """Return the ledger's."""
        return self.ledger.segments()


async def _until_enough(
    requests: Sequence[Request], running: Sequence[asyncio.Task[Episode]], stop: EarlyStop
) -> None:
    """Wait until so many episodes are done, and not failed, that the others may be given up."""
    sizes = Counter((request.task, request.seed) for request in requests)
    pending = set(running)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        done = [task.result() for task in running if task.done()]
        good = Counter((e.task, e.seed) for e in done if e.status is Status.OK)
        of_groups = all(good[group] >= stop.of_group * size for group, size in sizes.items())
        if of_groups and good.total() >= stop.of_all * len(requests):
            return


def _is_cancelled() -> bool:
    """Whether somebody asked for this task's end, so that it is no stranger who says so."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _status_of(error: BaseException) -> Status:
    if isinstance(error, GraderError):
        return Status.GRADER_ERROR
    return Status.OUT_OF_MEMORY if isinstance(error, MemoryError) else Status.ENV_ERROR


def _messages(observation: str, info: Mapping[str, Any]) -> list[Message]:
    return list(info.get("messages") or [{"role": "user", "content": observation}])


@define
class _Record:
    """An episode in the making."""

    request: Request
    sampling: bool = False
    """Whether it is the policy that is at work, and not an environment."""
    conversation: Conversation | None = None
    messages: list[Message] = field(factory=list)
    rewards: list[float] = field(factory=list)
    success: bool = False
    judged: bool = True
    status: Status = Status.OK
    stop_reason: StopReason = StopReason.FAILED
    error: str | None = None
    metrics: dict[str, float] = field(factory=dict)
    report: str = ""

    def say(self, said: Said) -> str:
        if said.text is not None:
            self.messages.append({"role": "assistant", "content": said.text})
        return said.text or ""

    def stop(self, reason: StopReason) -> None:
        self.stop_reason = reason

    def finish(self, info: Mapping[str, Any], *, terminated: bool) -> None:
        reason = StopReason.TERMINATED if terminated else info.get("stop_reason")
        self.stop_reason = StopReason(reason or StopReason.TRUNCATED)
        self.success = bool(info.get("success", False))
        self.judged = "success" in info or not terminated
        self.metrics = {k: float(v) for k, v in info.get("metrics", {}).items()}
        self.report = info.get("report", "")

    def fail(self, status: Status, error: str) -> None:
        self.status, self.error, self.stop_reason = status, error, StopReason.FAILED
        self.success = False

    def episode(self, lowest: float) -> Episode:
        cut = self.stop_reason in (
            StopReason.CONTEXT,
            StopReason.MAX_TOKENS,
            StopReason.MAX_TURNS,
            StopReason.MAX_SECONDS,
        )
        fall = sum(self.rewards) - lowest
        return Episode(
            task=self.request.task,
            seed=self.request.seed,
            rollout=self.request.rollout,
            segments=self.conversation.segments() if self.conversation else (),
            usage=self.conversation.usage if self.conversation else None,
            messages=tuple(self.messages),
            rewards=tuple(self.rewards),
            penalty=-fall if cut and 0 < fall < math.inf else 0.0,
            success=self.success,
            judged=self.judged,
            stop_reason=self.stop_reason,
            status=self.status,
            error=self.error,
            metrics=self.metrics,
            report=self.report,
        )
