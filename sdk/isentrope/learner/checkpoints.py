"""Checkpoints: everything of a run that moves, so that a kill at any moment costs only time.

A checkpoint is written beside the others under a draft's name, checksummed, flushed to the disk
and renamed: it is there whole, or not at all. Tensors are written by torch.distributed.checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

import attrs
from attrs import define, frozen
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from isentrope.algorithms import AlgorithmState
from isentrope.errors import TrainingError
from isentrope.learner.learner import Learner

KEPT = 2
"""The newest and the one before it, should the newest turn out damaged."""
_PROGRESS, _SUMS, _DRAFT = "progress.json", "sha256.json", ".draft-"


@define
class Progress:
    """Where a run stands, tensors aside. All randomness is derived from seeds and `iteration`."""

    state: AlgorithmState
    iteration: int = 0
    """The next to run."""
    version: int = 0
    """Publications so far."""
    idle: int = 0
    """Iterations in a row with nothing to learn from."""
    best: float | None = None
    """Highest share of successes that an evaluation found."""


@frozen
class CheckpointFolder:
    """The checkpoints of one run."""

    path: Path

    def save(self, learner: Learner, progress: Progress) -> None:
        """Write a checkpoint; older ones than `KEPT` go.

        Raises `OSError` where it cannot be written; the ones before stay.
        """
        self.path.mkdir(exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=self.path, prefix=_DRAFT))
        try:
            _write(draft, learner, progress)
            target = self.path / f"{progress.iteration:08d}"
            shutil.rmtree(target, ignore_errors=True)  # a damaged one that was run over again
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        _flush(self.path)
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old)

    def load(self, learner: Learner, progress: Progress) -> list[str]:
        """Bring learner and progress to the newest whole checkpoint; without one, leave them.

        Returns a sentence for each damaged checkpoint that was passed over.

        Raises `TrainingError` where there are checkpoints, and every one is damaged.
        """
        for draft in self.path.glob(f"{_DRAFT}*"):
            shutil.rmtree(draft)  # a kill left it, and nobody else writes here
        damaged = []
        for folder in self._newest_first():
            if problem := _problem(folder):
                damaged.append(f"Checkpoint {folder} is damaged ({problem}).")
                continue
            _read(folder, learner, progress)
            return [f"{sentence} Going on from {folder.name}." for sentence in damaged]
        if damaged:
            raise TrainingError(f"{' '.join(damaged)} None is left to resume from.")
        return []

    def _newest_first(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted((p for p in self.path.iterdir() if p.name.isdigit()), reverse=True)


def _write(folder: Path, learner: Learner, progress: Progress) -> None:
    with _quiet_single_process():
        try:
            save(_tensors(learner), checkpoint_id=folder, no_dist=True)
        except CheckpointException as error:  # a full disk, say
            raise OSError(str(error).strip().splitlines()[-1]) from error
    (folder / _PROGRESS).write_text(json.dumps(attrs.asdict(progress)), encoding="utf-8")
    sums = {file.name: _digest(file) for file in _files(folder)}
    (folder / _SUMS).write_text(json.dumps(sums), encoding="utf-8")
    for path in (*_files(folder), folder):
        _flush(path)


def _read(folder: Path, learner: Learner, progress: Progress) -> None:
    with _quiet_single_process():
        load(_tensors(learner), checkpoint_id=folder, no_dist=True)
    data = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
    progress.state = AlgorithmState(**data.pop("state"))
    for name, value in data.items():
        setattr(progress, name, value)


def _tensors(learner: Learner) -> dict[str, Any]:
    """Return the trained parameters and their optimizer state, by name; loading fills them."""
    named = {n: p for n, p in learner.policy.named_parameters() if p.requires_grad}
    return {
        "policy": {name: parameter.detach() for name, parameter in named.items()},
        "optimizer": {name: dict(learner.optimizer.state[p]) for name, p in named.items()},
    }


def _problem(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None: nothing."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{_SUMS} cannot be read"
    for name, digest in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} is not what was written"
    return None


@contextmanager
def _quiet_single_process() -> Iterator[None]:
    """Hold back torch's warning that there is one process: we know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's entries, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
