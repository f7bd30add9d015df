"""Environments in workers: whatever one does to its process, the run gets an answer and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import attrs
import pytest

import isentrope
from isentrope import ConfigError, EnvironmentContractError, UnknownNameError, plugins
from isentrope.episodes import Status
from isentrope.testing import check_env
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.pool import WorkerPool
from isentrope.workers.worker import Worker, WorkerError
from tests.conftest import SMALL_MODEL

ROOT = Path(__file__).parents[2]
ROGUE = "tests.sdk.rogue:Rogue"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")


def pool_of(config: dict[str, Any] | None = None, **limits: Any) -> WorkerPool:
    return WorkerPool("rogue", ROGUE, config or {}, WorkerConfig(**{"deadline": 20.0, **limits}))


def running(process: int) -> bool:
    try:
        return "Z" != Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(process: int) -> bool:
    deadline = time.monotonic() + 10
    while running(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running(process)


def of_this_process() -> set[int]:
    """All processes that come from this one."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(name)] = int(stat[1])
    found, grown = {os.getpid()}, True
    while grown:
        below = {process for process, parent in parents.items() if parent in found}
        grown = not below <= found
        found |= below
    return found - {os.getpid()}


async def begin(pool: WorkerPool) -> Worker:
    worker = await pool.borrow()
    await worker.call("reset", pool.limits.deadline, task="a", seed=3)
    return worker


async def act(pool: WorkerPool, worker: Worker, action: str) -> Any:
    return await worker.call("step", pool.limits.deadline, action=action)


def use(
    function: Callable[[WorkerPool], Coroutine[Any, Any, Any]], pool: WorkerPool | None = None
) -> Any:
    """Call an async function with a pool, close that, and see that nothing is left of it."""
    pool = pool or pool_of()
    before = of_this_process()

    async def whole() -> Any:
        try:
            return await function(pool)
        finally:
            await pool.close()

    try:
        return asyncio.run(whole())
    finally:
        left = of_this_process() - before
        assert all(map(gone, left)), [Path(f"/proc/{p}/cmdline").read_text() for p in left]


def does(action: str, pool: WorkerPool | None = None) -> Any:
    """Return what the environment answers to one action."""

    async def once(pool: WorkerPool) -> Any:
        worker = await begin(pool)
        try:
            return await act(pool, worker, action)
        finally:
            await pool.give_back(worker, clean=False)

    return use(once, pool)


def fails(action: str, pool: WorkerPool | None = None) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        does(action, pool)
    return caught.value


def test_an_answer_comes_back_as_it_was_but_for_what_nobody_reads() -> None:
    answer = does("say hello")
    assert ["hello", 1.0, True, False, {"success": True, "metrics": {"n": 2.0}}] == answer


def test_any_text_goes_both_ways() -> None:
    assert "\ud800 \x00 🜂" == does("surrogate")[0]
    assert "\ud800\x00🜂" == does("say \ud800\x00🜂")[0]


@pytest.mark.parametrize(
    ("action", "status", "said"),
    [
        ("oops no luck", Status.ENV_ERROR, "ValueError: no luck"),
        ("quit", Status.ENV_ERROR, "SystemExit: enough"),
        ("grade", Status.GRADER_ERROR, "GraderError: the grader broke"),
        ("memory 8", Status.OUT_OF_MEMORY, "MemoryError"),
        ("leave 7", Status.CRASHED, "left with exit code 7.\nlast words"),
        ("leave 0", Status.CRASHED, "left with exit code 0"),
        ("fault", Status.CRASHED, "ended by SIGSEGV"),
        ("garble", Status.CRASHED, "It died in step()"),
        ("long 99000000", Status.CRASHED, "It died in step()"),
    ],
)
def test_a_failure_has_a_status_and_says_what_happened(
    action: str, status: Status, said: str
) -> None:
    error = fails(action)
    assert status is error.status
    assert said in str(error)


@pytest.mark.parametrize("action", ["hang", "spin"])
def test_what_hangs_is_killed_at_its_deadline(action: str) -> None:
    async def twice(pool: WorkerPool) -> float:
        worker = await begin(pool)
        pool.limits = WorkerConfig(deadline=1.0)
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"No answer to step\(\) within 1 s; killed"):
            await act(pool, worker, action)
        took = time.monotonic() - start
        assert worker.end is not None
        assert -signal.SIGKILL == worker.end.code
        await pool.give_back(worker, clean=False)
        assert 1 == pool.killed
        return took

    assert 1.0 <= use(twice) < 1.5


