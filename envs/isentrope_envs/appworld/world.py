"""One world of the engine's, and the processes around it.

Three processes to a worker::

    this one    holds the databases and answers requests for documented APIs; runs no policy's code
    the agent   a fork of it for each episode, runs the policy's code, shut in, without databases
    the judge   an earlier fork of it, alone reads the ground truth; sees what this one has saved

The engine allows one world to a process, stops its clocks, and patches its builtins: this module is
for processes that do nothing else.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from appworld import AppWorld as Engine
from appworld import update_root
from appworld.apps.model_lib import CachedDBHandler

from isentrope import Cell, ConfigError, NotebookLimits
from isentrope_envs.appworld import agent
from isentrope_envs.appworld.channel import Channel, leave, now
from isentrope_envs.appworld.judge import Judge
from isentrope_envs.appworld.place import Place
from isentrope_envs.appworld.routes import LARGEST, MOST, REFUSED, UNSAYABLE, Routes, size

SUPERVISOR = ("first_name", "last_name", "email", "phone_number")
REQUESTS = 1000
"""API calls of a cell; the engine's own limit."""
LONGEST_CELL = 1 << 20
"""Characters of a cell's output that leave the agent's process."""
MARGIN = 2.0
"""Seconds that the engine has to end a cell by itself, before its process is killed."""
HOME = "home-"
"""How the folders of agents begin."""
ORPHANS = 2.0
"""Seconds to go on killing what an agent has left."""
PR_SET_CHILD_SUBREAPER = 36
START = 60.0
"""Seconds for an agent's process to shut itself in."""


