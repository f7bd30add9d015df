"""The inside of a notebook: runs cells, one after another, in one namespace.

A program of its own, which forks a notebook for each socket that it is sent. It knows no answers,
so that nothing which a cell finds in its process's memory could help it.
"""

from __future__ import annotations

import ast
import gc
import io
import json
import linecache
import os
import random
import signal
import socket
import sys
import traceback
from typing import Any

from isentrope.notebook.confine import confine
from isentrope.workers.shim import receive, send


class Capped(io.TextIOBase):
    """Text that is written, but for what is in the middle of too much of it."""

    def __init__(self, limit: int) -> None:
        self.half = limit // 2
        self.head, self.tail, self.left_out = "", "", 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Keep the first and the last."""
        room = self.half - len(self.head)
        self.head += text[:room]
        rest = self.tail + text[room:]
        self.tail = rest[-self.half :]
        self.left_out += len(rest) - len(self.tail)
        return len(text)

    def text(self) -> str:
        """Return what was kept, with a notice of what was not."""
        notice = f"\n[... {self.left_out} characters left out ...]\n" if self.left_out else ""
        return f"{self.head}{notice}{self.tail}"


def run(code: str, name: str, space: dict[str, Any]) -> bool:
    """Run a cell; print the value of a last expression, or a traceback. Return whether it ran."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), space)  # noqa: S102  # its purpose
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), space)  # noqa: S307
            if value is not None:
                print(repr(value))
    except BaseException as error:  # whatever it raises, is what it prints
        print(trimmed(error), end="")
        return False
    return True


def trimmed(error: BaseException) -> str:
    """Return a traceback without what is not the cell's: this file's frames, long chains."""
    found = traceback.TracebackException.from_exception(error, limit=-12, compact=True)
    found.stack[:] = [frame for frame in found.stack if frame.filename != __file__]
    found.__cause__ = found.__context__ = None
    return "".join(found.format())


def main(control: socket.socket) -> None:
    """Fork a notebook for every socket that comes, until there come no more."""
    gc.freeze()  # what is not looked at after a fork need not be copied
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for notebooks
    while True:
        byte, numbers, _, _ = socket.recv_fds(control, 1, 1)
        if not byte:
            return
        channel = socket.socket(fileno=numbers[0])
        if os.fork() == 0:
            control.close()
            try:
                notebook(channel)
            finally:
                os._exit(0)
        channel.close()


def notebook(channel: socket.socket) -> None:
    """Answer calls until the other end is closed."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    about = receive(channel)
    os.environ["HOME"] = about["folder"]
    os.chdir(about["folder"])
    random.seed(0)
    submitted: list[Any] = []

    def submit(answer: Any) -> None:
        """Hand in an answer; it is judged at the end of the cell."""
        submitted.append(json.loads(json.dumps(answer)))

    held = confine(about["limits"], about["read"], about["folder"])
    send(channel, {"held": held, "process": os.getpid()})
    space: dict[str, Any] = {"__name__": "__main__", "submit": submit}
    number = 0
    while (call := receive(channel)) is not None:
        number += 1
        output = sys.stdout = sys.stderr = Capped(about["output"])
        submitted.clear()
        ran = run(call["code"], f"<cell {number}>", space)
        send(channel, {"output": output.text(), "ran": ran, "submitted": submitted[:1]})


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
