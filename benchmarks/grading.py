"""What grading AIME answers costs, and with whom it agrees.

    python benchmarks/grading.py [paths] [concurrent] [agreement]

All three where none is named. The time of one response by the way that it goes; 1,000 responses of
32 concurrent episodes, one in twenty of them hostile, from threads and in the environment's own
workers; and agreement with public test suites (``ISENTROPE_TEST_DATA``), beside lm-eval's and
math-verify's own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from isentrope.workers.limits import WorkerConfig
from isentrope.workers.pool import WorkerPool
from isentrope_envs.aime import grade, judge
from isentrope_envs.aime.minerva import utilities

REFERENCE = 73
RESPONSES, EPISODES = 1000, 32
THOUGHT = "We add $a_{k+1} = 2a_k + 3$ to both sides, so that $\\frac{x}{2} = 36$ by symmetry. "
HOSTILE = (
    "9^{9^{9^9}}",
    "100000000!",
    r"\binom{100000000}{50000000}",
    r"\left(\frac{3}{2}\right)^{10000000}",
    "(x+y+z+w+1)^{60}",
    r"\sum_{k=1}^{1000000000} k^{50}",
    "7" * 100_000,
    "(" * 10_000 + "70" + ")" * 10_000,
    r"\frac{1}{1+" * 2000 + "1" + "}" * 2000,
    r"\boxed{" * 3000 + "}" * 3000,
)
WAYS = {
    "a whole number": r"\boxed{73}",
    "another, in a phrase": "Final Answer: The final answer is $74$. I hope it is correct.",
    "a dressed number (lm-eval is asked)": r"\boxed{073\text{ cm}}",
    "a fraction": r"\boxed{\frac{146}{2}}",
    "a surd": r"\boxed{\sqrt{5329}}",
    "a polynomial": r"\boxed{(x+1)^2-x^2-2x+72}",
    "too costly": r"\boxed{9^{9^{9^9}}}",
}


def response(answer: str) -> str:
    """Return 4,500 characters of thought, and an answer."""
    return THOUGHT * (4500 // len(THOUGHT)) + answer


def paths() -> None:
    """Time one response at a time, by the way that it goes."""
    began = time.perf_counter()
    grade(WAYS["a fraction"], str(REFERENCE))
    print(f"The judge was warm after {time.perf_counter() - began:.1f} s.\n")
    print("| answer | verdict | median ms | 99th percentile |\n| --- | --- | ---: | ---: |")
    for name, answer in WAYS.items():
        times, said = [], ""
        for _ in range(10 if name == "too costly" else 100):
            began = time.perf_counter()
            said = grade(response(answer), str(REFERENCE)).reason
            times.append(1000 * (time.perf_counter() - began))
        print(f"| {name} | `{said}` | {median(times):.2f} | {quantiles(times, n=100)[-1]:.2f} |")


def answers(seed: int = 0) -> list[str]:
    """Return 1,000 responses: 50 hostile, 50 expressions, 900 numbers; one in three is right."""
    rng = random.Random(seed)
    said = [HOSTILE[i % len(HOSTILE)] for i in range(RESPONSES // 20)]
    for i in range(RESPONSES // 20):
        number = REFERENCE if i % 3 == 0 else rng.randrange(1000)
        said.append((rf"\frac{{{2 * number}}}{{2}}", rf"\sqrt{{{number**2}}}", f"0{number}")[i % 3])
    while len(said) < RESPONSES:
        said.append(str(REFERENCE if len(said) % 3 == 0 else rng.randrange(1000)))
    rng.shuffle(said)
    return [response(rf"\boxed{{{answer}}}") for answer in said]


def concurrent() -> None:
    """Grade 1,000 responses of 32 episodes at a time, in two ways."""
    print("| from | responses/s | median ms | worst s | most memory MiB | processes | outcome |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    _row(f"{EPISODES} threads", asyncio.run(_from_threads()))
    judge.close()
    for count in (16, EPISODES):
        _row(f"{count} workers", asyncio.run(_from_workers(count)))


async def _from_threads() -> dict[str, Any]:
    with ThreadPoolExecutor(EPISODES) as pool:
        asyncio.get_running_loop().set_default_executor(pool)

        async def one(text: str) -> str:
            return str((await asyncio.to_thread(grade, text, str(REFERENCE))).reason)

        await asyncio.gather(*(one(WAYS["too costly"]) for _ in range(judge.MOST)))  # all are warm
        return await _measure([one] * EPISODES)


async def _from_workers(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "one.jsonl")
        path.write_text(json.dumps({"problem": "What is $70+3$?", "answer": REFERENCE}))
        options = {"train": str(path), "aime24": "", "aime25": ""}
        limits = WorkerConfig(count=count)
        pool = WorkerPool("aime", "isentrope_envs.aime.hosted:Aime", options, limits)
        workers = [await pool.borrow() for _ in range(count)]  # which is not measured
        (task,) = pool.about["tasks"]["train"]

        def of(worker: Any) -> Callable[[str], Awaitable[str]]:
            async def one(text: str) -> str:
                await worker.call("reset", limits.deadline, task=task, seed=0)
                _, _, _, _, info = await worker.call("step", limits.deadline, action=text)
                metrics = info["metrics"]
                return next(
                    k for k in metrics if metrics[k] and k not in ("attempts", "minerva_exact")
                )

            return one

        try:
            return await _measure([of(worker) for worker in workers])
        finally:
            for worker in workers:
                await pool.give_back(worker, clean=True)
            await pool.close()


async def _measure(graders: Sequence[Callable[[str], Awaitable[str]]]) -> dict[str, Any]:
    todo, times, outcomes = answers(), [], Counter[str]()

    async def episode(grader: Callable[[str], Awaitable[str]]) -> None:
        while todo:
            text, began = todo.pop(), time.perf_counter()
            try:
                outcomes[await grader(text)] += 1
            except Exception as error:
                outcomes[type(error).__name__] += 1
            times.append(time.perf_counter() - began)

    watching = asyncio.create_task(_most_memory())
    began = time.perf_counter()
    await asyncio.gather(*map(episode, graders))
    seconds = time.perf_counter() - began
    watching.cancel()
    most, processes = await watching
    return {"seconds": seconds, "times": times, "outcomes": outcomes, "most": most, "n": processes}


async def _most_memory() -> tuple[float, int]:
    """Return, when cancelled, the most MiB that this process and all below it had, and how many."""
    most, processes = 0.0, 0
    try:
        while True:
            family = list(_below(os.getpid()))
            most = max(most, sum(map(_memory, family)))
            processes = max(processes, len(family))
            await asyncio.sleep(0.25)
    except asyncio.CancelledError:
        return most, processes


def _below(process: int) -> Iterable[int]:
    yield process
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = file.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _below(int(child))


def _memory(process: int) -> float:
    """Return the MiB of a process, what it shares counted by its part."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return float(next(line.split()[1] for line in text.splitlines() if "Pss:" in line)) / 1024


