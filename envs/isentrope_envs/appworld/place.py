"""Where AppWorld is: one folder with an interpreter of its own and its data.

::

    ROOT/python     a virtual environment with appworld, which cannot live beside pydantic 2
    ROOT/full/data  AppWorld's data, solutions and tests included: what judges read
    ROOT/agent/data the same files without any ground truth: what worlds are opened from
    ROOT/cache      what the engine caches
    ROOT/README     says whose folder this is
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

from attrs import frozen

from isentrope.installations import Installation


@frozen
class Place(Installation):
    """The folder of one installation."""

    what: ClassVar[str] = "AppWorld"
    name: ClassVar[str] = "appworld"
    variable: ClassVar[str] = "ISENTROPE_APPWORLD"
    notice: ClassVar[str] = """
The data here is AppWorld's, or derived from it (its table schemas and API documentation). Its
licence asks that public copies be encrypted: do not publish it, nor bake it into an image.
"""

    @classmethod
    def of_interpreter(cls) -> Place:
        """Return the one whose interpreter this is."""
        return cls(Path(sys.prefix).parent)

    @property
    def full(self) -> Path:
        """The engine's root with everything."""
        return self.root / "full"

    @property
    def agent(self) -> Path:
        """The engine's root without ground truth."""
        return self.root / "agent"

    def difficulty(self, task: str) -> int | None:
        """Return how hard a task is, 1 to 3, by its data; None where they are not here."""
        file = self.full / "data" / "tasks" / task / "ground_truth" / "metadata.json"
        if not file.is_file():
            return None
        return int(json.loads(file.read_text(encoding="utf-8"))["difficulty"])

    @property
    def cache(self) -> Path:
        """What the engine caches, outside the home folder."""
        return self.root / "cache"

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folders that it consists of."""
        return *super().parts, self.agent, self.full, self.cache
