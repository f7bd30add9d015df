"""The run folder: what a run leaves on disk, and how it is read back.

::

    config.toml      the resolved configuration; `isentrope train` takes it again
    metrics.jsonl    one object per iteration
    episodes.jsonl   one object per episode, failed ones with their traceback
    policy/          the final policy, in transformers' own format
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from isentrope.episodes import Episode
from isentrope.errors import ConfigError

if TYPE_CHECKING:
    from isentrope.config import TrainConfig


@frozen
class Run:
    """A run folder.

    Raises `ConfigError` where the folder is none.
    """

    path: Path = field(converter=Path)

    def __attrs_post_init__(self) -> None:
        """Check that the folder is a run's."""
        if not (self.path / "config.toml").is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.toml.")

    @classmethod
    def create(cls, config: TrainConfig, text: str) -> Run:
        """Make the folder of a new run and write its configuration.

        Raises `ConfigError` where the configured folder holds something already.
        """
        path = config.out if config.out is not None else _fresh(config)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} exists and is not empty; choose another `out`.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.toml").write_text(text, encoding="utf-8")
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
    def policy(self) -> Path:
        """Folder of the final policy."""
        return self.path / "policy"

    def record(self, metrics: Mapping[str, Any], episodes: Iterable[Episode]) -> None:
        """Append an iteration."""
        lines = (_episode_record(int(metrics["iteration"]), e) for e in episodes)
        _append(self.path / "episodes.jsonl", lines)
        _append(self.path / "metrics.jsonl", [metrics])


def _fresh(config: TrainConfig) -> Path:
    names = [config.env.id, type(config.algorithm.objective).__name__.lower()]
    stem = Path("runs") / "-".join(names).replace("/", "-")
    tries = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in range(1, 1_000_000))
    return next(path for path in tries if not path.exists())


def _episode_record(iteration: int, episode: Episode) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "task": episode.task,
        "rollout": episode.rollout,
        "seed": episode.seed,
        "reward": episode.reward,
        "success": episode.success,
        "status": episode.status.value,
        "stop_reason": episode.stop_reason.value,
        "turns": episode.turns,
        "tokens": episode.sampled_tokens,
        "metrics": dict(episode.metrics),
        "messages": list(episode.messages),
        "error": episode.error,
    }


def _append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(_finite(record)) + "\n" for record in records)


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a mean over nothing is written as null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def is_run(path: Path) -> bool:
    """Say whether a folder is a run's."""
    try:
        return "algorithm" in tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return False