def test_processor_time_is_limited_too() -> None:
    error = fails("spin", pool_of(cpu_seconds=1.0))
    assert Status.TIMEOUT is error.status
    assert "ended by SIGXCPU" in str(error)


@pytest.mark.parametrize("action", ["bomb", "threads"])
def test_processes_and_threads_are_counted(action: str) -> None:
    assert 1 <= int(does(action, pool_of(processes=20))[0]) <= 20


def test_memory_is_that_of_one_process_and_is_freed_after() -> None:
    assert str(2**29) == does("memory 0.5", pool_of(memory_gib=1.0))[0]


def test_files_are_read_and_commands_run_as_whoever_the_run_is() -> None:
    here = Path(sys.executable)
    assert "fine" == does(f"run {here} -c 'print(\"fine\")'")[0]
    assert str(ROOT) == does("run pwd")[0]


def test_printing_and_reading_hurt_nobody() -> None:
    assert "" == does("printing 3")[0]


def test_signals_reach_it_in_its_main_thread() -> None:
    assert "ring" == does("alarm")[0]


def test_what_leaves_its_group_is_killed_with_it(tmp_path: Path) -> None:
    own = int(does(f"daemon {tmp_path / 'pid'}")[0])
    assert gone(own)


def test_what_a_closed_environment_leaves_behind_is_killed_and_counted(tmp_path: Path) -> None:
    pool = pool_of()

    async def orderly(pool: WorkerPool) -> None:
        worker = await begin(pool)
        await act(pool, worker, f"daemon {tmp_path / 'pid'}")
        await pool.give_back(worker, clean=True)

    use(orderly, pool)
    assert gone(int((tmp_path / "pid").read_text()))
    assert (1, 0, 1) == (pool.started, pool.killed, pool.leaked)


def test_a_clean_worker_serves_again_and_is_closed_in_the_end(tmp_path: Path) -> None:
    async def twice(pool: WorkerPool) -> list[str]:
        found = []
        for _ in range(2):
            worker = await begin(pool)
            found.append((await act(pool, worker, "pid"))[0])
            await act(pool, worker, f"closing {tmp_path / 'closed'}")
            await pool.give_back(worker, clean=True)
        return found

    pool = pool_of()
    first, second = use(twice, pool)
    assert first == second
    assert "closed" == (tmp_path / "closed").read_text()
    assert (1, 0, 0) == (pool.started, pool.killed, pool.leaked)


def test_temporary_files_of_a_killed_worker_go_with_it() -> None:
    folder = Path(does("temporary")[0])
    assert folder.parent.name.startswith("isentrope-worker-")
    assert not folder.parent.exists()


def test_limits_beyond_what_the_kernel_counts_are_no_limits() -> None:
    assert "x" == does("say x", pool_of(memory_gib=1e12, cpu_seconds=1e30))[0]


def test_with_isolation_by_episode_none_does() -> None:
    async def twice(pool: WorkerPool) -> list[str]:
        found = []
        for _ in range(2):
            worker = await begin(pool)
            found.append((await act(pool, worker, "pid"))[0])
            await pool.give_back(worker, clean=True)
        return found

    pool = WorkerPool("rogue", ROGUE, {}, WorkerConfig(), episodes=1)
    first, second = use(twice, pool)
    assert first != second
    assert (2, 0) == (pool.started, pool.killed)


def test_a_worker_is_replaced_after_its_number_of_episodes() -> None:
    async def five(pool: WorkerPool) -> list[str]:
        found = []
        for _ in range(5):
            worker = await begin(pool)
            found.append((await act(pool, worker, "pid"))[0])
            await pool.give_back(worker, clean=True)
        return found

    pool = WorkerPool("rogue", ROGUE, {}, WorkerConfig(), episodes=2)
    one, two, three, four, five_ = use(five, pool)
    assert one == two != three == four != five_
    assert (3, 0) == (pool.started, pool.killed)


def test_an_episode_starts_the_same_whatever_was_drawn_before() -> None:
    async def several(pool: WorkerPool) -> list[str]:
        one, other = await begin(pool), await begin(pool)
        found = []
        for worker in (one, one, other):
            found.append((await worker.call("reset", 5, task="a", seed=9))[0])
            await act(pool, worker, "disturb")
        for worker in (one, other):
            await pool.give_back(worker, clean=True)
        return found

    assert 1 == len(set(use(several)))


