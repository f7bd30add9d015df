"""Checkpoints: everything of a run that moves, so that a kill at any moment costs only time.

A checkpoint is written beside the others under a draft's name, checksummed, flushed to the disk
and renamed: it is there whole, or not at all. torch.distributed.checkpoint writes the tensors, each
rank its shards of them, from copies, while training goes on; any number of ranks can read them.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import torch.distributed as dist
from attrs import define, field
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from isentrope.algorithms import AlgorithmState
from isentrope.errors import ConfigError, TrainingError
from isentrope.learner.learner import Learner
from isentrope.learner.ranks import Ranks
from isentrope.learner.scaling import LossScale

KEPT = 2
"""The newest and the one before it, should the newest turn out damaged."""
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process: we know
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


@define
class CheckpointFolder:
    """The checkpoints of one run, as seen by one of its ranks; the folder is seen by all."""

    path: Path
    ranks: Ranks = field(factory=Ranks)
    _group: Any = field(init=False, default=None)
    _finisher: ThreadPoolExecutor = field(init=False, factory=lambda: ThreadPoolExecutor(1))
    _unfinished: Future[None] | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        """Make a channel for the writers: they speak while the learner does."""
        if self.ranks.size > 1:
            self._group = dist.new_group(backend="gloo")

    def __enter__(self) -> CheckpointFolder:
        """Make sure that all ranks mean the same folder: each writes its shards into it.

        Raises `ConfigError` on all of them where one sees another, or none.
        """
        mark = self.path / f"{_DRAFT}{self.ranks.by_first(uuid4)}"
        self.ranks.by_first(lambda: mark.mkdir(parents=True))
        blind = [rank for rank, sees in enumerate(self.ranks.gather(mark.is_dir())) if not sees]
        self.ranks.by_first(mark.rmdir)
        if blind:
            raise ConfigError(
                f"Rank {blind[0]} does not see {self.path}, into which it would write its part of "
                "checkpoints: all ranks need the same file system, and the same working directory "
                "where `out` is relative."
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no writer behind: what was begun is finished, or has failed."""
        if (unfinished := self._unfinished) is not None:
            unfinished.exception()
        self._finisher.shutdown()

    def save(self, learner: Learner, progress: Progress) -> None:
        """Begin to write a checkpoint, once the one before is finished; see `finish`.

        Raises `OSError` where the one before could not be written; those before it stay.
        """
        self.ranks.by_first(self.finish)
        self.finish()
        draft = self.path / f"{_DRAFT}{progress.iteration:08d}"
        self.ranks.by_first(lambda: draft.mkdir(parents=True))
        about = attrs.asdict(progress)
        about |= {"loss_scale": attrs.asdict(learner.scale), "frozen": learner.policy.frozen}
        text = json.dumps(about)
        written: Any = async_save(_tensors(learner), checkpoint_id=draft, **self._channel())
        target = self.path / f"{progress.iteration:08d}"
        self._unfinished = self._finisher.submit(self._finish, written, draft, target, text)

    def finish(self) -> None:
        """Wait until what was begun is written; older checkpoints than `KEPT` are gone then.

        Raises `OSError` where it cannot be written; the ones before stay.
        """
        if (unfinished := self._unfinished) is not None:
            self._unfinished = None
            unfinished.result()

    def load(self, learner: Learner, progress: Progress) -> list[str]:
        """Bring learner and progress to the newest whole checkpoint; without one, leave them.

        Returns a sentence for each damaged checkpoint that was passed over.

        Raises `TrainingError` where there are checkpoints and every one is damaged, and where they
        are of another model.
        """
        folder, sentences = self.ranks.by_first(self._newest_whole)
        if folder is not None:
            about = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            if about.pop("frozen") != learner.policy.frozen:
                raise TrainingError(
                    "The model's frozen weights are not those that this run began with: adapters "
                    "fit no others. Put the model back as it was (a hub's name needs a revision)."
                )
            try:
                load(_tensors(learner), checkpoint_id=folder, **self._channel())
            except CheckpointException as error:
                reason = str(error).strip().splitlines()[-1]
                raise TrainingError(
                    f"Checkpoint {folder} is whole, but not of this model and learner: {reason}"
                ) from error
            learner.scale = LossScale(**about.pop("loss_scale"))
            progress.state = AlgorithmState(**about.pop("state"))
            for name, value in about.items():
                setattr(progress, name, value)
        return sentences

    def _newest_whole(self) -> tuple[Path | None, list[str]]:
        for draft in self.path.glob(f"{_DRAFT}*"):
            _remove(draft)  # a kill left it, and nobody else writes here
        damaged: dict[Path, str] = {}
        for folder in self._newest_first():
            if problem := _problem(folder):
                damaged[folder] = f"Checkpoint {folder} is damaged ({problem})."
                continue
            for useless in damaged:
                shutil.rmtree(useless)  # or it would count as one of those that are kept
            return folder, [
                f"{sentence} Going on from {folder.name}." for sentence in damaged.values()
            ]
        if damaged:
            raise TrainingError(f"{' '.join(damaged.values())} None is left to resume from.")
        return None, []

    def _channel(self) -> dict[str, Any]:
        return {"no_dist": True} if self._group is None else {"process_group": self._group}

    def _finish(self, written: Future[Any], draft: Path, target: Path, text: str) -> None:
        """Complete a checkpoint whose tensors are being written, and let the oldest go."""
        try:
            written.result()
            if not self.ranks.first:
                return
            _complete(draft, text)
            draft.rename(target)
        except CheckpointException as error:  # a full disk, say
            raise OSError(str(error).strip().splitlines()[-1]) from error
        finally:
            if self.ranks.first:
                shutil.rmtree(draft, ignore_errors=True)
        _flush(self.path)
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old)

    def _newest_first(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        found = (p for p in self.path.iterdir() if p.name.isdigit() and p.is_dir())
        return sorted(found, reverse=True)


def _complete(folder: Path, text: str) -> None:
    """Add what is not tensors, and the sums of all files; have the disk hold them."""
    (folder / _PROGRESS).write_text(text, encoding="utf-8")
    sums = {file.name: _digest(file) for file in _files(folder)}
    (folder / _SUMS).write_text(json.dumps(sums), encoding="utf-8")
    for path in (*_files(folder), folder):
        _flush(path)


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
        assert isinstance(sums, dict)
    except (OSError, ValueError, AssertionError):
        return f"{_SUMS} cannot be read"
    for name, digest in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} is not what was written"
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


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
