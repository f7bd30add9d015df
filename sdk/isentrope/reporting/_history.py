"""A run folder as a page needs it: plain data, readable though its plugins are not installed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import field, frozen

from isentrope.config import read_toml
from isentrope.errors import ConfigError
from isentrope.reporting._series import Values, mean, span_of_ends
from isentrope.runs import Run

Record = dict[str, Any]


@frozen(slots=False)  # cached_property needs a __dict__
class History:
    """What a run folder says."""

    name: str
    path: Path
    config: Record
    about: Record
    metrics: tuple[Record, ...] = field(repr=False)
    seeds: tuple[History, ...] = ()
    """The runs that this is the mean of; empty for a single one."""

    @classmethod
    def read(cls, run: Run | str | Path) -> History:
        """Read a run's folder, finished or not.

        Raises `ConfigError` where it is none, or cannot be read.
        """
        run = run if isinstance(run, Run) else Run(Path(run))
        return cls(
            name=run.path.resolve().name,
            path=run.path,
            config=read_toml(run.path / "config.toml"),
            about=json.loads((run.path / "run.json").read_text(encoding="utf-8")),
            metrics=tuple(read_records(run.path / "metrics.jsonl")),
        )

    @cached_property
    def iterations(self) -> list[int]:
        """The number of each iteration."""
        return [int(m.get("iteration", i)) for i, m in enumerate(self.metrics)]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every key that was measured in some iteration, in the order of appearance.

        Success is measured only by an environment that says what one is.
        """
        seen = {
            k: None for m in self.metrics for k, v in m.items() if number_or_none(v) is not None
        }
        if not self.says_success:
            seen.pop("success", None)
        return tuple(seen)

    @cached_property
    def says_success(self) -> bool:
        """Whether the environment ever ended an episode and said whether that was a success."""
        ended, unjudged = (
            sum(filter(None, self.values(key))) for key in ("stop/terminated", "episodes_unjudged")
        )
        return not unjudged or unjudged < ended

    def values(self, key: str) -> list[float | None]:
        """Return a metric of every iteration, None where it is missing or null."""
        return [number_or_none(m.get(key)) for m in self.metrics]

    def points(self, key: str) -> tuple[list[int], list[float | None]]:
        """Return the iterations that have a metric, and its values; a null is a gap."""
        rows = [(i, m[key]) for i, m in zip(self.iterations, self.metrics, strict=True) if key in m]
        return [i for i, _ in rows], [number_or_none(v) for _, v in rows]

    def ends(self, key: str) -> tuple[float | None, float | None]:
        """Return a metric's mean over the first iterations and over the last (`span`)."""
        values = self.values(key)
        return mean(values[: self.span]), mean(values[-self.span :])

    @property
    def entropy(self) -> str:
        """The metric of the entropy that controllers hold: the exact one where they go by it."""
        return "entropy_exact" if "entropy_exact_target" in self.keys else "entropy"

    @property
    def entropy_target(self) -> str:
        """The metric of what they hold it at."""
        return f"{self.entropy}_target"

    @property
    def span(self) -> int:
        """How many iterations the ends are."""
        return span_of_ends(len(self.metrics))

    def moving_knobs(self) -> list[str]:
        """Return the knobs (``slot.field``) that did not keep one value."""
        return [k for k in self.keys if "." in k and "/" not in k and _moves(self.values(k))]

    def starting_with(self, prefix: str) -> list[str]:
        """Return the keys under a prefix."""
        return [k for k in self.keys if k.startswith(prefix)]

    @property
    def wanted(self) -> int:
        """How many iterations were configured; 0 where the configuration does not say."""
        return int(number_or_none(self.config.get("iterations")) or 0)

    @property
    def stopped(self) -> str | None:
        """Why the run ended before its time, in its own words."""
        reason = self.metrics[-1].get("stopped") if self.metrics else None
        return None if reason is None else str(reason)

    def written(self, name: str) -> datetime | None:
        """Return when a file of the folder was last written, UTC."""
        path = self.path / name
        return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else None


def read_records(path: Path) -> Iterator[Record]:
    """Read the records of a file that were written whole; a kill may leave half a last line.

    Raises `ConfigError` that names the line where one is no JSON object.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for count, line in enumerate(file, start=1):
            if line.endswith("\n"):
                yield parse_record(line, f"{path}, line {count}")


def parse_record(line: str, place: str) -> Record:
    """Return a line's JSON object.

    place: where it is, for the message.

    Raises `ConfigError` where it is none.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{place} is not a JSON object.")
    return record


def number_or_none(value: object) -> float | None:
    """Return a finite number; None for all else that may stand in a metrics file."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def _moves(values: Values) -> bool:
    return len({v for v in values if v is not None}) > 1
