"""TensorBoard: event files in the run folder, for ``tensorboard --logdir runs``.

Written by tensorboardX, which needs no TensorBoard: that weighs a hundred times as much, and is
only needed where the files are looked at.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen

from isentrope import TrackedRun
from isentrope_plugins.trackers.keeping import require

_COMPARED = ("reward", "success", "entropy", "eval/success")
"""What TensorBoard's page of hyperparameters shows beside them."""


@frozen(kw_only=True)
class TensorBoard:
    """Writes event files to ``RUN/trackers/tensorboard``."""

    rewinds: ClassVar[bool] = True

    def check(self) -> None:
        """Raise `ConfigError` where tensorboardX is not installed."""
        require("tensorboard", "tensorboardX", "tensorboardX")

    def start(self, run: TrackedRun) -> _Writer:
        """Open a file of its own; TensorBoard drops what earlier ones have from there on."""
        return _Writer(run)


class _Writer:
    def __init__(self, run: TrackedRun) -> None:
        library = _without_torch()
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # every NaN is a warning to it
        self.writer = library.SummaryWriter(
            str(run.folder),
            purge_step=run.iteration,
            filename_suffix=f".{run.iteration}",
            flush_secs=5,
        )
        columns = {tag(name): 0.0 for name in _COMPARED}
        for summary in library.summary.hparams(run.flat_config, columns):
            self.writer.file_writer.add_summary(summary)

    def log(self, iteration: int, metrics: Mapping[str, float | int]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(tag(name), value, iteration)

    def close(self, failed: bool) -> None:
        del failed  # event files have no place for it
        self.writer.close()


def tag(name: str) -> str:
    """Return the tag of a metric, which TensorBoard groups by what comes before the slash.

    ``"eval/success"`` has a group; a knob, ``"repo_r.zeta"``, goes to its slot's diagnostics.
    """
    if "/" in name:
        return name
    slot, dot, _ = name.partition(".")
    return f"{slot}/{name}" if dot else f"run/{name}"


def _without_torch() -> Any:
    """Import tensorboardX; if torch is there, it would load that, for seconds and for nothing."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # how Python spells "not to be had"
    try:
        import tensorboardX
        import tensorboardX.summary
    finally:
        if absent:
            del sys.modules["torch"]
    return tensorboardX
