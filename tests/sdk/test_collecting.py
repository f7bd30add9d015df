"""Many episodes at a time: who waits for whom, what is retried, given up, cut off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from attrs import define, field

import isentrope
from isentrope import (
    Completion,
    EarlyStop,
    Episode,
    RolloutConfig,
    Sampling,
    Status,
    StopReason,
    WeightsRef,
    WorkerConfig,
)
from isentrope.episodes import Segment
from isentrope.learner.experience import experience
from isentrope.learner.head import TokenScores
from isentrope.rollout.collector import Request, RolloutCollector
from isentrope.rollout.hosting import WorkerHost
from isentrope.rollout.turnstile import Turnstile
from isentrope.workers.pool import WorkerPool
from isentrope_objectives.advantages import GroupNormalized
from tests.sdk.test_resume import lasting
from tests.sdk.test_rollout import END, TEMPLATE, spoken
from tests.sdk.test_workers import ROGUE, gone, of_this_process

# ---------------------------------------------------------------- who waits for whom


@define
class Waves:
    """An engine that samples together what is pending, and remembers who that was."""

    waves: list[tuple[int, ...]] = field(factory=list)
    _pending: list[tuple[int, asyncio.Future[None]]] = field(factory=list)
    _serving: asyncio.Task[None] | None = None

    async def generate(self, place: int) -> None:
        done = asyncio.get_running_loop().create_future()
        self._pending.append((place, done))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        await done

    async def _serve(self) -> None:
        while self._pending:
            await asyncio.sleep(0)
            wave, self._pending = self._pending, []
            self.waves.append(tuple(place for place, _ in wave))
            await asyncio.sleep(0.001)
            for _, done in wave:
                done.set_result(None)
            await asyncio.sleep(0)


def waves(limit: int | None, turns: Sequence[int], clock: int) -> list[tuple[int, ...]]:
    """Run episodes of so many turns, whose environments take as long as a seed says."""
    rng, engine = random.Random(clock), Waves()
    turnstile = Turnstile(limit, together=True)

    async def episode(place: int) -> None:
        async with turnstile.episode():
            for _ in range(turns[place]):
                await asyncio.sleep(rng.random() * 0.003)
                async with turnstile.turn(place):
                    await engine.generate(place)
            await asyncio.sleep(rng.random() * 0.003)

    async def whole() -> None:
        await asyncio.gather(*map(episode, range(len(turns))))

    asyncio.run(whole())
    return engine.waves


@pytest.mark.parametrize("limit", [1, 2, 3, 5, None])
def test_what_is_sampled_together_depends_on_no_clock(limit: int | None) -> None:
    turns = [3, 1, 2, 4, 1, 0, 2]
    first, *others = (waves(limit, turns, clock) for clock in range(6))
    assert all(first == other for other in others)
    assert sum(turns) == sum(map(len, first))
    assert max(map(len, first)) == min(limit or 6, 6)
    assert all(list(wave) == sorted(wave) for wave in first)


def test_without_limit_a_wave_is_all_that_are_left() -> None:
    assert [(0, 1, 2), (0, 2), (2,)] == waves(None, [2, 1, 3], clock=0)


def test_who_is_cancelled_while_waiting_holds_up_nobody() -> None:
    turnstile = Turnstile(2, together=True)
    spoke: list[int] = []

    async def episode(place: int, seconds: float) -> None:
        async with turnstile.episode():
            await asyncio.sleep(seconds)
            async with turnstile.turn(place):
                spoke.append(place)

    async def whole() -> None:
        tasks = [asyncio.create_task(episode(i, s)) for i, s in enumerate((0.0, 9.0, 0.0, 0.0))]
        await asyncio.sleep(0.02)  # 0 waits for its turn, 2 and 3 for room
        for i in (0, 2, 1):
            tasks[i].cancel()
        async with asyncio.timeout(5):
            await tasks[3]

    asyncio.run(whole())
    assert [3] == spoke


# ---------------------------------------------------------------- what is retried, and given up


@define
class Told:
    """An engine that says what is written for a rollout, turn by turn."""

    script: Callable[[int, int], str]
    """Of rollout and turn."""
    slow: int | None = None
    """A rollout whose second turn takes an hour."""
    asked: int = 0

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, conversation: object = None
    ) -> Completion:
        del prompt
        self.asked += 1
        if (self.slow, 1) == divmod(sampling.seed % 100, 10):
            await asyncio.sleep(3600)
        return spoken(self.script(*divmod(sampling.seed % 100, 10)))

    async def publish(self, weights: WeightsRef) -> None: ...

    async def close(self) -> None: ...


def collect(
    script: Callable[[int, int], str],
    *,
    rollouts: int = 4,
    stop: EarlyStop | None = None,
    workers: dict[str, Any] | None = None,
    slow: int | None = None,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> tuple[list[Episode], dict[str, float]]:
    """Run rollouts of two tasks on rogues in workers."""
    monkeypatch.setattr("isentrope.rollout.collector.derive", lambda seed, turn: 10 * seed + turn)
    limits = WorkerConfig(**{"deadline": 2.0, **(workers or {})})
    config = RolloutConfig(**{"max_tokens": 200, "workers": limits, "retries": 0, **options})
    collector = RolloutCollector(
        WorkerHost(WorkerPool("rogue", ROGUE, {}, limits)),
        config,
        Told(script, slow),
        TEMPLATE,
        config.sampling((END,)),
        context=10_000,
        version=3,
    )
    requests = [Request(task, 7, r, r) for task in "ab" for r in range(rollouts)]
    before = of_this_process()

    async def whole() -> list[Episode]:
        try:
            return await collector.collect(requests, stop)
        finally:
            await collector.close()

    episodes = asyncio.run(whole())
    assert all(map(gone, of_this_process() - before))
    return episodes, collector.counts()


def test_every_failure_is_an_episode_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = ["say fine", "oops no", "leave 3", "hang", "nan", "grade", "memory 9", "wait"]
    episodes, counts = collect(
        lambda rollout, turn: acts[rollout] if turn == 0 else "say at last",
        rollouts=8,
        workers={"count": 3},
        monkeypatch=monkeypatch,
    )
    for of_task in (episodes[:8], episodes[8:]):
        assert [e.status for e in of_task] == [
            Status.OK, Status.ENV_ERROR, Status.CRASHED, Status.TIMEOUT, Status.ENV_ERROR,
            Status.GRADER_ERROR, Status.OUT_OF_MEMORY, Status.OK,
        ]  # fmt: skip
        assert (1.0, True, 1) == (of_task[0].reward, of_task[0].success, of_task[0].turns)
        assert 2 == of_task[7].turns
        for failed in of_task[1:7]:
            assert failed.error
            assert StopReason.FAILED is failed.stop_reason
            assert not failed.success
            assert not failed.truncated
    assert 12 == counts["workers/killed"]
    assert 0 == counts["workers/leaked"] == counts["episodes_retried"]


def test_what_failed_is_tried_again_on_a_fresh_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    mark = tmp_path / "was-here"
    once = f"run mkdir {mark} 2>/dev/null && kill -9 $PPID"  # the second time it is there
    episodes, counts = collect(
        lambda rollout, _: once if rollout == 1 else "say fine",
        rollouts=2,
        workers={"count": 1},
        retries=1,
        monkeypatch=monkeypatch,
    )
    assert [Status.OK] * 4 == [e.status for e in episodes]
    assert 1 == counts["episodes_retried"]


def test_an_engines_failure_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(rollout: int, turn: int) -> str:
        raise isentrope.EngineError("out of order")

    episodes, counts = collect(nothing, rollouts=1, retries=3, monkeypatch=monkeypatch)
    assert [Status.ENGINE_ERROR] * 2 == [e.status for e in episodes]
    assert 0 == counts["episodes_retried"]


def test_stragglers_are_given_up_once_enough_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    episodes, counts = collect(
        lambda rollout, _: "hang" if rollout == 5 else "say fine",
        rollouts=6,
        stop=EarlyStop(of_group=4 / 6, of_all=10 / 12),
        workers={"deadline": 60.0, "count": 12},
        monkeypatch=monkeypatch,
    )
    expected = [*[Status.OK] * 5, Status.CANCELLED] * 2
    assert expected == [e.status for e in episodes]
    assert 2 == counts["workers/killed"]
    assert all(e.sampled_tokens == 0 and e.reward == 0 for e in episodes[5::6])


def test_a_group_that_is_too_small_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 of 10 are done early, but of one group too few."""
    episodes, _ = collect(
        lambda rollout, turn: "say fine",
        rollouts=5,
        stop=EarlyStop(of_group=1.0, of_all=0.1),
        monkeypatch=monkeypatch,
    )
    assert [Status.OK] * 10 == [e.status for e in episodes]


