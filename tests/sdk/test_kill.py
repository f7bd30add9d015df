"""Twenty kills, anywhere: the run that goes on each time is the run that was never stopped."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import isentrope
from isentrope import Run
from tests.sdk.test_resume import TINY, left_behind

KILLS = 20
SETTINGS = {**TINY, "iterations": 6 * KILLS, "checkpoint_every": 1}


def train(folder: Path) -> None:
    """Begin, or go on where the last one was killed."""
    if (folder / "config.toml").exists():
        isentrope.train(resume=folder)
    else:  # killed before there was a run
        shutil.rmtree(folder, ignore_errors=True)
        isentrope.train(SETTINGS, out=folder)


def written(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def drafts(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoints/.draft-0*"))


def wait_until(process: Any, there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while process.is_alive() and not there():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    """Every other kill is aimed at a checkpoint in the writing."""
    rng = random.Random(0)
    whole = isentrope.train(SETTINGS, out=tmp_path / "whole")
    folder = tmp_path / "killed"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isentrope.trainer"])
    caught = 0
    for kill in range(KILLS):
        lines = written(folder) + rng.randint(0, 2)
        process = context.Process(target=train, args=(folder,))
        process.start()
        if kill % 2:
            wait_until(process, lambda: written(folder) >= lines and drafts(folder))  # noqa: B023
        else:
            wait_until(process, lambda: written(folder) >= lines)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.2))
        assert process.is_alive(), "the run ended before it was killed often enough"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        caught += bool(drafts(folder))
    assert caught, "no kill met a checkpoint in the writing"
    train(folder)
    assert left_behind(whole) == left_behind(Run(folder))
