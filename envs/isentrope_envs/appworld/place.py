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
import os
import sys
from pathlib import Path

from attrs import field, frozen
from platformdirs import user_data_path

VARIABLE = "ISENTROPE_APPWORLD"
"""Names the folder, if it is not the default one."""


def _whole(path: str | Path) -> Path:
    return Path(path).absolute()


@frozen
class Place:
    """The folder of one installation."""

    root: Path = field(converter=_whole)

    @classmethod
    def default(cls) -> Place:
        """Return the one that the environment variable names, or the user's own."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named) if named else user_data_path("isentrope") / "appworld")

    @classmethod
    def of_interpreter(cls) -> Place:
        """Return the one whose interpreter this is."""
        return cls(Path(sys.prefix).parent)

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.root / "python" / "bin" / "python"

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
    def readme(self) -> Path:
        """What marks the folder as ours."""
        return self.root / "README"

    @property
    def building(self) -> Path:
        """Where parts are made, to be renamed when they are whole."""
        return self.root / "building"
