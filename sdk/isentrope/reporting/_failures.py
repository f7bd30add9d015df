"""Failures of a run's episodes, by kind."""

from __future__ import annotations

import re

from attrs import define

from isentrope.reporting._history import Record
from isentrope.reporting._text import shorten

_CHARACTERS = 4000
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?::|$)")


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


def kind_of(record: Record) -> str:
    """Name a failure by where it happened and the exception that its traceback ends with."""
    lines = str(record.get("error") or "").strip().splitlines()
    found = _EXCEPTION.match(lines[-1].strip()) if lines else None
    status = str(record.get("status")).replace("_", " ")
    return f"{status}: {found[1]}" if found else status