class LocalWorld:
    """A task's world on this machine; its code runs in a process of its own."""

    def __init__(
        self,
        task: str,
        limits: NotebookLimits,
        routes: Routes,
        judge: Judge,
        keep: Path | None = None,
    ) -> None:
        self._limits, self._routes, self._judge, self._keep = limits, routes, judge, keep
        self._folder = Path(tempfile.mkdtemp(prefix="isentrope-appworld-"))
        os.chmod(self._folder, 0o711)  # noqa: S103  # the agent's own folder is in it
        os.environ["IPYTHONDIR"] = str(self._folder)
        self.engine = Engine(
            task,
            experiment_name=str(self._folder),  # a path of its own, which the engine takes as well
            load_ground_truth=False,
            timeout_seconds=max(1, int(limits.seconds)),
            max_interactions=10**9,  # turns are counted by us: the engine leaves some out
        )
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.failed = self._asked = 0
        """Cells that raised, or ended their process; bytes of requests that were let through."""
        self._agent: tuple[int, Channel] | None = None

    @property
    def about(self) -> dict[str, str]:
        """Its instruction, its date, and who asks."""
        task = self.engine.task
        who = {name: str(getattr(task.supervisor, name)) for name in SUPERVISOR}
        date = f"{task.datetime:%A, %d %B %Y, %H:%M}"
        return {"instruction": task.instruction, "date": date, **who}

    @property
    def running(self) -> bool:
        """Whether there is an agent, with what earlier cells left in it."""
        return self._agent is not None

    @property
    def completed(self) -> bool:
        """Whether the task was declared to be done; not whether it was done right."""
        return bool(self.engine.task_completed())

    def run(self, code: str, seconds: float | None = None) -> Cell:
        """Run a cell; the engine says what it printed, or how it failed."""
        if self._agent is None:
            self._agent = self._fork_agent()
        _, channel = self._agent
        allowed = self._limits.seconds if seconds is None else min(seconds, self._limits.seconds)
        until = now() + allowed + MARGIN
        try:
            channel.send({"code": code}, until)
            answer = self._serve(channel, until)
            output, ran = answer["output"], bool(answer["ran"])
            output = output.encode(errors="replace").decode()  # files hold no half characters
        except TimeoutError:
            self._lose_agent()
            return Cell("", ran=False, died=f"The code took longer than {allowed:.0f} s.")
        except (OSError, ValueError, KeyError, AttributeError, RecursionError):
            self._lose_agent()
            return Cell("", ran=False, died="The code ended its process.")
        self.failed += not ran
        said = code.encode(errors="replace").decode()
        self.engine.environment_io.append({"input": said, "output": output.rstrip()})
        done = ({"completed": True},) if self.completed else ()
        return Cell(output, ran, done)

    def judge(self) -> dict[str, Any]:
        """Return the engine's own verdict on the databases as they are; raises `GraderError`."""
        self._end_agent()
        self._save()
        return self._judge.verdict(self.engine.task_id, self._folder)

    def close(self) -> None:
        """End the agent, and leave the world, if that was not done."""
        self._end_agent()
        if self._folder.exists():
            if self._keep is not None:
                self._save()
                self._keep.mkdir(parents=True, exist_ok=True)
                kept = tempfile.mkdtemp(prefix=f"{self.engine.task_id}-", dir=self._keep)
                shutil.copytree(self.engine.output_directory, kept, dirs_exist_ok=True)
            self.engine.close()
            Engine.close_all()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _fork_agent(self) -> tuple[int, Channel]:
        home = Path(tempfile.mkdtemp(prefix=HOME, dir=self._folder))
        ours, theirs = Channel.pair()
        process = os.fork()
        if process == 0:
            try:
                CachedDBHandler.reset()
                agent.live(self.engine, theirs, self._about(home))
            finally:
                leave(1)
        theirs.close()
        try:
            held = ours.receive(now() + START)["held"]
        except (OSError, ValueError, KeyError) as error:
            _end(process)
            raise OSError(f"The agent's process did not start: {error}.") from error
        lacking = [name for name in ("files", "network") if not held[name]]
        if lacking and not self._limits.unprotected:
            _end(process)
            raise ConfigError(
                f"This machine cannot shut {' and '.join(lacking)} off from a policy's code "
                "(Landlock needs Linux 5.13): set unprotected = true to run it all the same."
            )
        return process, ours

    def _about(self, home: Path) -> dict[str, Any]:
        limits = self._limits
        return {
            "folder": str(home),
            "output": LONGEST_CELL,
            "limits": {
                "memory_bytes": limits.memory_mib * 2**20,
                "cpu_seconds": limits.cpu_seconds,
                "file_bytes": 0,  # the engine's guard refuses files, too
                "processes": limits.processes,
            },
        }

    def _serve(self, channel: Channel, until: float) -> dict[str, Any]:
        """Answer requests until the agent has an output, and return that."""
        for _ in range(REQUESTS + 1):
            message = channel.receive(until)
            if "method" not in message:
                return message
            answer = {**self._answer(message), "number": message.get("number")}
            channel.send(answer, until)
        raise ValueError("too many requests")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of the agent's, whatever it is."""
        method, url, data = (request.get(name) for name in ("method", "url", "data"))
        if not self._routes.allow(method, url, data):
            return REFUSED
        asked = size(str(url), data or {})
        if asked > LARGEST or self._asked + asked > MOST:
            return UNSAYABLE
        self._asked += int(asked)
        try:
            self._log(str(method), f"/{url}", dict(data or {}))
            send = getattr(self.engine.requester.client, str(method))
            response = send(url, follow_redirects=False, **dict(data or {}))
            return {"status": response.status_code, "text": response.text}
        except Exception as error:  # an API's own, which in the engine's shell the code would see
            return {"status": 500, "text": f"{type(error).__name__}: {error}"}

    def _log(self, method: str, url: str, data: dict[str, Any]) -> None:
        """Have the engine's tracker write down a call as it does those of its own shell."""
        sent = {**(data.get("params") or {}), **(data.get("json") or data.get("data") or {})}
        token = (data.get("headers") or {}).get("Authorization", "")
        if token:
            sent["access_token"] = token.removeprefix("Bearer ")
        self.engine.requester.reset_request_count()
        self.engine.requester.request_tracker.add_request(method=method, url=url, data=sent)

    def _save(self) -> None:
        """Write databases and logs, as the engine does after every cell."""
        self.engine._save_state(self.engine.output_db_home_path_on_disk)
        with suppress(OSError, ValueError):  # a log decides nothing
            self.engine.save_logs()

    def _lose_agent(self) -> None:
        self.failed += 1
        self._end_agent()

    def _end_agent(self) -> None:
        if self._agent is not None:
            process, channel = self._agent
            self._agent = None
            channel.close()
            _end(process)
            self._end_orphans()
            for home in self._folder.glob(f"{HOME}*"):
                shutil.rmtree(home, ignore_errors=True)

    def _end_orphans(self) -> None:
        """Kill what the agent has left, which comes to this process once its parent is gone."""
        until = now() + ORPHANS
        while now() < until and (left := _children() - {self._judge.process}):
            for orphan in left:
                _end(orphan)


def _children() -> set[int]:
    own = os.getpid()
    try:
        words = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    except OSError:  # a kernel without that list: the keeper ends them, with the worker
        return set()
    return set(map(int, words))


def _end(process: int) -> None:
    with suppress(OSError):
        os.killpg(process, signal.SIGKILL)
    with suppress(OSError):
        os.kill(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process, 0)


def warm_up(place: Place) -> None:
    """Open a world and leave it: the first one of a process takes seconds, and forks inherit that.

    Raises `ConfigError` where there are no tasks.
    """
    tasks = sorted(path.name for path in (place.agent / "data" / "tasks").glob("*_*"))
    if not tasks:
        raise ConfigError(f"There are no tasks in {place.agent}: run isentrope appworld install.")
    with tempfile.TemporaryDirectory(prefix="isentrope-appworld-") as folder:
        os.environ.update(IPYTHONDIR=folder, APPWORLD_CACHE=str(place.cache))
        update_root(str(place.agent))  # from here on: the engine remembers paths
        world = Engine(tasks[0], experiment_name=folder, load_ground_truth=False)
        world.execute("print(1)")
        world.close()
        Engine.close_all()
