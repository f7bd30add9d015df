"""The record of all studies: one JSON file, from which page and figures are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from dynamics.statistics import Estimate, difference, estimate


@frozen
class Results:
    """Records of trials, by ``study/arm/seed``."""

    records: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write one line a trial, so that a change is a line of a diff."""
        lines = (f"{json.dumps(k)}: {json.dumps(r)}" for k, r in sorted(self.records.items()))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def seeds(self, study: str, arm: str) -> list[int]:
        """Return the seeds of which an arm has a record."""
        keys = (key for key in self.records if key.startswith(f"{study}/{arm}/"))
        return sorted(int(key.split("/")[2]) for key in keys)

    def values(
        self, study: str, arm: str, path: str, seeds: Sequence[int] | None = None
    ) -> list[Any]:
        """Return what the arm's records hold at `path` (``"test.pass_at.8"``), seed by seed."""
        chosen = self.seeds(study, arm) if seeds is None else seeds
        return [_at(self.records[f"{study}/{arm}/{seed}"], path) for seed in chosen]

    def mean(self, study: str, arm: str, path: str) -> Estimate:
        """Return the mean over the arm's seeds, and its interval."""
        return estimate(self.values(study, arm, path))

    def change(self, study: str, arm: str, other: str, path: str) -> Estimate:
        """Return by how much an arm is above another on the same seeds."""
        return self.differ((study, arm), (study, other), path)

    def differ(self, one: tuple[str, str], other: tuple[str, str], path: str) -> Estimate:
        """Return by how much an arm of one study is above one of another, on seeds of both."""
        seeds = sorted({*self.seeds(*one)} & {*self.seeds(*other)})
        return difference(*(self.values(*arm, path, seeds) for arm in (one, other)))

    def series(self, study: str, arm: str, name: str) -> NDArray[np.float64]:
        """Return the arm's recorded series [seeds, blocks]."""
        return np.array(self.values(study, arm, name))


def _at(record: Any, path: str) -> Any:
    """Follow a path, whose keys may hold dots themselves (knobs)."""
    if not path:
        return record
    keys = path.split(".")
    for n in range(1, len(keys) + 1):
        if (key := ".".join(keys[:n])) in record:
            return _at(record[key], ".".join(keys[n:]))
    raise KeyError(path)
