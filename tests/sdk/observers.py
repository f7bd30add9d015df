"""Trackers for the tests: one that keeps notes, and some that misbehave in every way."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from attrs import frozen

from isentrope import TrackedRun


@frozen
class Notes:
    """Writes what it is told to ``notes.jsonl`` in its folder."""

    def start(self, run: TrackedRun) -> Scribe:
        scribe = Scribe(run)
        scribe.note(
            start=run.iteration, name=run.name, config=run.flat_config, rank=os.getenv("RANK")
        )
        return scribe


class Scribe:
    def __init__(self, run: TrackedRun) -> None:
        self.file = run.folder / "notes.jsonl"

    def note(self, **about: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(about) + "\n")

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        self.note(iteration=iteration, metrics=dict(metrics))

    def close(self, failed: bool) -> None:
        self.note(failed=failed)


@frozen
class RewindingNotes(Notes):
    rewinds: ClassVar[bool] = True


@frozen
class Rogue:
    """Misbehaves at one of its steps: ``"start"``, ``"log"`` (of iteration 1) or ``"close"``."""

    at: str = "log"
    how: str = "raise"
    seconds: float = 3600.0

    def start(self, run: TrackedRun) -> Misfit:
        misfit = Misfit(self, run)
        misfit.misbehave("start")
        return misfit


class Misfit(Scribe):
    def __init__(self, config: Rogue, run: TrackedRun) -> None:
        super().__init__(run)
        self.config = config

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        if iteration == 1:
            self.misbehave("log")
        super().log(iteration, metrics)

    def close(self, failed: bool) -> None:
        self.misbehave("close")
        super().close(failed)

    def misbehave(self, step: str) -> None:
        if step != self.config.at:
            return
        match self.config.how:
            case "raise":
                raise RuntimeError("the network\nis gone")
            case "exit":
                sys.exit("enough")
            case "die":
                os._exit(7)
            case "hang":
                time.sleep(self.config.seconds)
            case "print":
                print("x" * 1_000_000, flush=True)
            case "meddle":
                random.seed(0)
                np.random.seed(0)
                os.environ["OMP_NUM_THREADS"] = "7"
                os.chdir("/")


@frozen
class Wanting:
    """Says that it cannot work."""

    def check(self) -> None:
        from isentrope import ConfigError

        raise ConfigError("The tracker 'wanting' wants for much.")

    def start(self, run: TrackedRun) -> Scribe:
        raise AssertionError("never called")
