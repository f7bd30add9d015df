"""Training runs in processes of their own, each begun, resumed or left alone as its folder says."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs

import isentrope
from dynamics.studies import TASK, Trial
from isentrope.config import TrainConfig, read_config
from isentrope.structuring import unstructure


class StudyError(Exception):
    """Something that only a person can put right; the runs that are there stay."""


def train_all(trials: Sequence[Trial], out: Path, pool: Executor, workers: int) -> None:
    """Train what is not trained yet; each as soon as the one that it starts from is there.

    Raises `StudyError` where a folder holds another run than its trial's, and at the end, with all
    of them, where runs failed.
    """
    waiting = [t for t in trials if not finished(t, out)]
    print(f"{len(trials) - len(waiting)} runs are there, {len(waiting)} to go.", flush=True)
    for warm in [pool.submit(_warm_up, t) for t in _policies(waiting)]:
        warm.result()  # before runs that would all make the same
    begun, done, failed = time.monotonic(), 0, []
    running: dict[Future[float], Trial] = {}
    while True:
        ready = [t for t in waiting if _ready(t, out)]
        for trial in ready[: 2 * workers - len(running)]:
            waiting.remove(trial)
            running[pool.submit(_train, trial, out)] = trial
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            trial, done = running.pop(future), done + 1
            if (error := future.exception()) is not None:
                failed.append(f"{trial.key}: {error}")
                print(failed[-1], flush=True)
                continue
            left = (time.monotonic() - begun) / 3600 / done * (len(waiting) + len(running))
            print(f"{trial.key}: {future.result():.0f} s; {left:.1f} h left", flush=True)
    if failed or waiting:
        lost = [f"{t.key}: starts from a run that is not there" for t in waiting]
        raise StudyError("\n".join([*failed, *lost]))


def folder(trial: Trial, out: Path) -> Path:
    """Return where a trial's run is."""
    return out / trial.key


def finished(trial: Trial, out: Path) -> bool:
    """Say whether a trial's run has come to its end.

    Raises `StudyError` where the folder holds a run with other settings.
    """
    path = folder(trial, out)
    if not (path / "config.toml").exists():
        return False
    found = attrs.evolve(isentrope.Run(path).config, out=None)
    if found != config(trial, out):
        raise StudyError(f"{path} was trained with other settings: move it away, or delete it.")
    return (path / "policy").is_dir() and not (path / "checkpoints").exists()


def config(trial: Trial, out: Path) -> TrainConfig:
    """Return a trial's configuration."""
    changes: dict[str, Any] = {**trial.settings, "seed": trial.seed}
    if trial.start is None:
        changes["model.seed"] = trial.seed
    else:
        path = folder(trial.start, out) / "best"
        changes["model"] = {"id": "pretrained", "path": str(path)}
    return read_config(TASK, changes)


def fingerprint(*decides: object) -> str:
    """Return a short hash of what decides a record: plain data."""
    return sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:12]


def settings_of(trial: Trial) -> list[object]:
    """Return all that a study says of a trial, and the whole algorithm that its recipe stands for.

    Not the rest of the configuration: an option that is new, and off, makes no record old.
    """
    start = trial.start and trial.start.key
    algorithm = unstructure(config(trial, Path()).algorithm)
    return [TASK, dict(trial.settings), trial.seed, start, algorithm]


def _ready(trial: Trial, out: Path) -> bool:
    return trial.start is None or finished(trial.start, out)


def _policies(trials: Sequence[Trial]) -> list[Trial]:
    """Return one trial for every policy that some of them start from."""

    def policy(trial: Trial) -> tuple[object, ...]:
        return trial.seed, *((k, v) for k, v in trial.settings.items() if k.startswith("model."))

    return list({policy(t): t for t in trials if t.start is None}.values())


def _warm_up(trial: Trial) -> None:
    found = config(trial, Path())
    found.model.build(found.env)


def _train(trial: Trial, out: Path) -> float:
    """Train one; return the seconds it took."""
    begun, path = time.monotonic(), folder(trial, out)
    if (path / "config.toml").exists():
        run = isentrope.train(resume=path)
    else:
        shutil.rmtree(path, ignore_errors=True)  # what was killed before it had a configuration
        run = isentrope.train(config(trial, out), out=path)
    if len(run.metrics) < run.config.iterations:
        raise StudyError("stopped before its end; it goes on when the study is started again")
    (path / "episodes.jsonl").unlink(missing_ok=True)  # 15 MB that nothing will ask for again
    shutil.rmtree(path / "checkpoints")
    return time.monotonic() - begun
