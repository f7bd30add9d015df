"""The process that knows the ground truth: it judges databases that a world has saved.

It is forked before any world is opened and serves many episodes; no policy's code ever runs in it
or in a fork of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from appworld import update_root
from appworld.apps.model_lib import CachedDBHandler
from appworld.evaluator import evaluate_task

from isentrope import GraderError
from isentrope_envs.appworld.channel import Channel, leave, now

SECONDS = 20.0
"""For a verdict."""
PR_SET_PDEATHSIG = 1


class Judge:
    """Asks that process, and starts it again where it is gone."""

    def __init__(self, root: Path) -> None:
        """Fork it; `root` is the engine's root with the ground truth."""
        self._root = root
        self.process, self._channel = self._fork()

    def verdict(self, task: str, outputs: Path) -> dict[str, Any]:
        """Return the engine's verdict on the databases saved under `outputs`.

        Its fields: success, difficulty, num_tests, passes, failures.

        Raises `GraderError` where there is none.
        """
        try:
            until = now() + SECONDS
            self._channel.send({"task": task, "outputs": str(outputs)}, until)
            answer = self._channel.receive(until)
        except (OSError, ValueError) as error:
            self.close()
            self.process, self._channel = self._fork()
            answer = {"error": str(error) or "it took too long"}
        if "error" in answer:
            raise GraderError(f"AppWorld's evaluation of {task}: {answer['error']}")
        verdict: dict[str, Any] = answer["ok"]
        return verdict

    def close(self) -> None:
        """End it."""
        self._channel.close()
        with suppress(OSError):
            os.kill(self.process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.process, 0)

    def _fork(self) -> tuple[int, Channel]:
        ours, theirs = Channel.pair()
        process = os.fork()
        if process == 0:
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                ours.close()
                update_root(str(self._root))
                _serve(theirs)
            finally:
                leave(0)
        theirs.close()
        return process, ours


def _serve(channel: Channel) -> None:
    while True:
        asked = channel.receive()
        CachedDBHandler.reset()  # what it finds in memory it takes for the databases' last state
        try:
            tracker = evaluate_task(asked["task"], asked["outputs"], save_report=False)
            channel.send({"ok": tracker.to_dict()})
        except Exception as error:  # a task's own tests
            channel.send({"error": f"{type(error).__name__}: {error}"})
