"""What a person sees of an evaluation in a terminal: a bar while it runs, and then a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attrs import define, field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from isentrope.evaluation.attempts import Attempt
from isentrope.evaluation.comparison import Comparison
from isentrope.evaluation.estimates import Estimate
from isentrope.evaluation.result import Evaluation


@define
class EvaluationView:
    """A listener for `isentrope.evaluate`; a context manager, so that the bar goes when it ends.

    Where there is no terminal, a line for every tenth of the attempts.
    """

    console: Console
    _good: int = field(default=0, init=False)
    _right: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _told: int = field(default=0, init=False)
    _bar: Progress = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the bar; where there is no terminal it stays invisible."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bar.add_task("attempts", total=None)

    def __enter__(self) -> EvaluationView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, attempt: Attempt, done: int, wanted: int) -> None:
        """Count an attempt."""
        self._good += not attempt.failed
        self._right += attempt.success
        self._failed += attempt.failed
        said = f"success {self._right / max(self._good, 1):.3f}"
        if self._failed:
            said += f"  {self._failed} failed"
        self._bar.update(self._bar.task_ids[0], completed=done, total=wanted, description=said)
        if not self.console.is_terminal and 10 * done // wanted > self._told:
            self._told = 10 * done // wanted
            line = f"{done:,} of {wanted:,} attempts  {said}"
            self.console.print(line, highlight=False, markup=False)


def print_evaluation(console: Console, result: Evaluation) -> None:
    """Print an evaluation's numbers, and what they leave out."""
    title = f"{result.env} / {result.split}: {result.tasks} tasks x {result.k}"
    labels = {"success": f"success (avg@{result.k})", "reward": "reward"}
    shown = some(result.k) if result.says_success else []
    labels |= {f"pass@{j}": f"pass@{j}" for j in shown} | {f"pass^{j}": f"pass^{j}" for j in shown}
    if not result.says_success:
        del labels["success"]
    console.print(_table(title, labels, result.estimates, result.tasks))
    _say(console, [f"{result.tokens_per_episode:,.1f} tokens an attempt.", *result.notes()])


def print_comparison(console: Console, name: str, other: str, found: Comparison, k: int) -> None:
    """Print what one evaluation has more than another."""
    labels = {"success": "success", "reward": "reward"}
    labels |= {f"pass{sign}{j}": f"pass{sign}{j}" for sign in "@^" for j in some(k)}
    title = f"{name} less {other}: {found.tasks} common tasks"
    console.print(_table(title, labels, found.differences, found.tasks, sign="+"))
    _say(console, found.notes())


def some(k: int) -> list[int]:
    """Return the powers of two up to k, and k; not 1, which is the success."""
    return sorted({1 << n for n in range(1, k.bit_length())} | {k} - {1})


def _table(
    title: str,
    labels: Mapping[str, str],
    estimates: Mapping[str, Estimate],
    tasks: int,
    sign: str = "",
) -> Table:
    table = Table(title=title)
    fewer = any(estimates[name].tasks != tasks for name in labels)
    for column in ("", "mean", "95 % interval", *(["tasks"] if fewer else [])):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, shown in labels.items():
        found = estimates[name]
        cells = [_number(found.value, sign), _interval(found, sign)]
        table.add_row(shown, *cells, *([str(found.tasks)] if fewer else []))
    return table


def _number(value: float, sign: str) -> str:
    return f"{value:{sign}.3f}" if math.isfinite(value) else "\u2013"


def _interval(estimate: Estimate, sign: str) -> str:
    if not math.isfinite(estimate.low):
        return "unknown"
    return f"{_number(estimate.low, sign)} to {_number(estimate.high, sign)}"


def _say(console: Console, sentences: Sequence[str]) -> None:
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False)