def test_what_cannot_be_made_says_why() -> None:
    with pytest.raises(WorkerError, match="RuntimeError: not today"):
        does("say x", pool_of({"refuse": "not today"}))
    with pytest.raises(
        WorkerError, match=r"(No answer to make\(\)|was not imported) within 0\.5 s"
    ):
        does("say x", pool_of({"slow": 9.0}, start_deadline=0.5))
    unknown = WorkerPool("rogue", "tests.sdk.no_such:Thing", {}, WorkerConfig())
    with pytest.raises(WorkerError, match=r"ModuleNotFoundError: No module named 'tests\.sdk\.no_"):
        does("say x", unknown)


def test_a_worker_that_was_killed_from_outside_is_a_crash() -> None:
    async def murdered(pool: WorkerPool) -> None:
        worker = await begin(pool)
        own = int((await act(pool, worker, "pid"))[0])
        os.kill(own, signal.SIGKILL)
        with pytest.raises(WorkerError, match="ended by SIGKILL") as caught:
            await act(pool, worker, "say x")
        assert Status.CRASHED is caught.value.status
        await pool.give_back(worker, clean=False)
        again = await begin(pool)
        assert "x" == (await act(pool, again, "say x"))[0]
        await pool.give_back(again, clean=True)

    use(murdered)


def test_a_cancelled_call_kills_the_worker() -> None:
    async def cancelled(pool: WorkerPool) -> None:
        worker = await begin(pool)
        own = int((await act(pool, worker, "pid"))[0])
        call = asyncio.create_task(act(pool, worker, "hang"))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert gone(own)

    use(cancelled)


ALONE = """
import asyncio, sys
from tests.sdk.test_workers import act, begin, pool_of

async def main():
    pool = pool_of()
    workers = [await begin(pool) for _ in range(3)]
    for i, worker in enumerate(workers[:2]):
        print((await act(pool, worker, "pid"))[0])
        print((await act(pool, worker, f"daemon {sys.argv[1]}/{i}"))[0])
    print(pool._nursery._process.pid, flush=True)
    await act(pool, workers[2], "hang")

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_run_however_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    before = of_this_process()
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    found = [int(process.stdout.readline()) for _ in range(5)]
    assert all(map(running, found))
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    assert all(map(gone, found))
    assert of_this_process() <= before


FOREIGN = """
class Tasks(dict):
    pass

import os
if log := os.environ.get("FOREIGN_LOG"):
    with open(log, "a") as file:
        print("one", file=file)

class Task:
    id = "one"

class Plain:
    tasks = {"train": [Task]}
    reward_range = (0, 1)
    def __init__(self, word="this"):
        if not word:
            raise ValueError("no such word")
        self.word = word
    def reset(self, seed, options):
        return "which?", {"task": options["task"]}
    def step(self, action):
        import sys
        right = action == self.word
        return "", float(right), True, False, {"success": right, "own": sys.prefix}
    def close(self):
        pass
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the id "foreign" name an environment in an interpreter that has no Isentrope."""
    from isentrope import components
    from isentrope.specs import EnvSpec

    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
    )
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "foreign.py").write_text(FOREIGN)
    python = tmp_path / "venv" / "bin" / "python"
    spec = EnvSpec("foreign", "foreign:Plain", "Of another world", python=str(python))
    row = plugins.Row("foreign", "environment", "tests", "0", "ok", "", spec)
    with_it = plugins.Registry((*plugins.registry().rows, row))
    monkeypatch.setattr(components, "registry", lambda: with_it)
    return python


def test_an_environment_of_another_interpreter_is_made_like_any(foreign: Path) -> None:
    before = of_this_process()
    env = isentrope.make("foreign")
    assert ["one"] == [task.id for task in env.tasks["train"]]
    assert (0.0, 1.0) == env.reward_range
    assert "which?" == env.reset(seed=0)[0]
    assert ("", 1.0, True, False, {"success": True}) == env.step("this")
    with pytest.raises(EnvironmentContractError, match="after the episode's end"):
        env.step("this")
    env.close()
    assert all(map(gone, of_this_process() - before))
    with pytest.raises(UnknownNameError, match=r"'foreign': 'wrod' does not .* mean 'word'"):
        isentrope.make("foreign", wrod="this")
    with pytest.raises(ConfigError, match="'foreign' cannot be made: ValueError: no such word"):
        isentrope.make("foreign", word="")
    foreign.unlink()
    with pytest.raises(ConfigError, match="The interpreter of 'foreign' is not there"):
        isentrope.make("foreign")


def nurseries() -> list[int]:
    """Processes that this one started, and that import an environment's module."""
    started = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    programs = {int(p): Path(f"/proc/{p}/cmdline").read_text().split("\0") for p in started}
    return [p for p, words in programs.items() if any(w.endswith("workers/shim.py") for w in words)]


