"""`AppWorldServed`: the same tasks over HTTP, from any ``appworld serve environment``.

For engines that run elsewhere: in Docker, on another machine, of another version. A server has one
world at a time, so that each worker takes one for itself. Servers guard nothing: their policies'
code reads what their processes read, ground truth included. Whoever runs one sees to that, and
binds it to loopback: its own command binds to every address, without a password.

Bugs of 0.1.3's server that this works round: it refuses every ``ground_truth_mode``; an evaluation
in which a test fails is an error unless ``suppress_errors`` is said; what it refuses it answers
with status 500.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from isentrope import Cell, ConfigError, GraderError, NotebookLimits, Task, TaskSet
from isentrope_envs.appworld.base import AppWorldEnv

START = 120.0
"""Seconds for a server to open a world."""
MARGIN = 5.0


class ServerError(RuntimeError):
    """A server did not answer, or not what it should."""


class AppWorldServed(AppWorldEnv):
    """Tasks of servers' data.

    urls: of the servers, as many as there are workers. tasks: for each split the ids, or the path
    of a file with one a line. options: see `AppWorldEnv`; memory_mib and unprotected are the
    servers' own business.

    Raises `ConfigError` where there are no tasks, and `ServerError` where every server is taken.
    """

    def __init__(
        self,
        *,
        urls: Sequence[str] = (),
        tasks: Mapping[str, str | Sequence[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(urls, str) or not urls:
            raise ConfigError(
                "urls must be a list of the servers', such as ['http://127.0.0.1:8000']; "
                f"got {urls!r}."
            )
        if not tasks:
            raise ConfigError(
                "tasks must say which tasks each split has: a list of ids, or a file with one a "
                "line, such as AppWorld's own data/datasets/train.txt."
            )
        self.tasks = TaskSet({split: map(Task, _ids(split, ids)) for split, ids in tasks.items()})
        self._urls = tuple(urls)
        self._lease: tuple[str, socket.socket] | None = None

    def open_world(self) -> ServedWorld:
        """Open the task's world, on a server of this environment's own."""
        if self._lease is None:
            self._lease = _take_one(self._urls)
        return ServedWorld(self._lease[0], self.task.id, self.limits)

    def close(self) -> None:
        """Leave the world, and the server to others."""
        super().close()
        if self._lease is not None:
            self._lease[1].close()
            self._lease = None


class ServedWorld:
    """A task's world on a server."""

    def __init__(self, url: str, task: str, limits: NotebookLimits) -> None:
        self._url, self._task, self._limits = url.rstrip("/"), task, limits
        found = self._ask(
            "initialize",
            START,
            experiment_name=f"isentrope_{os.getpid()}",
            timeout_seconds=max(1, int(limits.seconds)),
            max_interactions=10**9,
        )
        date = datetime.fromisoformat(found["datetime"])
        asks = {name: str(value) for name, value in found["supervisor"].items()}
        about = {"instruction": found["instruction"], "date": f"{date:%A, %d %B %Y, %H:%M}"}
        self.about: dict[str, str] = {**about, **asks}
        self.failed = 0
        self.running = True

    def run(self, code: str, seconds: float | None = None) -> Cell:
        """Run a cell there; raises `ServerError` where the server does not survive it."""
        del seconds  # the engine's own limit, which was set when the world was opened
        output = str(self._ask("execute", self._limits.seconds + MARGIN, code=code))
        ran = not output.startswith("Execution failed.")
        self.failed += not ran
        done = ({"completed": True},) if self._ask("task_completed", MARGIN) else ()
        return Cell(output, ran, done)

    def judge(self) -> dict[str, Any]:
        """Return the engine's verdict."""
        try:
            verdict: dict[str, Any] = self._ask("evaluate", START, suppress_errors=True)
        except ServerError as error:
            raise GraderError(str(error)) from error
        return verdict

    def close(self) -> None:
        """Leave the world; a server that fails at that opens the next one all the same."""
        if self.running:
            self.running = False
            with suppress(ServerError):
                self._ask("close", MARGIN)

    def _ask(self, name: str, seconds: float, **arguments: Any) -> Any:
        text = json.dumps({"task_id": self._task, **arguments}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/{name}", text, headers)  # noqa: S310  # a user's
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:  # noqa: S310
                return json.load(response)["output"]
        except urllib.error.HTTPError as error:
            said = error.read(1000).decode(errors="replace")
            message = f"AppWorld's server {self._url} answered {name} with {error.code}: {said}"
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            message = f"AppWorld's server {self._url} did not answer {name}: {error}."
        raise ServerError(message)


def _ids(split: str, ids: str | Sequence[str]) -> list[str]:
    if not isinstance(ids, str):
        return list(ids)
    try:
        return Path(ids).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tasks.{split}: {ids} cannot be read: {error}.") from error


def _take_one(urls: Sequence[str]) -> tuple[str, socket.socket]:
    """Take a server that no other process of this machine has.

    A name in Linux's abstract namespace is held by one process at a time, and let go with it.
    """
    for url in urls:
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0isentrope-appworld {url}"[:100])
        except OSError:
            held.close()
        else:
            return url, held
    raise ServerError(f"All {len(urls)} servers are taken: name one for each worker.")
