"""The page of an evaluation, or of several laid over one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from isentrope.evaluation.attempts import Attempt
from isentrope.evaluation.estimates import Estimate, known, shown, some
from isentrope.evaluation.records import is_evaluation
from isentrope.evaluation.result import Evaluation
from isentrope.reporting import _configs, _figures
from isentrope.reporting._charts import Chart
from isentrope.reporting._figures import Axis, Line
from isentrope.reporting._page import CHARTS, render, swatch
from isentrope.reporting._text import number

_CURVES = (
    ("@", "pass@k", "the chance that at least one of k attempts succeeds"),
    ("^", "pass^k", "the chance that all of k attempts succeed"),
)


@frozen
class Column:
    """One evaluation in the table of numbers."""

    name: str
    swatch: str
    state: str
    cells: list[str]
    """In the order of the rows' names."""
    notes: list[str]


@frozen
class Failure:
    """A kind of failure: how many attempts it met, and what the first of them said."""

    name: str
    count: int
    task: str
    error: str


def as_evaluation(of: object) -> Evaluation | None:
    """Return an evaluation, or that of a folder; None where it is neither."""
    if isinstance(of, Evaluation):
        return of
    if isinstance(of, (str, Path)) and is_evaluation(Path(of)):
        return Evaluation.read(of)
    return None


def page_of(evaluations: Sequence[Evaluation]) -> str:
    """Return the page of one or several."""
    names = names_of(evaluations)
    first, others = evaluations[0], evaluations[1:]
    rows = rows_of(evaluations)
    compared = [other.against(first) for other in others]
    charts = _charts(names, evaluations)
    return render(
        "evaluation.html.j2",
        CHARTS if charts else (),
        title=" against ".join(names) if len(names) < 3 else f"{len(names)} evaluations",
        where=f"{first.env} / {first.split}",
        rows=rows,
        columns=[
            _column(style, name, one, rows)
            for style, (name, one) in enumerate(zip(names, evaluations, strict=True))
        ],
        compared=[
            Column(
                name=name,
                swatch=swatch(style + 1),
                state=f"{found.tasks} common tasks",
                cells=cells(found.differences, rows, sign="+"),
                notes=found.notes(name, names[0]),
            )
            for style, (name, found) in enumerate(zip(names[1:], compared, strict=True))
        ],
        base=names[0],
        charts=charts,
        legend="Bands are 95 % confidence intervals, clustered by task.",
        places="k",
        differences=_configs.differences([_about(one) for one in evaluations]),
        settings=list(_configs.flatten(_about(first))),
        failures=[failure for one in evaluations for failure in _failures(one.attempts)],
    )


def names_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """Name each by its policy, or where those are called the same by its folder; else number it."""
    policies = [Path(one.policy).name or "evaluation" for one in evaluations]
    same = len(set(policies)) < len(policies)
    seen: Counter[str] = Counter()
    names = []
    for one, policy in zip(evaluations, policies, strict=True):
        name = one.path.resolve().name if same and one.path is not None else policy
        seen[name] += 1
        names.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return names


def rows_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return what is worth a row: success, some pass@k and pass^k, reward."""
    judged = [one for one in evaluations if one.says_success]
    most = max((one.k for one in judged), default=1)
    passes = [f"pass{sign}{j}" for sign in "@^" for j in some(most)]
    return [*(["success"] if judged else []), *(passes if judged else []), "reward"]


def _column(style: int, name: str, one: Evaluation, rows: Sequence[str]) -> Column:
    state = f"{one.policy}: {one.tasks} tasks \u00d7 {one.k}, {one.failed} failed"
    return Column(name, swatch(style), state, cells(one.estimates, rows), one.notes())


def cells(estimates: Mapping[str, Estimate], rows: Sequence[str], sign: str = "") -> list[str]:
    """Return the numbers of the rows that there are, each with its interval."""
    return [_cell(estimates[row], sign) if row in estimates else "\u2013" for row in rows]


def _cell(found: Estimate, sign: str) -> str:
    value, low, high = (shown(x, sign) for x in (found.value, found.low, found.high))
    if known(found.value) is None:
        return value
    return f"{value} ({low} to {high})" if known(found.low) is not None else f"{value} (unknown)"


def _charts(names: Sequence[str], evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Draw pass@k and pass^k of those that have several attempts at a task."""
    drawn = [
        (style, name, one)
        for style, (name, one) in enumerate(zip(names, evaluations, strict=True))
        if one.k > 1 and one.says_success
    ]
    return [_chart(sign, title, note, drawn) for sign, title, note in _CURVES] if drawn else []


def _chart(sign: str, title: str, note: str, drawn: Sequence[tuple[int, str, Evaluation]]) -> Chart:
    curves = [_curve(sign, style, name, one) for style, name, one in drawn]
    ticks = [1, *some(max(one.k for _, _, one in drawn))]
    figure = _figures.curves(curves, Axis("chance"), ticks, "attempts k")
    caption = "; ".join(f"{line.name} {_ends(line)}" for line in curves)
    return Chart(title, note, caption, figure, tuple(curves))


def _ends(line: Line) -> str:
    return f"{number(line.y[0])} \u2192 {number(line.y[-1])}"


def _curve(sign: str, style: int, name: str, one: Evaluation) -> Line:
    places = range(1, one.k + 1)
    found = [one.estimates[f"pass{sign}{j}"] for j in places]
    values, low, high = (
        [known(getattr(e, name)) for e in found] for name in ("value", "low", "high")
    )
    return Line(name, places, values, style, "sparse", low, high)


def _about(one: Evaluation) -> dict[str, object]:
    return {"policy": one.policy, **one.about}


def _failures(attempts: Sequence[Attempt]) -> list[Failure]:
    """Return the first failure of each kind."""
    kinds: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.failed:
            kinds.setdefault(attempt.status.value, []).append(attempt)
    return [
        Failure(kind, len(met), met[0].task, (met[0].error or "").strip())
        for kind, met in kinds.items()
    ]
