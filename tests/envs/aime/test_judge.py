"""The judge: what happens to its processes, and who is to blame."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isentrope import GraderError
from isentrope_envs.aime import Reason, Verdict, grade, judge, minerva, zygote
from tests.sdk.test_workers import gone

COSTLY = r"\boxed{9^{9^{9^9}}}"


def half(n: int = 146) -> Verdict:
    """Ask a question that needs the judge; 73 is its reference."""
    return grade(rf"\boxed{{\frac{{{n}}}{{2}}}}", "73")


def below(process: int) -> list[int]:
    """Return the processes that descend from one."""
    found, todo = [], [process]
    while todo:
        folder = Path(f"/proc/{todo.pop()}/task")
        for file in folder.glob("*/children"):
            children = [int(word) for word in file.read_text().split()]
            found += children
            todo += children
    return found


def zygotes() -> list[int]:
    """Return the processes that this one has started itself."""
    files = Path("/proc/self/task").glob("*/children")
    return [int(word) for file in files for word in file.read_text().split()]


def wait_until(what: str, condition: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what} did not come to be"
        time.sleep(0.02)


SPAWNED = pytest.param("spawned", marks=pytest.mark.slow)  # each starts an interpreter


@pytest.fixture(autouse=True, params=[SPAWNED, "forked"])
def _fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without a judge; it comes to be in one way and the other."""
    judge.close()
    if request.param == "forked":
        monkeypatch.setattr(judge, "_is_single", lambda: True)  # but for threads that do nothing
        judge.preload()
        assert judge._loaded is not None
    else:
        monkeypatch.setattr(judge, "_loaded", None)
    yield
    judge.close()


def test_whole_numbers_need_no_process() -> None:
    assert grade(r"\boxed{73}", "73").correct
    assert [] == zygotes()


def test_a_process_is_kept_for_the_next_question_until_it_is_closed() -> None:
    assert half().correct
    (one,) = zygotes()
    assert not half(148).correct
    assert [one] == zygotes()
    judge.close()
    assert [] == zygotes()
    assert half().correct


def test_a_process_that_died_while_idle_is_replaced() -> None:
    half()
    os.kill(zygotes()[0], signal.SIGKILL)
    assert half().correct


def test_a_question_whose_process_dies_twice_is_nobodys_answer() -> None:
    half()
    killed: list[int] = []

    def kill_at_work() -> None:
        while len(killed) < 2:
            for one in zygotes():
                if one not in killed and below(one):
                    os.kill(one, signal.SIGKILL)
                    killed.append(one)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    with pytest.raises(GraderError, match="The judge's process died twice: "):
        grade(COSTLY, "73")
    killer.join()
    assert half().correct


def test_a_child_that_somebody_kills_is_the_machines_fault() -> None:
    """As the kernel does where memory runs out."""
    half()
    (one,) = zygotes()
    killer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, pathlib, time\n"
            f"file = pathlib.Path('/proc/{one}/task/{one}/children')\n"
            "while not (found := file.read_text().split()): time.sleep(0.001)\n"
            "os.kill(int(found[0]), 9)",
        ]
    )
    time.sleep(0.5)
    with pytest.raises(GraderError, match="something ended it by signal 9"):
        grade(COSTLY, "73")
    killer.wait()
    assert half().correct


def test_an_answer_that_uses_up_its_time_is_wrong_and_costs_nobody_the_judge() -> None:
    half()
    before = zygotes()
    assert Verdict(False, False, "9^{9^{9^9}}", Reason.TOO_COSTLY) == grade(COSTLY, "73")
    assert before == zygotes()
    assert half().correct


def test_an_answer_that_uses_up_its_memory_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "SECONDS", 60.0)
    monkeypatch.setattr(judge, "MEMORY", 32 << 20)
    verdict = grade(r"\boxed{2^{10000000000}}", "73")
    assert not verdict.correct
    assert half().correct


def test_a_machine_too_busy_to_judge_is_not_the_answers_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge, "SECONDS", 60.0)
    monkeypatch.setattr(judge, "PATIENCE", 0.3)
    with pytest.raises(GraderError, match=r"no verdict in 0\.3 s, of which it had 0\.\d+ s"):
        grade(COSTLY, "73")


