"""What running environments costs, with a policy that answers at once.

    python benchmarks/environments.py [speed] [round-trip] [trouble] [plugins]

All four where none is named. One-turn episodes through the collector itself: in this process, in
workers that are reused, and in one that is forked for each. Then a call's way to a worker and back;
64 workers of which some hang and some crash; and what installed plugins cost an iteration.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attrs import define
from one_turn import OneTurn

from isentrope import Completion, RolloutConfig, Sampling, WeightsRef
from isentrope.episodes import Episode
from isentrope.rollout.chat import ChatTemplate
from isentrope.rollout.collector import Request, RolloutCollector
from isentrope.rollout.hosting import Host, LocalHost, WorkerHost
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.pool import WorkerPool
from isentrope_plugins.tiny.tokenizer import train_tokenizer

ENTRY_POINT = "one_turn:OneTurn"
DEADLINE = 2.0


@define
class Stub:
    """A policy that says one thing, at once."""

    said: Completion

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, conversation: object = None
    ) -> Completion:
        """Say it."""
        del prompt, sampling, conversation
        return self.said

    async def publish(self, weights: WeightsRef) -> None:
        """Learn nothing."""

    async def close(self) -> None:
        """End."""


def collector_of(host: Host, limits: WorkerConfig) -> RolloutCollector:
    """Return a collector with a policy that says "fine"."""
    tokenizer, end = _tokenizer()
    ids = [*tokenizer("fine", add_special_tokens=False)["input_ids"], end]
    config = RolloutConfig(max_tokens=64, workers=limits, retries=0)
    return RolloutCollector(
        host,
        config,
        Stub(Completion(ids, [-0.5] * len(ids), "stop", version=0)),
        ChatTemplate(tokenizer, (end,)),
        config.sampling((end,)),
        context=512,
    )


def _tokenizer() -> tuple[Any, int]:
    talk = ["How are you? fine"]
    tokenizer = train_tokenizer(talk, vocab_size=300)
    return tokenizer, tokenizer.eos_token_id


def pool_of(limits: WorkerConfig, *, episodes: int | None = None, **config: Any) -> WorkerHost:
    """Return a host of workers."""
    return WorkerHost(WorkerPool("one-turn", ENTRY_POINT, config, limits, episodes=episodes))


async def rate(host: Host, limits: WorkerConfig, episodes: int, rounds: int = 5) -> float:
    """Return episodes a second, the median of rounds; the first one, which starts all, aside."""
    collector = collector_of(host, limits)
    requests = [Request(str(i % 100), i, 0, i) for i in range(episodes)]
    rates = []
    try:
        for _ in range(rounds + 1):
            start = time.perf_counter()
            found = await collector.collect(requests)
            rates.append(episodes / (time.perf_counter() - start))
            assert all(e.success for e in found)
    finally:
        await collector.close()
    return median(rates[1:])


def speed() -> None:
    """Print episodes a second."""
    limits = WorkerConfig(count=16)
    kinds: dict[str, tuple[Host, int]] = {
        "in this process": (LocalHost(OneTurn), 2000),
        "in reused workers": (pool_of(limits), 2000),
        "in a fresh worker each": (pool_of(limits, episodes=1), 300),
    }
    print(f"\n{'one-turn episodes':>24} {'a second':>9}")
    for name, (host, episodes) in kinds.items():
        print(f"{name:>24} {asyncio.run(rate(host, limits, episodes)):>9.0f}")


def round_trip() -> None:
    """Print what a call's way costs."""

    async def measured() -> float:
        pool = pool_of(WorkerConfig()).pool
        worker = await pool.borrow()
        await worker.call("reset", 5, task="5", seed=0)
        seconds = []
        for _ in range(2000):
            start = time.perf_counter()
            await worker.call("reset", 5, task="5", seed=0)
            seconds.append(time.perf_counter() - start)
        await pool.give_back(worker, clean=True)
        await pool.close()
        return median(seconds)

    env = OneTurn()
    start = time.perf_counter()
    for _ in range(2000):
        env.reset(seed=0, options={"task": "5"})
    here = (time.perf_counter() - start) / 2000
    there = asyncio.run(measured())
    print(f"\na reset: {here * 1e6:.0f} us here, {there * 1e6:.0f} us in a worker")