def _row(name: str, found: dict[str, Any]) -> None:
    times = found["times"]
    outcome = ", ".join(f"{count} {reason}" for reason, count in found["outcomes"].most_common())
    print(
        f"| {name} | {RESPONSES / found['seconds']:.0f} | {1000 * median(times):.1f} | "
        f"{max(times):.2f} | {found['most']:.0f} | {found['n']} | {outcome} |",
        flush=True,
    )


def agreement() -> None:
    """Compare verdicts with what public test suites expect, case by case."""
    path = Path(os.environ["ISENTROPE_TEST_DATA"], "aime", "grader_cases.jsonl")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    spec = importlib.util.spec_from_file_location("minerva_utils", utilities())
    assert spec is not None
    assert spec.loader is not None
    minerva = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minerva)
    judges: dict[str, Callable[[str, str], bool]] = {
        "ours": lambda said, wanted: grade(said, wanted).correct,
        "minerva strict": lambda said, wanted: _strict(minerva, said, wanted),
        "math-verify": lambda said, wanted: bool(
            minerva.verify(minerva.parse(_as_math(wanted)), minerva.parse(said))
        ),
    }
    found: dict[str, dict[str, list[tuple[bool, bool]]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        if not case["reference"]:
            continue
        for name, decide in judges.items():
            verdict = decide(case["response_or_answer"], case["reference"])
            for group in _groups(case):
                found[group][name].append((verdict, case["expected"]))
    print(f"| cases | n | {' | '.join(judges)} |\n| --- | ---: |{' ---: |' * len(judges)}")
    for group in sorted(found):
        cells = []
        for name in judges:
            pairs = found[group][name]
            false = sum(verdict and not expected for verdict, expected in pairs)
            share = mean(verdict == expected for verdict, expected in pairs)
            cells.append(f"{100 * share:.1f} ({false})")
        print(f"| {group} | {len(found[group]['ours'])} | {' | '.join(cells)} |")


def _groups(case: dict[str, Any]) -> list[str]:
    number = "a whole number" if case["integer_reference"] else "another reference"
    if "note" in case:
        return ["of policy (with a note)"]
    return [f"{number}, {case['format'].replace('_', ' ')}", f"{number}, all"]


def _as_math(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"


def _strict(minerva: Any, said: str, wanted: str) -> bool:
    """Return lm-eval's own verdict on a response, in five seconds at most."""
    box = minerva.last_boxed_only_string(wanted)
    wanted = minerva.remove_boxed(box) if box is not None and "\\boxed" in box else wanted
    found = minerva.normalize_final_answer(minerva.get_unnormalized_answer(said))
    return bool(minerva.is_equiv(found, minerva.normalize_final_answer(wanted)))


PARTS = {"paths": paths, "concurrent": concurrent, "agreement": agreement}


def main() -> None:
    """Measure the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    for part in parser.parse_args().parts:
        print(f"\n## {part}\n")
        PARTS[part]()
    signal.alarm(0)


if __name__ == "__main__":
    main()
