"""Where vLLM is: one folder with an interpreter of its own, on a machine with or without GPUs.

::

    ROOT/python     a virtual environment with vLLM, whose transformers need not be ours
    ROOT/README     says whose folder this is
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from attrs import field, frozen
from platformdirs import user_data_path

VARIABLE = "ISENTROPE_VLLM"
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
        return cls(Path(named) if named else user_data_path("isentrope") / "vllm")

    @property
    def environment(self) -> Path:
        """The virtual environment."""
        return self.root / "python"

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.environment / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """The copy of the requirements that says that all of them are installed."""
        return self.environment / "requirements.txt"

    @property
    def device(self) -> str | None:
        """What it was installed for, ``"cpu"`` or ``"gpu"``; None where it is not whole."""
        try:
            text = self.stamp.read_text(encoding="utf-8")
        except OSError:
            return None
        return "cpu" if "\nvllm-cpu==" in text else "gpu"

    @property
    def readme(self) -> Path:
        """What marks the folder as ours."""
        return self.root / "README"

    @property
    def building(self) -> Path:
        """Where the interpreter is made, to be renamed when it is whole."""
        return self.root / "building"


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this machine has, by its driver's word."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