def trouble() -> None:
    """Print what 5 % of hangs and 5 % of crashes cost, and what is left of them."""
    limits = WorkerConfig(count=64, deadline=DEADLINE)

    async def collected(share: float) -> tuple[float, list[Episode], dict[str, float]]:
        collector = collector_of(pool_of(limits, hangs=share, crashes=share), limits)
        requests = [Request(str(i % 100), i, 0, i) for i in range(2000)]
        await collector.collect(requests[10:74])  # starts all, and is fine
        start = time.perf_counter()
        episodes = await collector.collect(requests)
        took = time.perf_counter() - start
        await collector.close()
        return took, episodes, collector.counts()

    print(f"\n2000 episodes, 64 at a time, deadline {DEADLINE:g} s")
    for share in (0.0, 0.05):
        took, episodes, counts = asyncio.run(collected(share))
        statuses = Counter(str(e.status) for e in episodes)
        print(f"{share:>5.0%} hang, {share:.0%} crash: {took:.1f} s, {dict(statuses)}")
        print(f"{'':>5} workers killed: {counts['workers/killed']:.0f}, processes left: {_left()}")
    ideal = 0.05 * 2000 / 64 * DEADLINE
    print(f"waiting for the deadlines of 100 hangs alone takes {ideal:.1f} s")


def _left() -> int:
    """Count processes of ours, without this one and its children that count them."""
    found = subprocess.run(["pgrep", "-fc", "workers/shim.py"], capture_output=True, text=True)
    return int(found.stdout)


def plugins() -> None:
    """Print what an iteration takes where many plugins are installed."""
    print(f"\n{'plugins':>8} {'to list them, ms':>17} {'an iteration, ms':>17}")
    for count in (0, 50, 500):
        with tempfile.TemporaryDirectory() as folder:
            for i in range(count):
                _install(Path(folder), i)
            command = [sys.executable, "-c", ITERATIONS, folder]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
        listing, iteration = map(float, found.stdout.split()[-2:])
        print(f"{count:>8} {listing:>17.1f} {iteration:>17.1f}")


def _install(folder: Path, number: int) -> None:
    """Put a distribution into a folder, as pip would."""
    (folder / f"made_{number}.py").write_text(PLUGIN.format(number))
    info = folder / f"made_{number}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-{number}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[isentrope]\nmade = made_{number}\n")


PLUGIN = """
from isentrope import EnvSpec, hookimpl

@hookimpl
def isentrope_environments():
    return [EnvSpec("made/{0}", "made_{0}:Nothing", "Nothing")]
"""
ITERATIONS = """
import sys, time
sys.path.append(sys.argv[1])
import statistics, tempfile
import isentrope
from isentrope.plugins import registry
start = time.perf_counter()
registry()
listing = time.perf_counter() - start
model = {"hidden_size": 32, "layers": 1, "warmup_steps": 50}
with tempfile.TemporaryDirectory() as folder:
    run = isentrope.train(
        env="arithmetic", algorithm=isentrope.recipe("grpo"), iterations=30, out=folder + "/run",
        model={"id": "tiny-qwen3", **model}, rollout={"tasks": 4, "group": 4, "max_tokens": 16},
    )
    seconds = [sum(v for k, v in m.items() if k.startswith("seconds/")) for m in run.metrics[5:]]
print(1e3 * listing, 1e3 * statistics.median(seconds))
"""


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Time environments, and what goes wrong in them.")
    every = {"speed": speed, "round-trip": round_trip, "trouble": trouble, "plugins": plugins}
    parser.add_argument("what", nargs="*", metavar="|".join(every))
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(every):
        parser.error(f"no such comparison: {', '.join(sorted(unknown))}")
    for name in arguments.what or every:
        every[name]()


if __name__ == "__main__":
    main()
