"""Where vLLM is: one folder with an interpreter of its own, on a machine with or without GPUs.

::

    ROOT/python     a virtual environment with vLLM, whose transformers need not be ours
    ROOT/README     says whose folder this is
"""

from __future__ import annotations

import subprocess
from typing import ClassVar

from attrs import frozen

from isentrope.installations import Installation


@frozen
class Place(Installation):
    """The folder of one installation."""

    what: ClassVar[str] = "vLLM"
    name: ClassVar[str] = "vllm"
    variable: ClassVar[str] = "ISENTROPE_VLLM"

    @property
    def device(self) -> str | None:
        """What it was installed for, ``"cpu"`` or ``"gpu"``; None where it is not whole."""
        try:
            text = self.stamp.read_text(encoding="utf-8")
        except OSError:
            return None
        return "cpu" if "\nvllm-cpu==" in text else "gpu"


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this machine has, by its driver's word."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
