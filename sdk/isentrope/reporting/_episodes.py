"""A run's episodes as the page's browser takes them: an index of all, and a chunk per iteration.

Both are deflated, which a browser undoes by itself. A chunk is the length of its head (uint32), the
head as JSON, and columns of the tokens, each at a multiple of four bytes, little-endian.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from isentrope.reporting._failures import FailureKind, kind_of
from isentrope.reporting._history import Record, number_or_none, parse_record
from isentrope.reporting._text import visible
from isentrope.runs import Run

_KINDS = 10
EMBEDDED = 32 << 20
"""Bytes of chunks in a page, before they are written as text: a file that opens at once."""
_NUMBERS = ("iteration", "rollout", "reward", "tokens", "turns", "seed")
_NAMES = ("task", "status", "stop_reason")
_TOLD = ("messages", "report", "error", "metrics")


@define
class EpisodeFile:
    """A run's episodes, read as far as they are written; call `update` for what came since."""

    run: Run
    spans: dict[int, tuple[int, int]] = field(factory=dict, init=False)
    """Where an iteration's lines are in the file, bytes."""
    columns: dict[str, list[Any]] = field(factory=dict, init=False)
    names: dict[str, dict[str, int]] = field(factory=dict, init=False)
    """The different values of a column of names, numbered."""
    failures: dict[str, FailureKind] = field(factory=dict, init=False)
    _read: int = field(default=0, init=False)
    _file: tuple[int, int] = field(default=(0, 0), init=False)

    def __attrs_post_init__(self) -> None:
        """Begin with nothing."""
        self._forget()

    @property
    def path(self) -> Path:
        """Where they are."""
        return self.run.path / "episodes.jsonl"

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.columns["iteration"])

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return sum(kind.count for kind in self.failures.values())

    @property
    def kinds(self) -> list[FailureKind]:
        """The kinds of failure, the most frequent first."""
        return sorted(self.failures.values(), key=lambda kind: -kind.count)[:_KINDS]

    def update(self) -> None:
        """Read what came since the last time.

        Raises `ConfigError` that names the line where one is no JSON object.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            status = self.path.stat()
            if status.st_size < self._read or (status.st_dev, status.st_ino) != self._file:
                self._forget()  # a resumed run forgot some iterations
            self._file = status.st_dev, status.st_ino
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written
                place = f"{self.path}, line {self.total + 1}"
                self._add(parse_record(line.decode("utf-8", "replace"), place), len(line))

    def index(self) -> bytes:
        """Return what is known of every episode without its text, deflated JSON."""
        names = {name: [visible(text) for text in found] for name, found in self.names.items()}
        return _deflated(_as_json({"names": names, "columns": self.columns}))

    def chunk(self, iteration: int) -> bytes:
        """Return all of an iteration's episodes, with what is kept of their tokens."""
        start, end = self.spans[iteration]
        with self.path.open("rb") as file:
            file.seek(start)
            lines = file.read(end - start).decode("utf-8", "replace").strip().split("\n")
        # JSON has no NaN, and the browser's parser knows none.
        records = [json.loads(line, parse_constant=lambda _: None) for line in lines]
        told = [{name: record.get(name) for name in _TOLD} for record in records]
        tokens = _as_page_takes_them(self.run.tokens(iteration) or {})
        layout = [[name, values.dtype.str[1:], len(values)] for name, values in tokens.items()]
        head = _as_json({"episodes": told, "columns": layout})
        head += b" " * (-len(head) % 4)
        parts = [len(head).to_bytes(4, "little"), head]
        for values in tokens.values():
            data = values.astype(values.dtype.newbyteorder("<")).tobytes()
            parts.append(data + bytes(-len(data) % 4))
        return _deflated(b"".join(parts))

    def embedded(self, most: int = EMBEDDED) -> dict[str, bytes]:
        """Return index and chunks, by name, for a page that can ask for no others.

        Chunks of iterations spread evenly, as many as fit; the last one's is always there.
        """
        if not self.total:
            return {}
        found = {"index": self.index()}
        left = most
        for iteration in _spread(sorted(self.spans)):
            chunk = self.chunk(iteration)
            left -= len(chunk)
            if left < 0 and len(found) > 1:
                break
            found[str(iteration)] = chunk
        return found

    def _forget(self) -> None:
        self.spans.clear()
        self.failures.clear()
        self._read = 0
        self.columns = {name: [] for name in (*_NUMBERS, *_NAMES, "success")}
        self.names = {name: {} for name in _NAMES}

    def _add(self, record: Record, length: int) -> None:
        for name in _NUMBERS:
            self.columns[name].append(number_or_none(record.get(name)))
        for name in _NAMES:
            numbered = self.names[name]
            text = str(record.get(name, "ok" if name == "status" else ""))
            self.columns[name].append(numbered.setdefault(text, len(numbered)))
        if record.get("status", "ok") not in ("ok", "cancelled"):
            self._failed(record)
        judged = record.get("judged") is not False
        self.columns["success"].append(int(record.get("success") is True) if judged else None)
        iteration = int(number_or_none(record.get("iteration")) or 0)
        start = self.spans.get(iteration, (self._read,))[0]
        self._read += length
        self.spans[iteration] = start, self._read

    def _failed(self, record: Record) -> None:
        name = kind_of(record)
        if name in self.failures:
            self.failures[name].count += 1
        else:
            self.failures[name] = FailureKind(name, record)


def as_text(data: bytes) -> str:
    """Return data as it stands in a page."""
    return base64.b64encode(data).decode("ascii")


def _as_page_takes_them(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return columns in types that JavaScript has: 32 bits, or bytes."""
    return {
        name: x.astype(np.uint8) if x.dtype == bool
        else x.astype(np.float32) if x.dtype == np.float16
        else x
        for name, x in columns.items()
    }  # fmt: skip


def _spread(places: list[int]) -> Iterator[int]:
    """Yield the last, the first, the middle, the middles of both halves, and so on."""
    yield places[-1]
    if len(places) > 1:
        yield places[0]
    gaps = [(0, len(places) - 1)]
    while gaps:
        halved = []
        for low, high in gaps:
            if high - low > 1:
                middle = (low + high) // 2
                yield places[middle]
                halved += [(low, middle), (middle, high)]
        gaps = halved


def _deflated(data: bytes) -> bytes:
    return zlib.compress(data, 6)


def _as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
