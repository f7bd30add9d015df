"""What a person sees while a run trains: a line an iteration, and in a terminal a progress bar."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from attrs import define, field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@define
class LiveView:
    """A listener for `isentrope.train`; a context manager, so that the bar goes when the run does.

    Knobs are shown from when they first move.
    """

    console: Console
    iterations: int
    """How many the run is to have."""
    knobs: Collection[str]
    """Paths of the algorithm's knobs."""
    _first: dict[str, Any] = field(factory=dict, init=False)
    _moving: list[str] = field(factory=list, init=False)
    _unjudged: int = field(default=0, init=False)
    _ended: int = field(default=0, init=False)
    _bar: Progress = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the bar; where there is no terminal it stays invisible."""
        self._bar = progress_bar(self.console, "iterations", self.iterations)

    def __enter__(self) -> LiveView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Show an iteration."""
        self._note_knobs(metrics)
        self._bar.update(self._bar.task_ids[0], completed=metrics["iteration"] + 1)
        self.console.print(self._line(metrics), highlight=False, markup=False)
        if metrics["stopped"]:
            self.console.print(f"Stopped: {metrics['stopped']}", highlight=False, markup=False)

    def _note_knobs(self, metrics: Mapping[str, Any]) -> None:
        for name in self.knobs:
            value = metrics[name]
            if self._first.setdefault(name, value) != value and name not in self._moving:
                self._moving.append(name)

    def _says_success(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the environment has ended an episode so far and said whether it succeeded."""
        self._unjudged += metrics["episodes_unjudged"]
        self._ended += metrics["stop/terminated"]
        return not self._unjudged or self._unjudged < self._ended

    def _line(self, metrics: Mapping[str, Any]) -> str:
        seconds = sum(v for k, v in metrics.items() if k.startswith("seconds/"))
        exact = "_exact" if metrics.get("entropy_exact_target") is not None else ""
        entropy, target = metrics[f"entropy{exact}"], metrics[f"entropy{exact}_target"]
        parts = [
            f"{metrics['iteration']:4d}",
            f"reward {metrics['reward']:.3f}",
            *([f"success {metrics['success']:.3f}"] if self._says_success(metrics) else []),
            f"entropy {entropy:.3f}" + ("" if target is None else f" -> {target:.3f}"),
            *(f"{name} {metrics[name]:+.3g}" for name in self._moving),
            f"{metrics['tokens'] / seconds:,.0f} tokens/s",
        ]
        failed = metrics["episodes_failed"]
        if failed:
            parts.append(f"{failed} episodes failed")
        if skipped := metrics["steps_skipped"]:
            parts.append(f"{skipped} steps skipped")
        for name, words in (("success", "evaluation"), ("reward", "evaluation's reward")):
            if _known(metrics, f"eval/{name}"):
                parts.append(f"{words} {metrics[f'eval/{name}']:.3f}")
                break
        return "  ".join(parts)


def progress_bar(console: Console, what: str, total: int | None = None) -> Progress:
    """Return a bar with one task, how many of `total` there are; no terminal, nothing is seen."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    bar.add_task(what, total=total)
    return bar


def _known(metrics: Mapping[str, Any], name: str) -> bool:
    return metrics.get(name) is not None and math.isfinite(metrics[name])
