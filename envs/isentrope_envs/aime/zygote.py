"""The far side of the judge: a warm process that forks one child for each question.

Standard library only, and run as a script, or in a fork of a process that has loaded what it
needs. Frames are a length, 4 bytes, big-endian, and JSON. It ends when its questions are closed, at
the latest with its owner, and its child ends with it.

A child has a budget of processor time and memory, which the kernel enforces: lm-eval's own alarm
stops no C code, and its normalisation runs outside of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import json
import logging
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any

WARM_UP = (
    ("\\frac{1}{2}+x", "0.5+x"),
    ("\\sqrt{8}", "3"),
    ("73", "74"),
    ("2^{10}", "5!"),
    ("x^2+2x+1", "x^3+2x+1"),
    ("(1, 4.5)", "(1, \\frac{9}{2})"),
    ("x \\in [-2, 7]", "[-2, 7]"),
    ("k \\ge 2", "\\text{three}"),
)
"""Compared once, so that grammars and caches are there before a fork."""
PR_SET_PDEATHSIG = 1
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""How a child ends that somebody else ended, the kernel where memory ran out, say. By any other
signal it ended itself: an answer was too much for its time, memory, stack or algebra."""


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Send one frame."""
    text = json.dumps(message).encode()
    stream.write(struct.pack(">I", len(text)) + text)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Return the next frame, or None at the end."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    text = stream.read(struct.unpack(">I", header)[0])
    return json.loads(text)


def main() -> None:
    """Load lm-eval's functions from the file that the first frame names, then answer questions."""
    questions, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    about = receive(questions)
    if about is None:
        return
    sys.path[:] = about["path"]
    try:
        minerva = load(about["utilities"])
    except BaseException as error:  # whatever it is, the owner tells the user
        send(answers, {"failed": f"{type(error).__name__}: {error}"})
        return
    send(answers, {"ready": True})
    serve(minerva, questions, answers, about)


def load(path: str) -> ModuleType:
    """Return lm-eval's functions, warm. Leaves no alarm changed, and warns nobody."""
    spec = importlib.util.spec_from_file_location("minerva_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    handler, disabled = signal.getsignal(signal.SIGALRM), logging.root.manager.disable
    alarm = signal.setitimer(signal.ITIMER_REAL, 0)
    logging.disable(logging.CRITICAL)
    try:
        spec.loader.exec_module(module)
        for one, other in WARM_UP:
            _judge(module, {"answer": one, "reference": other, "literal": [one, other]}, _nobody)
    finally:
        signal.signal(signal.SIGALRM, handler)  # lm-eval's own timeout leaves another
        signal.setitimer(signal.ITIMER_REAL, *alarm)
        logging.disable(disabled)
    return module


def serve(
    minerva: ModuleType, questions: IO[bytes], answers: IO[bytes], about: dict[str, Any]
) -> None:
    """Answer questions until they are closed; nobody's print gets between the frames."""
    logging.disable(logging.CRITICAL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    room = _mapped() + about["memory"]
    while (question := receive(questions)) is not None:
        try:
            answer = _ask(minerva, question, room, about, questions)
        except OSError as error:  # no process, no memory: this machine's fault
            answer = {"failed": str(error)}
        send(answers, answer)


def _mapped() -> int:
    """Return how many bytes of address space this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _ask(
    minerva: ModuleType,
    question: dict[str, Any],
    room: int,
    about: dict[str, Any],
    questions: IO[bytes],
) -> dict[str, Any]:
    """Have a child answer, and report what it said before its end, and how that came."""
    source, sink = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(source)
        os.close(sink)
        raise
    if child == 0:
        _child(minerva, question, room, about["seconds"], sink)
    os.close(sink)
    with os.fdopen(source, "rb") as said:
        late = _wait(said, questions, about["patience"])
        if late:
            os.kill(child, signal.SIGKILL)
        text = said.read()  # three short lines at most
    _, status, usage = os.wait4(child, 0)
    answer = dict(json.loads(line) for line in text.splitlines())
    used = usage.ru_utime + usage.ru_stime
    if late:
        answer["failed"] = f"no verdict in {about['patience']:g} s, of which it had {used:.2g} s"
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in FROM_OUTSIDE:
        answer["failed"] = f"something ended it by signal {os.WTERMSIG(status)}"
    else:
        answer["spent"] = status != 0
    return answer


def _wait(said: IO[bytes], questions: IO[bytes], patience: float) -> bool:
    """Wait until a child closes its pipe; say whether it is late. Ends with the owner."""
    end = time.monotonic() + patience
    poll = select.poll()
    poll.register(said, 0)  # that it hangs up, not what it says: a pipe holds all of it
    poll.register(questions, select.POLLIN)
    while (left := end - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            if number == said.fileno():
                return False
            os._exit(0)  # the owner is gone: it asks one question at a time. The child follows
    return True


def _child(
    minerva: ModuleType, question: dict[str, Any], room: int, seconds: float, sink: int
) -> None:
    """Answer within a budget; never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of processor time, whatever computes

        def say(who: str, accepts: bool) -> None:
            os.write(sink, json.dumps([who, accepts]).encode() + b"\n")

        _judge(minerva, question, say)
        code = 0
    except BaseException:  # noqa: S110  # out of memory or stack: the exit code says so
        pass
    finally:
        os._exit(code)


def _nobody(who: str, accepts: bool) -> None:
    """Hear nothing."""


def _judge(minerva: ModuleType, question: dict[str, Any], say: Callable[[str, bool], None]) -> None:
    """Say whether math-verify, lm-eval's literal chain and lm-eval's `is_equiv` accept an answer.

    In this order, by what they cost, and each as soon as it is known. ``question["literal"]`` is
    the answer and the reference as lm-eval would have them; with ``question["answer"]`` None, the
    literal chain alone is asked.
    """
    is_equiv = functools.cache(minerva.is_equiv)  # it is mostly asked the same twice
    answer, reference, literal = (question[key] for key in ("answer", "reference", "literal"))
    if answer is not None:
        say("math_verify", _verifies(minerva, answer, reference))
    text = f"Final Answer: The final answer is ${literal[0]}$. I hope it is correct."
    found = minerva.get_unnormalized_answer(text)
    one, other = map(minerva.normalize_final_answer, (found, literal[1]))
    say("literal", found != "[invalidanswer]" and bool(is_equiv(one, other)))
    if answer is not None:
        one, other = map(minerva.normalize_final_answer, (answer, reference))
        accepts = bool(is_equiv(one, other)) and (one == other or _reads_whole(minerva, one))
        say("minerva", accepts)


def _reads_whole(minerva: ModuleType, text: str) -> bool:
    """Say whether SymPy's parser reads all of it; without being asked it reads a beginning."""
    try:
        minerva.parse_latex(text, strict=True)
    except Exception:  # whatever a parser raises, it could not
        return False
    return True


def _verifies(minerva: ModuleType, answer: str, reference: str) -> bool:
    """Say whether math-verify accepts an answer; its own limits of time are off, for ours."""
    boxes = (f"\\boxed{{{text}}}" for text in (reference, answer))
    try:
        gold, target = (minerva.parse(box, parsing_timeout=None) for box in boxes)
        return bool(minerva.verify(gold, target, timeout_seconds=None))
    except MemoryError:
        raise
    except Exception:  # whatever it cannot read, it does not accept
        return False


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the owner is gone
        main()
