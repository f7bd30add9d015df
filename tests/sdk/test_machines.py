"""Ranks on several machines: network namespaces, which share nothing but the disk and a cable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tomli_w

from isentrope import ConfigError, Run
from isentrope.learner import network
from tests.sdk.test_ranks import ROOT
from tests.sdk.test_resume import TINY

PORT = 29500  # every machine has all ports to itself


def ip(*words: object) -> None:
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two machines and a cable between them: 10.9.0.1 and 10.9.0.2. Their names lead nowhere."""
    names = [f"isentrope-{os.getpid()}-{i}" for i in (1, 2)]
    with ExitStack() as made:
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "delete", name)
            ends = [word for i, name in enumerate(names) for word in (f"cable{i}", "netns", name)]
            ip("link", "add", *ends[:3], "type", "veth", "peer", "name", *ends[3:])
            for i, name in enumerate(names):
                ip("-n", name, "addr", "add", f"10.9.0.{i + 1}/24", "dev", f"cable{i}")
                for device in ("lo", f"cable{i}"):
                    ip("-n", name, "link", "set", device, "up")
        except OSError as error:
            give_up = pytest.fail if os.environ.get("CI") else pytest.skip
            give_up(f"no network namespaces can be made here: {error}")
        yield names


def torchrun(machines: list[str], *command: object, master: str) -> list[tuple[int, str]]:
    """Start the same command on every machine; return statuses and what was printed."""
    started = [
        subprocess.Popen(
            [
                "ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run",
                "--nnodes", str(len(machines)), "--node-rank", str(i), "--nproc-per-node", "1",
                "--master-addr", master, "--master-port", str(PORT), *map(str, command),
            ],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i, machine in enumerate(machines)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.terminate()
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]


@pytest.mark.slow
def test_ranks_on_two_machines_find_the_network_between_them(
    machines: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "tiny.toml"
    learner = {"lora": {"r": 2}, "dtype": "bfloat16"}
    config.write_text(tomli_w.dumps({**TINY, "iterations": 2, "learner": learner}))
    train = ("-m", "isentrope", "train", config, "--out", tmp_path / "run")
    first, second = torchrun(machines, *train, master="10.9.0.1")
    assert (0, 0) == (first[0], second[0]), first[1] + second[1]
    assert "Run folder" in first[1]
    assert "Run folder" not in second[1]
    host = "from isentrope.learner.network import this_host; print(this_host())"
    names = {
        subprocess.check_output(["ip", "netns", "exec", one, sys.executable, "-c", host])
        for one in machines
    }
    assert 2 == len(names)
    run = Run(tmp_path / "run")
    assert run.config.iterations == len(run.metrics)


def test_a_first_rank_that_only_its_own_machine_reaches_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(network.GLOO, raising=False)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    network.choose_interface(hosts=1)
    assert network.GLOO not in os.environ
    with pytest.raises(ConfigError, match=r"\(127.0.0.1\) is 127.0.0.1 on this machine, where no"):
        network.choose_interface(hosts=2)
    monkeypatch.setenv(network.GLOO, "lo")
    network.choose_interface(hosts=2)  # whoever names it knows


def test_what_gloo_says_of_ranks_out_of_reach_is_told_with_a_way_out() -> None:
    said = "Gloo connectFullMesh failed with timed out connecting\nand more"
    told = r"do not reach one another \(Gloo.*connecting\): let no"
    with pytest.raises(ConfigError, match=told), network.reaching_all():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="else"), network.reaching_all():
        raise RuntimeError("something else")
