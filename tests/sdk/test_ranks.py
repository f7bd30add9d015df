"""Several ranks, each a process: one gradient, one report, one policy."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from isentrope import Run, TrainingError
from isentrope.learner.ranks import Ranks, _meet
from tests.sdk.ranks_at_work import CASES, work
from tests.sdk.test_resume import TINY, lasting, wait_for_lines
from tests.sdk.test_workers import of_this_process

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(size: int, folder: Path, *command: object, **only: Any) -> list[subprocess.Popen[str]]:
    """Start the ranks of a command, as torchrun does; what they print goes to files.

    only: environment variables of the last rank.
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = []
    for rank in range(size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (only if rank == size - 1 else {})
        with (folder / f"{rank}.txt").open("w") as file:
            started.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    env=shared | own,
                    cwd=ROOT,
                    text=True,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def wait(processes: list[subprocess.Popen[str]], folder: Path) -> list[str]:
    """Return what the ranks printed, once all have ended; none may hang."""
    try:
        for process in processes:
            process.wait(timeout=300)
    finally:
        for process in processes:
            process.kill()
    return [(folder / f"{rank}.txt").read_text() for rank in range(len(processes))]


def succeed(size: int, folder: Path, *command: object) -> list[str]:
    processes = launch(size, folder, *command)
    printed = wait(processes, folder)
    assert [0] * size == [p.returncode for p in processes], "\n".join(printed)
    return printed


@pytest.fixture(scope="module", params=[1, 2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found, case by case."""
    folder = tmp_path_factory.mktemp("ranks")
    succeed(request.param, folder, "-m", "tests.sdk.ranks_at_work", folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process finds that has never heard of ranks."""
    return {case: work(case, Ranks()) for case in CASES if case != "bfloat16"}


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("case", [c for c in CASES if c != "bfloat16"])
def test_the_gradient_is_that_of_one_process(ranks: Any, alone: Any, case: str) -> None:
    expected = alone[case]
    for found in (rank[case] for rank in ranks):
        assert expected["gradients"].keys() == found["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
        for key in ("loss", "grad_norm", "effective", "tokens", "diagnostics"):
            assert pytest.approx(expected[key], rel=1e-4, abs=1e-6) == found[key]
        for key in ("logp", "step_logp", "logp_after"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=2e-5)
        if "adapters" in case:  # switched off, they leave the policy that training began with
            start = torch.cat(found["start"])
            torch.testing.assert_close(start, expected["logp"], rtol=1e-5, atol=2e-5)
    assert expected["grad_norm"] > 1e-3
    assert (expected["logp_after"] - expected["logp"]).abs().max() > 1e-4


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("case", list(CASES))
def test_all_ranks_report_the_same_and_hold_the_same_policy(ranks: Any, case: str) -> None:
    first, *others = (rank[case] for rank in ranks)
    for other in others:
        for key in ("loss", "grad_norm", "tokens", "effective", "diagnostics"):
            assert first[key] == other[key]
        for key in ("weights", "gradients"):
            assert all(torch.equal(x, other[key][name]) for name, x in first[key].items())


@pytest.mark.xdist_group("ranks")
def test_in_bfloat16_the_gradient_is_near_and_log_probs_are_not_rounded(
    ranks: Any, alone: Any
) -> None:
    for found in (rank["bfloat16"] for rank in ranks):
        exact = alone["whole"]
        assert torch.float32 == found["logp"].dtype
        assert not torch.equal(found["logp"], found["logp"].bfloat16().float())
        error = (found["logp"] - exact["logp"]).abs().max()
        assert 1e-4 < error < 0.3
        for name, gradient in found["gradients"].items():
            assert torch.float32 == gradient.dtype
            apart = (gradient - exact["gradients"][name]).norm()
            assert apart < 0.2 * exact["gradients"][name].norm() + 1e-3


TRAIN = ("-m", "isentrope", "train")


def train(size: int, tmp_path: Path, *arguments: object) -> str:
    """Train on so many ranks; return what the first one printed. The others say nothing."""
    first, *others = succeed(size, tmp_path, *TRAIN, *arguments)
    assert all(not printed.strip() for printed in others)
    return first


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    learner = {"lora": {"r": 2, "alpha": 4.0}, "dtype": "bfloat16"}
    path.write_text(tomli_w.dumps({**TINY, "iterations": 3, "learner": learner}))
    return path


@pytest.mark.slow
def test_a_run_goes_on_with_more_ranks_and_with_fewer(tmp_path: Path, config: Path) -> None:
    """On one, on four: the policy is that of two, and so is what it samples next."""
    folder = tmp_path / "run"
    printed = train(2, tmp_path, config, "--out", folder)
    assert f"Run folder: {folder}" in printed
    policy = (folder / "policy" / "model.safetensors").read_bytes()
    plain = AutoModelForCausalLM.from_pretrained(folder / "policy")
    assert torch.float32 == plain.dtype  # merged, and not rounded by who loads it
    nexts = []
    for size in (1, 4):
        copy = tmp_path / f"on-{size}"
        shutil.copytree(folder, copy)
        train(size, tmp_path, "--resume", copy)
        assert policy == (copy / "policy" / "model.safetensors").read_bytes()
        train(size, tmp_path, "--resume", copy, "--set", "iterations=4")
        episodes = [e for e in Run(copy).episodes if e["iteration"] == 3]
        assert episodes
        kept = Run(copy).tokens(3)
        assert kept is not None
        assert Run(copy).metrics[3]["episodes_learnt"] == (kept["step"] >= 0).sum()  # on any rank
        nexts.append((episodes, kept))
    (alone, one), (together, four) = nexts
    assert alone == together
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_allclose(one[name], four[name], rtol=0.1, atol=0.1)  # bfloat16


@pytest.mark.slow
def test_a_run_on_two_ranks_that_is_killed_goes_on_to_the_bit(tmp_path: Path, config: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    often = ("--set", "checkpoint_every=1")
    train(2, tmp_path, config, "--out", whole, *often)
    processes = launch(2, tmp_path, *TRAIN, config, "--out", parts, *often)
    wait_for_lines(parts, 2, processes[0])
    for process in processes:
        process.kill()
        process.wait()
    train(2, tmp_path, "--resume", parts)
    assert lasting(Run(whole)) == lasting(Run(parts))
    for name in ("policy/model.safetensors", "policy/adapter/adapter_model.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    for file in (whole / "tokens").iterdir():
        assert file.read_bytes() == (parts / "tokens" / file.name).read_bytes()


def fail(tmp_path: Path, *arguments: object, start: tuple[str, ...] = TRAIN, **only: str) -> str:
    """Have a run on two ranks fail: all end, nobody shows a traceback; return all they said."""
    processes = launch(2, tmp_path, *start, *arguments, **only)
    said = "".join(wait(processes, tmp_path))
    assert all(process.returncode for process in processes), said
    assert "Traceback" not in said
    assert 1 == said.count("error"), said
    return said


PRELUDE = (
    "import os, runpy; exec(os.environ.get('BEFORE', ''));"
    "runpy.run_module('isentrope', run_name='__main__')"
)
ELSEWHERE = "os.chdir(os.environ['HOME'])"
DISK_FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
ALONE = """
from isentrope import TrainingError
from isentrope.learner.learner import Learner
def step(*_, **__):
    raise TrainingError("This one only.")
Learner.step = step
"""
NO_NETWORK = """
from isentrope import ConfigError
from isentrope.learner import ranks
def choose_interface(hosts):
    raise ConfigError("No network." if hosts == 1 else "They are on one.")
ranks.choose_interface = choose_interface
"""
KILLED = """
from isentrope.learner.learner import Learner
Learner.step = lambda *_, **__: os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "sentence", "iterations"),
    [
        (ELSEWHERE, "Rank 1 does not see", 0),
        (DISK_FULL, "cannot be written", 1),
        (ALONE, "On rank 1: This one only.", 0),
        (KILLED, "Another rank is gone without a word", 0),
    ],
    ids=["elsewhere", "disk full", "alone", "killed"],
)
def test_what_one_rank_meets_stops_them_all(
    tmp_path: Path, config: Path, before: str, sentence: str, iterations: int
) -> None:
    out = os.path.relpath(tmp_path / "run", ROOT)
    options = (config, "--out", out, "--set", "checkpoint_every=1")
    said = fail(
        tmp_path, *options, start=("-c", PRELUDE, "train"), BEFORE=before, HOME=str(tmp_path)
    )
    assert sentence in said
    if iterations:  # what was written can be gone on with
        train(2, tmp_path, "--resume", tmp_path / "run")
        assert len(Run(tmp_path / "run").metrics) >= iterations


@pytest.mark.slow
def test_nobody_waits_for_a_rank_that_failed_before_they_met(tmp_path: Path, config: Path) -> None:
    start, out = ("-c", PRELUDE, "train"), tmp_path / "run"
    said = fail(tmp_path, config, "--out", out, start=start, BEFORE=NO_NETWORK)
    assert "On rank 1: No network." in said
    assert not out.exists()


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isentrope.learner.ranks.LATE", 0.1)
    store = dist.HashStore()
    store.set("here/1", "")
    with pytest.raises(TrainingError, match=r"Of 4 ranks these have not come in .*: 2, 3. Look at"):
        _meet(store, "here", 0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_under_torchrun_too_a_rank_that_is_killed_is_missed(
    tmp_path: Path, config: Path, victim: int
) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    process = subprocess.Popen(
        [*torchrun, "--master-port", str(free_port()), "-m", "isentrope", "train", str(config),
         "--out", str(tmp_path / "run"), "--set", "iterations=999"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for_lines(tmp_path / "run", 2, process)
    (killed,) = [
        child
        for child in of_this_process()
        if f"RANK={victim}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    ]
    os.kill(killed, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode
    assert 1 == said.count(" is gone"), said
    assert len(Run(tmp_path / "run").metrics) >= 2


@pytest.mark.slow
def test_what_all_ranks_find_wrong_is_said_once(tmp_path: Path, config: Path) -> None:
    assert "No prompt left room" in fail(tmp_path, config, "--set", "rollout.context=2")


@pytest.mark.slow
def test_what_the_first_rank_finds_wrong_stops_the_others(tmp_path: Path, config: Path) -> None:
    folder = tmp_path / "run"
    train(1, tmp_path, config, "--out", folder)
    with Run(folder).locked():
        said = fail(tmp_path, "--resume", folder, "--set", "iterations=4")
    assert "Another process is training in" in said