def test_an_episode_that_takes_too_long_is_cut_off_and_has_failed_its_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    episodes, counts = collect(
        lambda rollout, turn: ("wait", "hang")[turn] if rollout == 1 else "wait",
        rollouts=3,
        workers={"deadline": 60.0},
        max_seconds=2.0,
        slow=2,
        max_turns=1_000_000,
        monkeypatch=monkeypatch,
    )
    for of_task in (episodes[:3], episodes[3:]):
        _, hung, late = of_task
        assert Status.TIMEOUT is hung.status, "that is its environment's doing"
        assert (Status.OK, StopReason.MAX_SECONDS) == (late.status, late.stop_reason)
        assert late.truncated
        assert (1.0, 0.0) == (sum(late.rewards), late.reward)
        assert late.sampled_tokens > 0
    assert counts["workers/killed"] >= 2


def test_groups_smaller_than_asked_for_are_dropped_and_counted() -> None:
    nothing = [0.0, 0.0]
    segment = Segment([1, 2], [False, True], nothing, [0, 0], [0, 0])
    episodes = [
        Episode(task, 0, r, (segment,), (), (float(r),), False, StopReason.TERMINATED)
        for task, size in (("a", 4), ("b", 3), ("c", 2))
        for r in range(size)
    ]
    scores = [TokenScores(torch.zeros(1), None, None) for _ in episodes]
    found = experience(episodes, scores, GroupNormalized(), min_group=3)
    assert (1, 7) == (found.groups_short, len(found.trajectories))


