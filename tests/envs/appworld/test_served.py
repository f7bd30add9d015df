"""AppWorld's own server, as it is, and what we make of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isentrope
from isentrope import ConfigError, GraderError
from isentrope_envs.appworld.served import AppWorldServed, ServedWorld, ServerError

SERVE = """
import sys, uvicorn
from appworld.serve.environment import app
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server(appworld: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    (folder / "data").symlink_to(appworld / "full" / "data")
    places = {"APPWORLD_ROOT": str(folder), "APPWORLD_CACHE": str(folder), "HOME": str(folder)}
    process = subprocess.Popen(
        [appworld / "python" / "bin" / "python", "-c", SERVE, str(port)],
        env={**os.environ, **places}, cwd=folder,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    yield url
    process.kill()
    process.wait()


def env_of(server: str, appworld: Path, **options: Any) -> AppWorldServed:
    ids = str(appworld / "full/data/datasets/train.txt")
    return AppWorldServed(urls=[server], tasks={"train": ids}, preset="short", **options)


def turns_of(root: Path, task: str) -> list[str]:
    file = root / "full/data/tasks" / task / "ground_truth/turns.json"
    found: list[str] = json.loads(file.read_text())
    return found


@pytest.mark.slow
def test_it_is_the_local_environment_word_for_word(server: str, appworld: Path) -> None:
    local, served = isentrope.make("appworld", preset="short"), env_of(server, appworld)
    for task in [t.id for t in served.tasks["train"]][:2]:
        for env in (local, served):
            env.reset(seed=0, options={"task": task})
        codes = [
            "print(1",
            "1/0",
            "print(apis.supervisor.show_profile())",
            *turns_of(appworld, task),
        ]
        for code in codes:
            action = f"```python\n{code}\n```"
            here, there = local.step(action), served.step(action)
            assert here == there
        assert here[4]["success"]
    local.close()
    served.close()


@pytest.mark.slow
def test_a_wrong_end_is_a_verdict_and_no_error(server: str, appworld: Path) -> None:
    env = env_of(server, appworld)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(
        "```python\napis.supervisor.complete_task(answer=-7)\n```"
    )
    assert terminated
    assert not info["success"]
    assert reward < 1
    env.close()


@pytest.mark.slow
def test_a_server_is_one_environments_at_a_time(server: str, appworld: Path) -> None:
    one, other = env_of(server, appworld), env_of(server, appworld)
    one.reset(seed=0)
    with pytest.raises(ServerError, match="All 1 servers are taken"):
        other.reset(seed=0)
    one.close()
    other.reset(seed=0)
    other.close()


def test_a_server_that_is_not_there_is_named() -> None:
    env = AppWorldServed(urls=[NOWHERE], tasks={"train": ["a_1"]})
    with pytest.raises(ServerError, match=f"AppWorld's server {NOWHERE} did not answer initialize"):
        env.reset(seed=0)
    env.close()


def test_no_verdict_is_the_graders_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    world = object.__new__(ServedWorld)
    world._url, world._task = NOWHERE, "a_1"
    with pytest.raises(GraderError, match="did not answer evaluate"):
        world.judge()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"tasks": {"train": ["a_1"]}}, "urls must be a list"),
        ({"urls": NOWHERE, "tasks": {"train": ["a_1"]}}, "urls must be a list"),
        ({"urls": [NOWHERE]}, "tasks must say which tasks each split has"),
        ({"urls": [NOWHERE], "tasks": {"train": "/no/file"}}, "tasks.train: /no/file cannot be"),
    ],
)
def test_a_wrong_option_is_one_sentence(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AppWorldServed(**config)
