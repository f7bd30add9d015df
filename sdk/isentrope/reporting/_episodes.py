"""Which of a run's episodes a person should see, found in one pass over all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from isentrope.reporting._history import Record, read_records
from isentrope.reporting._text import shorten

_MESSAGES = 20
_CHARACTERS = 4000
_KINDS = 10
_OF_LAST_ITERATION = 2
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?::|$)")


@frozen
class Shown:
    """An episode to be shown, and why."""

    why: str
    record: Record

    def messages(self) -> Iterator[tuple[str, str]]:
        """Yield role and text of each message; the middle of a long conversation is left out."""
        messages = self.record.get("messages") or []
        half = _MESSAGES // 2
        for i, message in enumerate(messages):
            if half <= i < len(messages) - half:
                if i == half:
                    yield "\u2026", f"{len(messages) - _MESSAGES} more messages"
                continue
            yield _role_and_text(message)


@define
class FailureKind:
    """Failures that ended in the same exception."""

    name: str
    first: Record
    count: int = 1

    @property
    def error(self) -> str:
        """Traceback or message of the first."""
        return shorten(str(self.first.get("error") or "").strip(), _CHARACTERS)


@define
class Highlights:
    """What is kept while the episodes go by."""

    best: Record | None = None
    worst: Record | None = None
    latest: list[Record] = field(factory=list)
    failures: dict[str, FailureKind] = field(factory=dict)
    total: int = 0

    @classmethod
    def of(cls, run: Path) -> Highlights:
        """Read a run's episodes."""
        return cls.among(read_records(run / "episodes.jsonl"))

    @classmethod
    def among(cls, records: Iterable[Record]) -> Highlights:
        """Choose among records in the order in which they were written."""
        found = cls()
        for record in records:
            found.total += 1
            if record.get("status", "ok") == "ok":
                found._succeeded(record)
            else:
                found._failed(record)
        return found

    @property
    def failed(self) -> int:
        """How many episodes failed."""
        return sum(kind.count for kind in self.failures.values())

    @property
    def kinds(self) -> list[FailureKind]:
        """The kinds of failure, the most frequent first."""
        return sorted(self.failures.values(), key=lambda kind: -kind.count)[:_KINDS]

    @property
    def shown(self) -> list[Shown]:
        """Best, worst and latest; each episode once."""
        chosen = [Shown("Best of the run", self.best)] if self.best else []
        if self.worst and self.best and _reward(self.worst) < _reward(self.best):
            chosen.append(Shown("Worst of the run", self.worst))
        taken = [shown.record for shown in chosen]
        return chosen + [Shown("Last iteration", r) for r in self.latest if r not in taken]

    def _succeeded(self, record: Record) -> None:
        """Keep the latest of equals: it is the policy that one has."""
        if self.best is None or _reward(record) >= _reward(self.best):
            self.best = record
        if self.worst is None or _reward(record) <= _reward(self.worst):
            self.worst = record
        if self.latest and self.latest[0].get("iteration") != record.get("iteration"):
            self.latest = []
        tasks = [r.get("task") for r in self.latest]
        if len(tasks) < _OF_LAST_ITERATION and record.get("task") not in tasks:
            self.latest.append(record)

    def _failed(self, record: Record) -> None:
        name = _kind(record)
        if name in self.failures:
            self.failures[name].count += 1
        else:
            self.failures[name] = FailureKind(name, record)


def _reward(record: Record) -> float:
    value = record.get("reward")
    return float(value) if isinstance(value, (int, float)) else float("-inf")


def _kind(record: Record) -> str:
    """Name a failure by where it happened and the exception that its traceback ends with."""
    lines = str(record.get("error") or "").strip().splitlines()
    found = _EXCEPTION.match(lines[-1].strip()) if lines else None
    status = str(record.get("status")).replace("_", " ")
    return f"{status}: {found[1]}" if found else status


def _role_and_text(message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        return "message", shorten(str(message), _CHARACTERS)
    text = shorten(str(message.get("content", "")), _CHARACTERS)
    return str(message.get("role", "message")), text
