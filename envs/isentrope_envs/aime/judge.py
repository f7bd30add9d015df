"""Asking whether two expressions are equal, in a process that can be killed.

Symbolic algebra may take hours, or all memory, for an answer of ten characters. So each question
goes to a child of a *zygote*, a warm process that loaded lm-eval and SymPy once (see `zygote`).
A budget of processor time, not of wall time, decides that an answer costs too much: a busy machine
makes nobody's answer wrong.
"""

from __future__ import annotations

import atexit
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from isentrope import GraderError
from isentrope_envs.aime import zygote
from isentrope_envs.aime.minerva import utilities

SECONDS = 0.75
"""Processor time for a question; what people write takes 0.02 to 0.1."""
MEMORY = 512 << 20
"""Bytes for a question, above what the zygote has."""
PATIENCE = 20.0
"""Seconds of wall time for a question. Who has not had its budget by then, on a machine at work
with others, is nobody to blame: `GraderError`."""
START = 60.0
"""Seconds of wall time for a zygote to be warm."""
MOST = max(1, min(4, os.cpu_count() or 1))
"""Zygotes of one process; more threads than that wait."""


@frozen
class Opinion:
    """What the judges say of an answer."""

    literal: bool
    """lm-eval's chain, to the letter."""
    by: str | None
    """Who accepts it: ``"minerva"``, ``"math_verify"`` or nobody."""
    spent: bool
    """Whether it took too much time or memory to go on asking."""


def ask(answer: str | None, reference: str, literal: tuple[str, str]) -> Opinion:
    """Compare an answer with the reference; None: only what is `literal`, by lm-eval's own chain.

    literal: answer and reference as lm-eval would have them. From any thread. A zygote that is
    gone is replaced once.

    Raises `GraderError` where no verdict is to be had, which is never the answer's doing.
    """
    question = {"answer": answer, "reference": reference, "literal": literal}
    for last in (False, True):
        try:
            with _pool.lent() as one:
                said = one.ask(question)
            break
        except (OSError, ValueError) as error:  # gone, or out of step
            if last:
                raise GraderError(f"The judge's process died twice: {error}.") from error
    if "failed" in said:
        raise GraderError(f"The judge gave no verdict: {said['failed']}.")
    by = next((who for who in ("minerva", "math_verify") if said.get(who)), None)
    return Opinion(bool(said.get("literal")), by, bool(said["spent"]))


def close() -> None:
    """End the zygotes of this process that are idle; the next question starts another."""
    _pool.close()


@define(eq=False)
class _Zygote:
    """A warm process, asked one question at a time."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls) -> _Zygote:
        """Start one and wait until it is warm; raises `GraderError` where it cannot be."""
        path = utilities()
        process = subprocess.Popen(  # noqa: S603  # our own script
            [sys.executable, "-I", str(Path(zygote.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run alone
        )
        about = {"path": sys.path, "utilities": str(path), "seconds": SECONDS, "memory": MEMORY}
        one = cls(process)
        try:
            said = one.ask({**about, "patience": PATIENCE}, START)
            failure = said.get("failed")
        except (OSError, ValueError) as error:
            failure = str(error)
        except BaseException:
            one.kill()
            raise
        if failure is not None:
            one.kill()
            raise GraderError(f"The judge's process could not be started: {failure}.")
        return one

    def ask(self, question: dict[str, Any], patience: float = PATIENCE + 5) -> dict[str, Any]:
        """Return its answer; raises `OSError` where there is none."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        zygote.send(stdin, question)
        if not select.select([stdout], [], [], patience)[0]:
            raise TimeoutError(f"it said nothing for {patience:g} s")
        answer = zygote.receive(stdout)
        if not isinstance(answer, dict):
            raise ConnectionResetError("it is gone")
        return answer

    def alive(self) -> bool:
        """Say whether it has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.hang_up()
        self.process.wait()

    def hang_up(self) -> None:
        """Close its pipes, which ends it if nobody else has them."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(OSError):  # what was not sent, nobody waits for
                stream.close()


@define(eq=False)
class _Pool:
    """The zygotes of this process, lent to one thread each."""

    _idle: list[_Zygote] = field(factory=list)
    _slots: threading.Semaphore = field(factory=lambda: threading.Semaphore(MOST))

    @contextmanager
    def lent(self) -> Iterator[_Zygote]:
        """Lend one, started if none is idle; after an error it is killed."""
        with self._slots:
            one = self._take() or _Zygote.start()
            try:
                yield one
            except BaseException:  # also an interrupt, which leaves it out of step
                one.kill()
                raise
            self._idle.append(one)

    def close(self) -> None:
        """End those that are idle."""
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                self._idle.pop().kill()

    def forget(self) -> None:
        """In a fork: leave the zygotes to the process that started them."""
        for one in self._idle:
            one.hang_up()
            one.process.returncode = 0  # no child of this process
        self._idle.clear()
        self._slots = threading.Semaphore(MOST)

    def _take(self) -> _Zygote | None:
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                one = self._idle.pop()
                if one.alive():
                    return one
                one.kill()
        return None


_pool = _Pool()
atexit.register(close)
os.register_at_fork(after_in_child=_pool.forget)
