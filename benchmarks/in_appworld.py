"""AppWorld's engine under Isentrope against the bare engine: time, memory, and what is left behind.

    python benchmarks/in_appworld.py         # about five minutes; needs isentrope appworld install

The policy is a script: the tiny world's own solutions. Both sides run in turns, on the same tasks.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from isentrope import EnvRef, WorkerConfig
from isentrope.rollout.hosting import Host, host_of
from isentrope_envs.appworld.place import Place

PLACE = Place.default()
BARE = """
import json, sys, time
from appworld import AppWorld
clock = lambda: time.clock_gettime(time.CLOCK_MONOTONIC)
tasks = json.loads(sys.argv[1])
names, seconds = ("open", "execute", "judge", "close"), {}
def timed(name, action):
    start = clock()
    result = action()
    seconds.setdefault(name, []).append(clock() - start)
    return result
world = AppWorld("{first}", experiment_name="warm-{me}")
world.execute("print(1)"); world.close()
print("ready", flush=True); sys.stdin.readline()
begin = clock()
for task, cells in tasks:
    world = timed("open", lambda: AppWorld(task, experiment_name="bare-{me}"))
    for cell in cells:
        timed("execute", lambda: world.execute(cell))
    assert timed("judge", world.evaluate).success
    timed("close", world.close)
total = clock() - begin
print(json.dumps({"total": total, "seconds": seconds}), flush=True)
"""


def tasks() -> list[tuple[str, list[str]]]:
    """Return the tiny world's training tasks, each with the cells that solve it."""
    folder = PLACE.full / "data"
    found = []
    for task in (folder / "datasets" / "train.txt").read_text().split():
        turns = json.loads((folder / "tasks" / task / "ground_truth" / "turns.json").read_text())
        found.append((task, turns))
    return found


def bare(work: Sequence[tuple[str, list[str]]], processes: int) -> tuple[float, dict[str, float]]:
    """Return episodes a second, and the median milliseconds of each part."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(PLACE.full / "data")
        env = {**os.environ, "APPWORLD_ROOT": folder, "APPWORLD_CACHE": folder, "HOME": folder}
        running = []
        for me in range(processes):
            code = BARE.replace("{first}", work[0][0]).replace("{me}", str(me))
            own = json.dumps(work[me::processes])
            running.append(
                subprocess.Popen(
                    [PLACE.python, "-W", "ignore", "-c", code, own],
                    env=env, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
        for process in running:
            assert process.stdout is not None
            while process.stdout.readline().strip() != "ready":
                assert process.poll() is None, "the bare engine did not start"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [json.loads(process.stdout.read().splitlines()[-1]) for process in running]  # type: ignore[union-attr]
        for process in running:
            process.kill()
    parts = {name: [s for one in said for s in one["seconds"][name]] for name in said[0]["seconds"]}
    speed = len(work) / max(one["total"] for one in said)
    return speed, {name: 1000 * median(found) for name, found in parts.items()}


async def ours(
    work: Sequence[tuple[str, list[str]]], host: Host, at_a_time: int
) -> tuple[float, dict[str, float]]:
    """Return the same of our environment."""
    parts: dict[str, list[float]] = {"open": [], "execute": [], "judge": []}
    gate = asyncio.Semaphore(at_a_time)

    async def episode(task: str, cells: list[str]) -> None:
        async with gate:
            start = time.perf_counter()
            env = await host.borrow()
            await env.reset(task, 0)
            parts["open"].append(time.perf_counter() - start)
            for i, cell in enumerate(cells):
                start = time.perf_counter()
                result = await env.step(f"```python\n{cell}\n```")
                last = i == len(cells) - 1
                parts["judge" if last else "execute"].append(time.perf_counter() - start)
            assert result[4]["success"], task
            await host.give_back(env, clean=True)

    begin = time.perf_counter()
    await asyncio.gather(*(episode(task, cells) for task, cells in work))
    speed = len(work) / (time.perf_counter() - begin)
    return speed, {name: 1000 * median(found) for name, found in parts.items() if found}


async def compared(rounds: int = 3) -> None:
    """Print both, side by side."""
    work = tasks() * 3
    print(f"{len(work)} episodes, medians of {rounds} rounds\n")
    print(f"{'':>28} {'episodes/s':>11}   milliseconds")
    for processes in (1, 2):
        kinds = {f"bare, {processes} at a time": None}
        for isolation in ("process", "episode"):
            kinds[f"ours ({isolation}), {processes}"] = isolation
        found: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in kinds}
        hosts = {}
        for name, isolation in kinds.items():
            if isolation is not None:
                limits = WorkerConfig(count=processes, isolation=isolation, start_deadline=300.0)
                hosts[name] = host_of(EnvRef("appworld", {"preset": "short"}), limits)
                await ours(work[:2], hosts[name], processes)  # starts all
        for _ in range(rounds):
            for name in kinds:
                if name in hosts:
                    found[name].append(await ours(work, hosts[name], processes))
                else:
                    found[name].append(await asyncio.to_thread(bare, work, processes))
        for host in hosts.values():
            await host.close()
        for name, results in found.items():
            speed = median(s for s, _ in results)
            parts = {k: median(p[k] for _, p in results) for k in results[0][1]}
            said = ", ".join(f"{part} {ms:.0f}" for part, ms in parts.items())
            print(f"{name:>28} {speed:>11.1f}   {said}")


async def growth(episodes: int = 500) -> None:
    """Print memory while many episodes pass through, and what they leave behind."""
    work = (tasks() * (1 + episodes // len(tasks())))[:episodes]
    limits = WorkerConfig(count=8, start_deadline=300.0)
    host = host_of(EnvRef("appworld", {"preset": "short"}), limits)
    print(f"\n{episodes} episodes, 8 at a time")
    for part in range(5):
        share = work[part * episodes // 5 : (part + 1) * episodes // 5]
        watch = asyncio.create_task(_watch())
        await ours(share, host, 8)
        watch.cancel()
        print(f"  after {(part + 1) * episodes // 5:>4}: {_peak[0]:.0f} MiB at the most")
        _peak[0] = 0.0
    print(f"  {host.counts()}")
    await host.close()
    files = [n for n in os.listdir(tempfile.gettempdir()) if n.startswith("isentrope-")]
    print(f"  left: {len(_processes())} processes, {len(files)} folders")


_peak = [0.0]


async def _watch() -> None:
    while True:
        _peak[0] = max(_peak[0], await asyncio.to_thread(_memory))
        await asyncio.sleep(0.5)


def _processes() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "workers/shim.py"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def _memory() -> float:
    """Return MiB that the workers have between them, shared pages counted once."""
    total = 0.0
    for process in _processes():
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


if __name__ == "__main__":
    if not PLACE.python.exists():
        sys.exit(f"AppWorld is not in {PLACE.root}: isentrope appworld install --data tiny")
    asyncio.run(compared())
    asyncio.run(growth())
