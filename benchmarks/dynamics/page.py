"""docs/entropy-dynamics.md, from the record: `page.md.jinja` filled in with tables and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jinja2
import numpy as np

import dynamics.precision.tables as numerics
from dynamics import measuring, precision, studies, tables
from dynamics.markdown import number, verdict
from dynamics.precision.common import ITERATIONS
from dynamics.precision.gradients import TRAINED
from dynamics.results import Results
from dynamics.statistics import Estimate, correlation

TESTS = 128
TEMPLATE = Path(__file__).with_name("page.md.jinja")
TABLES = (
    tables.recipes,
    tables.against_grpo,
    tables.temperature,
    tables.tuning,
    tables.many_steps,
    tables.adapo,
    tables.bounds,
    tables.sequence,
    tables.outcome,
    tables.demo,
    tables.paper,
    numerics.ratios,
    numerics.drift,
    numerics.softmax,
    numerics.trajectories,
)


def render(results: Results) -> str:
    """Return the page."""
    loader = jinja2.FileSystemLoader(TEMPLATE.parent)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters |= {"number": number, "verdict": verdict}
    return environment.get_template(TEMPLATE.name).render(
        {made.__name__: partial(made, results) for made in TABLES},
        results=results,
        seeds=studies.SEEDS,
        fewer=studies.FEWER_SEEDS,
        tests=TESTS,
        start_nats=sum(_nats(results)),
        start_wording=_nats(results)[0] / sum(_nats(results)),
        at_the_edge=partial(_at_the_edge, results),
        adapo_holds=partial(_adapo_holds, results),
        measuring=measuring,
        precision=precision,
        trained=TRAINED,
        iterations=ITERATIONS,
        studies=studies,
        correlated=partial(_correlated, results),
        chosen=partial(tables.chosen, results),
        holding=partial(tables.holding, results),
        further=partial(numerics.further, results),
        HELD=tables.HELD,
        falling=partial(_changing, results, lambda e: e.high < 0),
        rising=partial(_changing, results, lambda e: e.low > 0),
        held=partial(_changing, results, lambda e: not e.differs),
        above=partial(_against, results, lambda e: e.low > 0),
        below=partial(_against, results, lambda e: e.high < 0),
    )


def write(results: Results, path: Path) -> None:
    """Write the page."""
    path.write_text(render(results), encoding="utf-8")


def _changing(results: Results, which: Callable[[Estimate], bool]) -> str:
    """Name the recipes whose entropy changed so."""
    changes = {n: results.mean("recipes", n, "entropy_change") for n in studies.RECIPES}
    return _named(name for name, change in changes.items() if which(change))


def _against(results: Results, which: Callable[[Estimate], bool], path: str) -> str:
    """Name the recipes that differ so from GRPO."""
    others = [name for name in studies.RECIPES if name != "grpo"]
    found = {name: results.change("recipes", name, "grpo", path) for name in others}
    return _named(name for name, change in found.items() if which(change))


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _nats(results: Results) -> tuple[float, float]:
    """Return what an answer of the start's policies has in its wording, and in the rest."""
    wording, rest = (
        results.mean("start", "policy", f"surprisal.{part}").mean for part in ("wording", "rest")
    )
    return wording, rest


def _at_the_edge(results: Results) -> str:
    """Say how many policies would have liked a temperature beyond those tried."""
    said = []
    for k in (1, 8):
        path = f"best_{k}.temperature"
        chosen = [t for name in studies.RECIPES for t in results.values("recipes", name, path)]
        edges = (measuring.TEMPERATURES[0], measuring.TEMPERATURES[-1])
        low, high = (sum(t == edge for t in chosen) for edge in edges)
        said.append(
            f"of the {len(chosen)} choices for pass@{k}, {low} are of the lowest that was tried "
            f"and {high} of the highest"
        )
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _adapo_holds(results: Results) -> str:
    """Say in which regimes ADAPO holds entropy."""
    held = [
        name
        for name, (_, arm) in studies.REGIMES.items()
        if abs(np.mean(results.values(*arm, "entropy_change", studies.FEWER_SEEDS))) <= tables.HELD
    ]
    within = f"within {tables.HELD:.0%}".replace("%", " %")
    return f"It ends {within} of where it began, in the mean, with: {', '.join(held) or 'none'}."


def _correlated(results: Results, path: str) -> str:
    """Say how mean entropy over training and `path` go together over recipes and seeds."""
    x, y = (
        [results.values("recipes", name, p) for name in studies.RECIPES]
        for p in ("mean_entropy", path)
    )
    found, p = correlation(x, y)
    return f"{found:+.2f} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
