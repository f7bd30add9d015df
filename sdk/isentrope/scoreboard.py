"""What a person sees of an evaluation in a terminal: a bar while it runs, and then a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from attrs import define, field
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from isentrope.evaluation.attempts import Attempt
from isentrope.evaluation.estimates import Estimate, known, shown, some
from isentrope.evaluation.result import Evaluation
from isentrope.live import progress_bar

if TYPE_CHECKING:
    from isentrope.reporting._paired import Paired

_SECONDS = 20.0
"""Between lines."""


@define
class EvaluationView:
    """A listener for `isentrope.evaluate`; a context manager, so that the bar goes when it ends.

    Where there is no terminal, a line every now and then.
    """

    console: Console
    _good: int = field(default=0, init=False)
    _right: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _retried: int = field(default=0, init=False)
    _told: float = field(factory=monotonic, init=False)
    _bar: Progress = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the bar; where there is no terminal it stays invisible."""
        self._bar = progress_bar(self.console, "attempts")

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
        self._retried += attempt.retried
        said = f"success {self._right / max(self._good, 1):.3f}"
        if self._failed:
            said += f"  {self._failed} failed"
        if self._retried:
            said += f"  {self._retried} requests made again"
        self._bar.update(self._bar.task_ids[0], completed=done, total=wanted, description=said)
        if not self.console.is_terminal and monotonic() > self._told + _SECONDS:
            self._told = monotonic()
            line = f"{done:,} of {wanted:,} attempts  {said}"
            self.console.print(line, highlight=False, markup=False)


def print_evaluation(console: Console, result: Evaluation) -> None:
    """Print an evaluation's numbers, and what they leave out."""
    posed = len({attempt.task for attempt in result.attempts})
    title = f"{result.env} / {result.split}: {posed} tasks x {result.k}"
    labels = {"success": f"success (avg@{result.k})", "reward": "reward"}
    if result.says_success:
        labels |= {f"pass{sign}{j}": f"pass{sign}{j}" for sign in "@^" for j in some(result.k)}
    else:
        del labels["success"]
    console.print(_table(title, labels, result.estimates, posed))
    counted = known(result.tokens_per_episode) is not None
    tokens = [f"{result.tokens_per_episode:,.1f} tokens an attempt."] if counted else []
    _say(console, [*tokens, *result.notes()])


def print_comparison(console: Console, one: Paired) -> None:
    """Print what one evaluation has more than another."""
    if one.found is None:
        _say(console, [one.problem])
        return
    found = one.found.differences
    most = sum(name.startswith("pass@") for name in found)
    labels = {"success": "success", "reward": "reward"}
    labels |= {f"pass{sign}{j}": f"pass{sign}{j}" for sign in "@^" for j in some(most)}
    when = "" if one.iteration is None else f" at iteration {one.iteration}"
    title = f"{one.name} minus {one.base}{when}: {one.found.tasks} common tasks"
    console.print(_table(title, labels, found, one.found.tasks, sign="+"))
    _say(console, one.found.notes(one.name, one.base))


def print_lm_eval(console: Console, results: Mapping[str, Any]) -> None:
    """Print lm-eval's scores; its keys are ``metric,filter`` and ``metric_stderr,filter``."""
    table = Table(title="lm-eval's scores")
    for column in ("task", "metric", "filter", "score", "standard error"):
        table.add_column(column, no_wrap=True)
    for task, scores in results["results"].items():
        for key, score in scores.items():
            metric, comma, chosen = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = scores.get(f"{metric}_stderr,{chosen}")
                table.add_row(task, metric, chosen, *map(_score, (score, error)))
    console.print(table)


def _score(value: object) -> str:
    return shown(value) if isinstance(value, (int, float)) else "\u2013"


def _table(
    title: str,
    labels: Mapping[str, str],
    estimates: Mapping[str, Estimate],
    tasks: int,
    sign: str = "",
) -> Table:
    table = Table(title=Text(title))
    fewer = any(estimates[name].tasks != tasks for name in labels)
    for column in ("", "mean", "95 % interval", *(["tasks"] if fewer else [])):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, label in labels.items():
        found = estimates[name]
        cells = [shown(found.value, sign), _interval(found, sign)]
        table.add_row(label, *cells, *([str(found.tasks)] if fewer else []))
    return table


def _interval(estimate: Estimate, sign: str) -> str:
    if known(estimate.low) is None:
        return "unknown"
    return f"{shown(estimate.low, sign)} to {shown(estimate.high, sign)}"


def _say(console: Console, sentences: Sequence[str]) -> None:
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False)