# ---------------------------------------------------------------- a run


def test_a_run_in_workers_is_the_run_without_to_the_bit(
    tiny_run: dict[str, Any], tmp_path: Path
) -> None:
    runs = []
    for isolation in ("none", "process"):
        workers = {"isolation": isolation, "count": 64}
        options = {**tiny_run, "env": "guess", "iterations": 2, "out": tmp_path / isolation}
        options["rollout"] = {**tiny_run["rollout"], "max_turns": 3, "workers": workers}
        runs.append(isentrope.train(**options))
    here, there = runs
    assert here.episodes == there.episodes
    assert lasting(here) == lasting(there)
    assert 0 == there.metrics[-1]["workers/leaked"] == there.metrics[-1]["workers/killed"]


def test_a_completion_of_a_version_that_is_being_published_is_taken() -> None:
    """One that collects ahead may draw it before the publication has ended."""

    class Eager(Told):
        async def publish(self, weights: WeightsRef) -> None:
            collector.check(attrs.evolve(spoken("a"), version=weights.version))
            collector.check(attrs.evolve(spoken("a"), version=weights.version - 1))

    config = RolloutConfig(staleness=1)
    collector = RolloutCollector(
        None,
        config,
        Eager(lambda *_: "a"),
        TEMPLATE,
        config.sampling((END,)),
        10,
        staleness=1,  # type: ignore[arg-type]
    )
    asyncio.run(collector.publish(WeightsRef(5)))
    for version in (3, 6):
        with pytest.raises(isentrope.EngineError, match=r"rollout\.staleness is 1"):
            collector.check(attrs.evolve(spoken("a"), version=version))
