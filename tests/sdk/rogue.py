"""An environment that does to its process whatever an action says."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from isentrope import GraderError, Task, TaskSet, TextEnv


class Rogue(TextEnv):
    """``step("name argument")`` calls the method of that name."""

    def __init__(self, refuse: str = "", slow: float = 0.0) -> None:
        if refuse:
            raise RuntimeError(refuse)
        time.sleep(slow)
        self.tasks = TaskSet({"train": [Task("a"), Task("b")]})
        self.closed = Path(os.devnull)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        drawn = (self.np_random.integers(1000), random.random(), np.random.rand())
        return str(drawn), info

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        name, _, argument = action.partition(" ")
        said = getattr(self, name)(argument)
        reward, info = 1.0, {"success": True, "own": object(), "metrics": {"n": np.float32(2)}}
        if name == "nan":
            reward = float("nan")
        return str(said), reward, name != "wait", False, info

    def close(self) -> None:
        if self.closed != Path(os.devnull):
            self.closed.write_text("closed")

    def say(self, text: str) -> str:
        return text

    wait = nan = say

    def pid(self, _: str) -> int:
        return os.getpid()

    def temporary(self, _: str) -> str:
        folder = Path(tempfile.mkdtemp())
        (folder / "file").write_text("left behind")
        return str(folder)

    def hang(self, _: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)

    def spin(self, _: str) -> None:
        while True:
            pass

    def oops(self, text: str) -> None:
        raise ValueError(text)

    def leave(self, code: str) -> None:
        print("last words")
        sys.stdout.flush()
        os._exit(int(code))

    def quit(self, _: str) -> None:
        raise SystemExit("enough")

    def fault(self, _: str) -> None:
        ctypes.string_at(0)

    def memory(self, gib: str) -> int:
        return len(bytearray(int(float(gib) * 2**30)))

    def grade(self, _: str) -> None:
        raise GraderError("the grader broke")

    def printing(self, megabytes: str) -> str:
        for _ in range(int(megabytes)):
            print("x" * 2**20)
        return sys.stdin.read()

    def bomb(self, _: str) -> int:
        """Start as many processes as it may."""
        for count in range(10_000):
            try:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            except BlockingIOError:
                return count
        return 10_000

    def fork(self, _: str) -> str:
        if os.fork() == 0:
            raise SystemExit(0)
        time.sleep(0.2)
        return "parent"

    def kill(self, number: str) -> None:
        os.kill(os.getpid(), int(number))

    def threads(self, _: str) -> int:
        for count in range(10_000):
            try:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            except RuntimeError:
                return count
        return 10_000

    def daemon(self, file: str) -> str:
        """Leave a process behind that has left its group, and its parent."""
        if os.fork() == 0:
            os.setsid()
            if (own := os.fork()) == 0:
                time.sleep(60)
                os._exit(0)
            Path(file).write_text(str(own))
            os._exit(0)
        while not Path(file).exists() or not Path(file).read_text():
            time.sleep(0.01)
        os.wait()
        return Path(file).read_text()

    def run(self, command: str) -> str:
        found = subprocess.run(command, shell=True, capture_output=True, text=True)
        return found.stdout.strip()

    def alarm(self, _: str) -> str:
        """Have a signal end a wait: only in a main thread."""

        def ring(*_: object) -> None:
            raise TimeoutError("ring")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            time.sleep(5)
        except TimeoutError as error:
            return str(error)
        return "slept"

    def closing(self, file: str) -> str:
        self.closed = Path(file)
        return file

    def disturb(self, _: str) -> None:
        random.seed(0)
        np.random.seed(0)  # as it should not

    def garble(self, _: str) -> None:
        """Write into the socket that answers go through."""
        for name in os.listdir("/proc/self/fd"):
            if "socket" in os.readlink(f"/proc/self/fd/{name}"):
                os.write(int(name), b"\x00\x00\x00\x04null")

    def long(self, size: str) -> str:
        return "x" * int(size)

    def surrogate(self, _: str) -> str:
        return "\ud800 \x00 🜂"