@pytest.mark.parametrize(
    ("pinned", "sentence"),
    [
        ({"lm-eval": "0.4.12"}, r"needs lm-eval 0\.4\.12, not 0\.4\.13: pip install 'isentrope\["),
        ({"lm-eval": "0.4.1"}, "needs lm-eval 0.4.1, not"),
        ({"no-such-thing": "1"}, "needs no-such-thing 1, which is not installed: pip install"),
    ],
)
def test_a_missing_or_another_lm_eval_is_one_sentence(
    pinned: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minerva, "PINNED", pinned)
    with pytest.raises(GraderError, match=sentence):
        half()
    assert grade(r"\boxed{073}".replace("0", "", 1), "73").correct  # which needs none of it


def test_a_file_that_is_not_lm_evals_is_a_failure_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(judge, "_loaded", None)
    (tmp_path / "utils.py").write_text("raise RuntimeError('not me')")
    monkeypatch.setattr(judge, "utilities", lambda: tmp_path / "utils.py")
    with pytest.raises(GraderError, match="could not be started: RuntimeError: not me"):
        half()


def test_who_waits_is_let_in_first_come_first_served_and_none_is_lost() -> None:
    line, came = judge._Line(1), []

    def visit(number: int) -> None:
        with line:
            came.append(number)

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(6)]
    with line:
        for waiting, thread in enumerate(threads, 1):
            thread.start()
            while len(line._waiting) < waiting:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert [*range(6)] == came
    with line:
        pass  # its place is free again


def test_loading_leaves_alarms_and_logging_as_they_were() -> None:
    before = signal.signal(signal.SIGALRM, (handler := lambda *_: None))
    signal.setitimer(signal.ITIMER_REAL, 1000.0, 7.0)
    try:
        zygote.load(str(minerva.utilities()))
        assert handler is signal.getsignal(signal.SIGALRM)
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 900 < left <= 1000
        assert 7.0 == interval
        assert logging.getLogger("anyone").isEnabledFor(logging.ERROR)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


OWNER = """
import sys, threading
from isentrope_envs.aime import grade, judge
if sys.argv[1] == "forked":
    judge.preload()
grade(r"\\boxed{\\frac{4}{2}}", "2")
threading.Thread(target=lambda: [grade(r"\\boxed{9^{9^{9^9}}}", "2") for _ in range(99)]).start()
print("ready", flush=True)
"""


@pytest.mark.parametrize("start", [SPAWNED, "forked"])
def test_nothing_is_left_of_an_owner_that_is_killed(start: str) -> None:
    command = [sys.executable, "-c", OWNER, start]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert "ready\n" == owner.stdout.readline()
    wait_until("a child at work", lambda: len(below(owner.pid)) >= 2)
    descendants = below(owner.pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert all(map(gone, descendants))


def test_a_fork_has_a_judge_of_its_own_and_leaves_its_parents_alone() -> None:
    half()
    before = zygotes()
    child = os.fork()
    if child == 0:
        right = half().correct and set(zygotes()).isdisjoint(before)
        judge.close()
        os._exit(0 if right else 1)
    assert (child, 0) == os.waitpid(child, 0)
    assert half().correct
    assert before == zygotes()


def test_an_interrupted_question_leaves_no_answer_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half()

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(judge, "SECONDS", 0.75)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            grade(COSTLY, "73")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert half().correct
    assert not half(148).correct


@pytest.mark.slow
def test_a_child_is_bounded_in_memory() -> None:
    half()
    (one,) = zygotes()
    highest = 0
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from isentrope_envs.aime import grade\n"
            "for text in ('2^{10000000000}', '9!!!', '100000000!'):\n"
            "    print(grade(rf'\\boxed{{{text}}}', '73').reason, flush=True)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    while worker.poll() is None:
        for process in below(worker.pid):
            try:
                highest = max(highest, int(Path(f"/proc/{process}/statm").read_text().split()[1]))
            except (OSError, ValueError):
                continue
        time.sleep(0.01)
    assert worker.stdout is not None
    assert ["too_costly"] * 3 == worker.stdout.read().split()
    worker.stdout.close()
    assert 0 < highest * os.sysconf("SC_PAGE_SIZE") < judge.MEMORY + (256 << 20)
    assert [one] == zygotes()
