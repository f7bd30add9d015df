"""Workers on a Ray cluster, a real one of this machine alone: what holds here holds there."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import isentrope
from isentrope import ConfigError
from isentrope.episodes import Status
from isentrope.workers.cluster import RayPool
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.worker import WorkerError
from tests.sdk.test_workers import ROGUE, ROOT, gone, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def pool_of(config: dict[str, Any] | None = None, **limits: Any) -> RayPool:
    wanted = WorkerConfig(**{"ray": "auto", "deadline": 20.0, **limits})
    return RayPool("rogue", ROGUE, config or {}, wanted)


async def begin(pool: RayPool) -> Any:
    worker = await pool.borrow()
    await pool.ask(worker, "reset", task="a", seed=3)
    return worker


async def process_of(pool: RayPool, worker: Any) -> int:
    return int((await pool.ask(worker, "step", action="pid"))[0])


def does(action: str, pool: RayPool | None = None) -> Any:
    pool = pool or pool_of()

    async def once() -> Any:
        try:
            worker = await begin(pool)
            try:
                return await pool.ask(worker, "step", action=action)
            finally:
                await pool.give_back(worker, clean=False)
        finally:
            await pool.close()

    return asyncio.run(once())


def test_an_answer_comes_back_as_it_was() -> None:
    answer = does("say \ud800\x00🜂")
    assert ("\ud800\x00🜂", 1.0, True, False, {"success": True, "metrics": {"n": 2.0}}) == answer


def test_an_episode_is_the_one_of_a_worker_here() -> None:
    from isentrope.workers.pool import WorkerPool

    async def first(pool: Any) -> Any:
        worker = await pool.borrow()
        found = await pool.ask(worker, "reset", task="a", seed=9)
        await pool.give_back(worker, clean=True)
        await pool.close()
        return found

    here = WorkerPool("rogue", ROGUE, {}, WorkerConfig())
    assert asyncio.run(first(here)) == asyncio.run(first(pool_of()))


@pytest.mark.parametrize(
    ("action", "status", "said"),
    [
        ("oops no luck", Status.ENV_ERROR, "ValueError: no luck"),
        ("grade", Status.GRADER_ERROR, "GraderError: the grader broke"),
        ("memory 8", Status.OUT_OF_MEMORY, "MemoryError"),
        ("leave 7", Status.CRASHED, "left with exit code 7.\nlast words"),
    ],
)
def test_a_failure_has_a_status_and_says_what_happened(
    action: str, status: Status, said: str
) -> None:
    with pytest.raises(WorkerError) as caught:
        does(action)
    assert status is caught.value.status
    assert said in str(caught.value)


def test_what_hangs_is_killed_at_its_deadline() -> None:
    pool = pool_of(deadline=1.0)
    with pytest.raises(WorkerError, match=r"No answer to step\(\) within 1 s; killed"):
        does("hang", pool)
    assert {"started": 1, "killed": 1, "leaked": 0} == pool.counts()


def test_what_cannot_be_made_says_why() -> None:
    with pytest.raises(WorkerError, match="RuntimeError: not today"):
        does("say x", pool_of({"refuse": "not today"}))


def test_a_clean_worker_serves_again() -> None:
    async def twice(pool: RayPool) -> list[int]:
        found = []
        for _ in range(2):
            worker = await begin(pool)
            found.append(await process_of(pool, worker))
            await pool.give_back(worker, clean=True)
        await pool.close()
        return found

    pool = pool_of()
    first, second = asyncio.run(twice(pool))
    assert first == second
    assert gone(first)
    assert {"started": 1, "killed": 0, "leaked": 0} == pool.counts()


@pytest.mark.parametrize("config", [{}, {"slow": 60.0}])
def test_a_cancelled_call_or_start_kills_the_worker(config: dict[str, Any]) -> None:
    async def cancelled(pool: RayPool, patience: float) -> int:
        async def hang() -> None:
            worker = await begin(pool)
            try:
                await pool.ask(worker, "step", action="hang")
            finally:
                await pool.give_back(worker, clean=False)

        call = asyncio.create_task(hang())
        await asyncio.sleep(patience)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await pool.close()
        return pool.counts()["killed"]

    # Once the worker is there, of which a busy machine may keep one waiting.
    assert any(1 == asyncio.run(cancelled(pool_of(config), seconds)) for seconds in (6, 15, 40))


def test_a_lost_machine_is_a_crash_and_is_replaced() -> None:
    async def lose(pool: RayPool) -> None:
        workers = [await begin(pool) for _ in range(2)]
        processes = [await process_of(pool, worker) for worker in workers]
        ray.kill(workers[0].machine._actor)
        for worker in workers:
            with pytest.raises(WorkerError, match="Its machine was lost") as caught:
                await pool.ask(worker, "step", action="say x")
            assert Status.CRASHED is caught.value.status
            await pool.give_back(worker, clean=False)
        assert all(map(gone, processes))
        again = await begin(pool)
        assert "x" == (await pool.ask(again, "step", action="say x"))[0]
        await pool.give_back(again, clean=True)
        await pool.close()
        assert {"started": 3, "killed": 2, "leaked": 0} == pool.counts()

    asyncio.run(lose(pool_of()))


ALONE = """
import asyncio
from tests.sdk.test_cluster import begin, pool_of, process_of

async def main():
    pool = pool_of(ray="local")
    worker = await begin(pool)
    print(await process_of(pool, worker), flush=True)
    await pool.ask(worker, "step", action="hang")

asyncio.run(main())
"""


def test_no_worker_outlives_a_killed_run() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert running(worker)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    assert gone(worker)


def test_a_run_on_ray_is_to_the_bit_the_run_here(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    def rewards(ray: str | None, name: str) -> list[Any]:
        workers = {"isolation": "process", "count": 4, "ray": ray}
        out = str(tmp_path / name)
        settings = {**tiny_run, "env": "guess", "iterations": 2, "out": out}
        settings["model"] = {**settings["model"], "warmup_env": {"id": "arithmetic"}}
        rollout = {**settings.get("rollout", {}), "workers": workers}
        run = isentrope.train(**{**settings, "rollout": rollout})
        assert 4 >= sum(row["workers/started"] for row in run.metrics) > 0
        return [(row["reward"], row["loss"]) for row in run.metrics]

    assert rewards(None, "here") == rewards("auto", "there")


def test_ray_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'isentrope\[ray\]'"):
        pool_of()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_cluster_that_is_not_there_is_an_error(address: str) -> None:
    code = f"from tests.sdk.test_cluster import pool_of; pool_of(ray={address!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (
        f"ConfigError: rollout.workers.ray: there is no Ray cluster at {address!r}" in done.stderr
    )


def test_an_environment_of_the_runs_own_process_is_not_sent_away(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"set rollout\.workers\.isolation = 'process'"):
        isentrope.train(**{**tiny_run, "rollout": {"workers": {"ray": "auto"}}})