def test_environments_of_one_interpreter_are_forked_from_one_process(foreign: Path) -> None:
    one, other = isentrope.make("foreign"), isentrope.make("foreign", word="that")
    assert 1 == len(nurseries())
    one.close()
    other.reset(seed=0)
    assert 1.0 == other.step("that")[1], "each has its own options"
    third = isentrope.make("foreign")
    assert 1 == len(nurseries())
    other.close()
    third.close()
    assert [] == nurseries()
    del foreign


def test_another_environment_of_the_process_is_another_interpreter(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a module reads at import is as it was when the environment was made."""
    one = isentrope.make("foreign")
    monkeypatch.setenv("FOREIGN", "1")
    other = isentrope.make("foreign")
    assert 2 == len(nurseries())
    one.close()
    other.close()
    del foreign


def test_what_forks_is_started_again_where_it_was_killed(foreign: Path) -> None:
    one = isentrope.make("foreign")
    (process,) = nurseries()
    os.kill(process, signal.SIGKILL)
    assert gone(process)
    with pytest.raises(ConfigError, match="What starts workers of 'foreign' is gone"):
        isentrope.make("foreign")
    other = isentrope.make("foreign")
    other.reset(seed=0)
    assert 1.0 == other.step("this")[1]
    one.close()
    other.close()
    assert [] == nurseries()
    del foreign


def test_a_fault_of_an_interpreter_is_said_before_it_starts(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isentrope import components

    spec = components.registry().specs("environment")["foreign"]
    row = attrs.evolve(
        next(r for r in components.registry().rows if r.id == "foreign"),
        spec=attrs.evolve(spec, fault=f"{__name__}:fault"),
    )
    monkeypatch.setattr(components, "registry", lambda: plugins.Registry((row,)))
    with pytest.raises(ConfigError, match=f"'foreign' cannot be made: {foreign} is too old"):
        isentrope.make("foreign")


def fault(python: str) -> str:
    return f"{python} is too old"


def test_checking_one_starts_its_interpreter_once(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREIGN_LOG", str(tmp_path / "imports"))
    report = check_env("foreign")
    assert "one" == (tmp_path / "imports").read_text().strip(), "its module was imported once"
    assert report.ok, str(report)
    assert [] == nurseries()
    del foreign


def test_a_run_trains_on_it(foreign: Path, tiny_run: dict[str, Any]) -> None:
    model = {**SMALL_MODEL, "warmup_env": {"id": "arithmetic"}}
    run = isentrope.train(**{**tiny_run, "env": "foreign", "model": model, "iterations": 1})
    assert 32 == run.metrics[0]["status/ok"]
    assert 16 >= run.metrics[0]["workers/started"] > 0
    del foreign


def test_a_fork_that_comes_back_answers_nobody() -> None:
    async def twice(pool: WorkerPool) -> list[Any]:
        worker = await begin(pool)
        found = [(await act(pool, worker, "fork"))[0]]
        for _ in range(5):
            found.append((await act(pool, worker, "say x"))[0])
        await pool.give_back(worker, clean=True)
        return found

    parent, *others = use(twice)
    assert ("parent", ["x"] * 5) == (parent, others)


def test_any_signal_has_a_name() -> None:
    assert "ended by signal 40" in str(fails("kill 40"))


def test_lower_limits_that_were_there_stay() -> None:
    """Of whoever starts the run: a container, a cluster."""
    code = """
import asyncio, resource
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
from tests.sdk.test_workers import does
print(does("say fine")[0], does("say well")[0])
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "fine well" in found.stdout


def test_a_module_that_does_not_import_in_time_is_waited_for_once() -> None:
    pool = WorkerPool("slow", "tests.sdk.slow_import:Env", {}, WorkerConfig(start_deadline=1.0))

    async def several(pool: WorkerPool) -> float:
        start = time.monotonic()
        found = await asyncio.gather(*(pool.borrow() for _ in range(4)), return_exceptions=True)
        assert all(isinstance(e, WorkerError) and e.status is Status.TIMEOUT for e in found)
        return time.monotonic() - start

    assert use(several, pool) < 3.0
