"""The process in which a policy's code runs: the engine's shell, shut in, without any database.

It is a fork of the world's process, made before any ground truth was read, and its calls of APIs go
back to that process. So whatever its code does to this process, it changes nothing that is judged
except by those calls.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from typing import Any

from isentrope import confine
from isentrope_envs.appworld.channel import Channel, leave

whose = os.getpid
"""The real one, whatever a policy's code makes of the module."""
READ = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime")


class FarClient:
    """Sends requests to the world's process, as the engine's own client would answer them."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._number = channel, 0

    def __getattr__(self, method: str) -> Any:
        def call(url: str, **data: Any) -> FarResponse:
            self._number += 1
            number = self._number
            self._channel.send({"method": method, "url": url, "data": data, "number": number})
            while (answer := self._channel.receive()).get("number") != number:
                pass  # one that the engine's own deadline interrupted
            return FarResponse(answer)

        return call


class FarResponse:
    """What came back; of an HTTP response's attributes those that the engine reads."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.status_code: int = answer["status"]
        self.text: str = answer["text"]

    def json(self) -> Any:
        """Return its body."""
        return json.loads(self.text)


def live(world: Any, channel: Channel, about: dict[str, Any]) -> None:
    """Run the code that comes, in a world of the engine's, until the other end is closed.

    about: what `confine` is told, ``limits`` and ``folder``; and ``output``, the most characters.
    """
    _let_go_of_all_but(channel)
    _scrub(about["folder"])
    world.requester.client = FarClient(channel)
    world._save_state = world.save_logs = lambda *_: None  # the world's process does
    held = confine(about["limits"], _own(), about["folder"])
    channel.send({"held": held})
    own = whose()
    while True:
        if (code := channel.receive().get("code")) is None:
            continue  # the answer to a request that was interrupted
        output = world.execute(code)
        if whose() != own:  # a fork of the code's, which comes out here
            leave(1)
        ran = not output.startswith("Execution failed.")
        channel.send({"output": output[: about["output"]], "ran": ran})


def _let_go_of_all_but(channel: Channel) -> None:
    """Close what was inherited: the world's own ways to the run, above all."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    own = channel.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, os.sysconf("SC_OPEN_MAX"))


def _scrub(folder: str) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, HOME=folder, TMPDIR=folder, IPYTHONDIR=folder)
    os.chdir(folder)


def _own() -> list[str]:
    """Return what the engine may still import: the interpreter's library and packages."""
    paths = sysconfig.get_paths()
    return [paths["stdlib"], paths["platstdlib"], sys.prefix, "/dev/urandom", *READ]
