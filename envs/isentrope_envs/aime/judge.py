"""Asking whether two expressions are equal, in a process that can be killed.

Symbolic algebra may take hours, or all memory, for an answer of ten characters. So each question
goes to a child of a *zygote*, a warm process that loaded lm-eval and SymPy once (see `zygote`). It
is a fork of this process where that is safe and everything is loaded, as in an environment's
workers, which share the memory; else an interpreter of its own, which takes a second or two.
A budget of processor time, not of wall time, decides that an answer costs too much: a busy machine
makes nobody's answer wrong.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from attrs import define, field, frozen

from isentrope import GraderError
from isentrope_envs.aime import zygote
from isentrope_envs.aime.minerva import utilities

SECONDS = 0.5
"""Processor time for a question; what people write takes 0.02 to 0.1."""
MEMORY = 512 << 20
"""Bytes for a question, above what the zygote has."""
PATIENCE = 20.0
"""Seconds of wall time for a question. Who has not had its budget by then, on a machine at work
with others, is nobody to blame: `GraderError`."""
START = 60.0
"""Seconds of wall time for a zygote to be warm."""
MOST = max(1, min(8, os.cpu_count() or 1))
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


def preload() -> None:
    """Load what judges need into this process, for all that will be forked from it.

    Does nothing where there are threads, or lm-eval is not as it must be.
    """
    global _loaded
    with suppress(Exception):  # whoever asks the judge is told
        if _loaded is None and _is_single():
            _loaded = zygote.load(str(utilities()))


def _is_single() -> bool:
    """Say whether this process has but one thread, so that a fork is the whole of it."""
    main = threading.current_thread() is threading.main_thread()
    return main and len(os.listdir("/proc/self/task")) == 1


@define(eq=False)
class _Zygote:
    """A warm process, asked one question at a time."""

    process: int
    questions: IO[bytes]
    answers: IO[bytes]

    @classmethod
    def start(cls) -> _Zygote:
        """Return one that is warm; raises `GraderError` where there can be none."""
        path = utilities()
        about = {"seconds": SECONDS, "memory": MEMORY, "patience": PATIENCE}
        from_here, to_here = os.pipe(), os.pipe()
        theirs = from_here[0], to_here[1]
        try:
            if _loaded is not None and _is_single():
                process, warm = _fork(_loaded, *theirs, about), True
            else:
                process, warm = _spawn(*theirs), False
        except OSError as error:
            for number in (from_here[1], to_here[0]):
                os.close(number)
            raise GraderError(f"The judge's process could not be started: {error}.") from error
        finally:
            for number in theirs:
                os.close(number)
        one = cls(process, os.fdopen(from_here[1], "wb"), os.fdopen(to_here[0], "rb", buffering=0))
        try:
            said = (
                {} if warm else one.ask({**about, "path": sys.path, "utilities": str(path)}, START)
            )
            failure = said.get("failed")
        except OSError as error:
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
        zygote.send(self.questions, question)
        if not select.select([self.answers], [], [], patience)[0]:
            raise TimeoutError(f"it said nothing for {patience:g} s")
        answer = zygote.receive(self.answers)
        if not isinstance(answer, dict):
            raise ConnectionResetError("it is gone")
        return answer

    def alive(self) -> bool:
        """Say whether it has not ended."""
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> None:
        """End it."""
        os.kill(self.process, signal.SIGKILL)  # until it is waited for, nobody else has its number
        os.waitpid(self.process, 0)
        self.hang_up()

    def hang_up(self) -> None:
        """Close its pipes, which ends it if nobody else has them."""
        for stream in (self.questions, self.answers):
            with suppress(OSError):  # what was not sent, nobody waits for
                stream.close()


def _spawn(questions: int, answers: int) -> int:
    """Start an interpreter that reads and writes these pipes; return its number."""
    script = str(Path(zygote.__file__))
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", script],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, questions, 0),
            (os.POSIX_SPAWN_DUP2, answers, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,  # Ctrl-C is for the run alone
    )


def _fork(minerva: ModuleType, questions: int, answers: int, about: dict[str, Any]) -> int:
    """Fork a zygote that reads and writes these pipes; return its number."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        first, second = sorted((questions, answers))  # the owner's others must close with it
        for low, high in ((3, first), (first + 1, second), (second + 1, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(low, high)
        zygote.serve(
            minerva, os.fdopen(questions, "rb", buffering=0), os.fdopen(answers, "wb"), about
        )
    finally:
        os._exit(0)


@define(eq=False)
class _Line:
    """Lets so many threads in at a time, first come, first served; a semaphore is not as fair."""

    _free: int
    _waiting: deque[threading.Event] = field(factory=deque)
    _lock: threading.Lock = field(factory=threading.Lock)

    def __enter__(self) -> None:
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._waiting.append(turn)
        try:
            turn.wait()
        except BaseException:  # an interrupt: nobody is to wait for who is gone
            with self._lock:
                called = turn not in self._waiting
                if not called:
                    self._waiting.remove(turn)
            if called:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


@define(eq=False)
class _Pool:
    """The zygotes of this process, lent to one thread each."""

    _idle: list[_Zygote] = field(factory=list)
    _line: _Line = field(factory=lambda: _Line(MOST))

    @contextmanager
    def lent(self) -> Iterator[_Zygote]:
        """Lend one, started if none is idle; after an error it is killed."""
        with self._line:
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
        self._idle.clear()
        self._line = _Line(MOST)

    def _take(self) -> _Zygote | None:
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                one = self._idle.pop()
                if one.alive():
                    return one
                one.kill()
        return None


_pool = _Pool()
_loaded: ModuleType | None = None
atexit.register(close)
os.register_at_fork(after_in_child=_pool.forget)
