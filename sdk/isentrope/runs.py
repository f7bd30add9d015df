"""The run folder: what a run leaves on disk, and how it is read back.

::

    config.toml        the resolved configuration; `isentrope train` takes it again
    run.json           the folder's format, and the versions it was made with
    metrics.jsonl      one object per iteration
    episodes.jsonl     one object per episode, failed ones with their traceback
    evaluations.jsonl  one object per attempt of the evaluations, if there were any
    tokens/            what an iteration knew of its tokens, a file for each (`Run.tokens`)
    checkpoints/       what `isentrope train --resume` goes on from
    policy/            the final policy, in transformers' own format
    trackers/          what each tracker keeps and prints, if there are any
    best/              the policy with the best evaluation, if there were any
"""

from __future__ import annotations

import fcntl
import json
import math
import platform
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from isentrope.episodes import Episode
from isentrope.errors import ConfigError, nearest_path

if TYPE_CHECKING:
    from isentrope.config import TrainConfig

FORMAT = 1
_LINES = ("episodes.jsonl", "evaluations.jsonl", "metrics.jsonl")
_PACKAGES = ("isentrope", "torch", "transformers", "peft", "gymnasium", "numpy")


@frozen
class Run:
    """A run folder.

    Raises `ConfigError` where the folder is none, or of a format that this version cannot read.
    """

    path: Path = field(converter=Path)

    def __attrs_post_init__(self) -> None:
        """Check that the folder is a run's."""
        if not (self.path / "config.toml").is_file():
            raise ConfigError(f"{self.path} {_what_else(self.path)}.{nearest_path(self.path)}")
        try:
            written = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} is not a run folder: no run.json to read.") from error
        if written.get("format") != FORMAT:
            raise ConfigError(
                f"{self.path} has format {written.get('format')!r}, written by isentrope "
                f"{written.get('packages', {}).get('isentrope')}; this version reads format "
                f"{FORMAT}."
            )

    @classmethod
    def create(cls, path: Path, config: str, environment: str) -> Run:
        """Make the folder of a new run and write its configuration, as TOML.

        environment: where its environment came from, with the version.

        Raises `ConfigError` where `path` holds something already.
        """
        check_free(path)
        versions = {name: version(name) for name in _PACKAGES}
        about = {
            "format": FORMAT,
            "environment": environment,
            "python": platform.python_version(),
            "packages": versions,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "run.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            (path / "config.toml").write_text(config, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"Run folder {path} cannot be made: {error.strerror}.") from error
        return cls(path)

    @property
    def config(self) -> TrainConfig:
        """The configuration that the run was made with."""
        from isentrope.config import read_config

        return read_config(self.path / "config.toml")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One object per finished iteration."""
        return list(_read_lines(self.path / "metrics.jsonl"))

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """One object per episode, in order."""
        return list(_read_lines(self.path / "episodes.jsonl"))

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One object per attempt of the evaluations, in order (`Evaluation.during` reads them)."""
        return list(_read_lines(self.path / "evaluations.jsonl"))

    @property
    def policy(self) -> Path:
        """Folder of the final policy."""
        return self.path / "policy"

    @property
    def best(self) -> Path:
        """Folder of the policy with the highest share of successes in an evaluation.

        Raises `ConfigError` where the run evaluated nothing.
        """
        folder = self.path / "best"
        if not folder.is_dir():
            raise ConfigError(
                f"{self.path} has no best policy: it was trained without `evaluation`, has not "
                "come to its first, or its environment never says success."
            )
        return folder

    @property
    def cumulative_entropy(self) -> float:
        """Sum of the iterations' entropies, nats per token: the area under the entropy curve."""
        return float(sum(m["entropy"] for m in self.metrics))

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def tokens(self, iteration: int) -> dict[str, NDArray[Any]] | None:
        """Return what is kept of an iteration's tokens; None where nothing is.

        Of E of its episodes, ``episode`` [E] (which of its lines in ``episodes.jsonl``), ``length``
        [E] in tokens, and ``step`` [E], the last one that saw it, or -1. Of their N tokens, end to
        end, ``piece``, ``segment``, ``turn``, and whether each was ``sampled``. Of the T sampled
        ones, in nats and float16, under the policy that the iteration began with, ``logp``,
        ``mismatch`` (the engine's log-prob, less that) and exact ``entropy``; ``advantage``, and
        ``transformed`` and ``log_ratio`` as the last step that saw the token had them; ``gradient``
        (1, or 0 where it had none, by a clip for example; 255: no step saw it); the ``version`` of
        the policy that sampled it. What is not known is NaN. Of the P pieces, ``piece_id``, and
        their UTF-8 text: ``piece_text`` [bytes], where each one has its ``piece_end``.
        """
        path = self._tokens(iteration)
        if not path.exists():
            return None
        with np.load(path) as file:
            return dict(file)

    def _tokens(self, iteration: int) -> Path:
        return self.path / "tokens" / f"{iteration:06d}.npz"

    def record(
        self,
        metrics: Mapping[str, Any],
        episodes: Iterable[Episode],
        tokens: Mapping[str, NDArray[Any]] | None = None,
        evaluated: Iterable[Episode] = (),
    ) -> None:
        """Append an iteration; its metrics last, for then the rest is there.

        evaluated: the episodes of the evaluation that followed it, if there was one.
        """
        iteration = int(metrics["iteration"])
        if tokens is not None:
            path = self._tokens(iteration)
            path.parent.mkdir(exist_ok=True)
            draft = path.with_suffix(".draft")
            _compress(draft, tokens)
            draft.replace(path)
        for name, some in (("episodes.jsonl", episodes), ("evaluations.jsonl", evaluated)):
            if lines := [{"iteration": iteration, **episode_record(e)} for e in some]:
                _append(self.path / name, lines)
        _append(self.path / "metrics.jsonl", [metrics])

    def rewrite_config(self, config: str) -> None:
        """Replace the configuration, as TOML."""
        draft = self.path / "config.toml.draft"
        draft.write_text(config, encoding="utf-8")
        draft.replace(self.path / "config.toml")

    def put(self, folder: Path, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder of the run: whole, or as it was before."""
        draft, old = (folder.with_name(f".{folder.name}.{what}") for what in ("draft", "old"))
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)
        write(draft)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def rewind(self, iteration: int) -> None:
        """Forget what was recorded from `iteration` on, and any line that a kill cut short."""
        for path in filter(Path.exists, map(self.path.joinpath, _LINES)):
            kept = [record for record in _read_lines(path) if record["iteration"] < iteration]
            draft = path.with_suffix(".draft")
            draft.unlink(missing_ok=True)
            _append(draft, kept)
            draft.replace(path)
        for path in (self.path / "tokens").glob("*.npz"):
            if int(path.stem) >= iteration:
                path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from training in this folder; a dead process holds no lock.

        Raises `ConfigError` where another process does.
        """
        with only_process(self.path, "training in"):
            yield


@contextmanager
def only_process(folder: Path, at: str) -> Iterator[None]:
    """Keep every other process out of a folder; a dead process holds no lock.

    at: what processes do there, for the message, such as ``"training in"``.

    Raises `ConfigError` where another process is at it.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another process is {at} {folder}: wait for it, or choose another `out`."
            ) from error
        yield


def check_free(path: Path) -> None:
    """Raise `ConfigError` where a run's folder would overwrite something."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not empty; choose another `out`.")


def new_folder(name: str) -> Path:
    """Return a folder under ``runs/`` that does not exist yet: `name`, `name`-2, ..."""
    stem = Path("runs") / name.replace("/", "-")
    tries = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in range(1, 1_000_000))
    return next(path for path in tries if not path.exists())


def episode_record(episode: Episode) -> dict[str, Any]:
    """Return what is kept of an episode: everything but its tokens, of which only the number."""
    usage = episode.usage
    return {
        "task": episode.task,
        "rollout": episode.rollout,
        "seed": episode.seed,
        "reward": episode.reward,
        "success": episode.success,
        "judged": episode.judged,
        "status": episode.status.value,
        "stop_reason": episode.stop_reason.value,
        "turns": episode.turns,
        "tokens": episode.sampled_tokens if usage is None else usage.tokens,
        **({} if usage is None else {"retried": usage.retried}),
        "metrics": dict(episode.metrics),
        "report": episode.report,
        "messages": list(episode.messages),
        "error": episode.error,
    }


def _append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(_finite(record)) + "\n" for record in records)


def _compress(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write what `numpy.load` reads; `numpy.savez_compressed` takes twice as long to save 10 %."""
    with ZipFile(path, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a mean over nothing is written as null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records that were written whole: a kill may leave half a last line."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def is_run(path: Path) -> bool:
    """Say whether a folder is a run's."""
    try:
        return "algorithm" in tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return False


def _what_else(path: Path) -> str:
    """Say what a path is that is no run folder."""
    if not path.exists():
        return "does not exist; a run makes its folder when its model is there"
    if (path / "evaluation.json").is_file():
        return "is an evaluation, and not a run"
    return "is not a run folder: it has no config.toml"
