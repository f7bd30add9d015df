"""Pages: what stands on them, put into a template and written to a file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from isentrope.errors import ConfigError
from isentrope.reporting import _charts, _configs
from isentrope.reporting._episodes import Highlights
from isentrope.reporting._figures import PALETTE, Line
from isentrope.reporting._history import History
from isentrope.reporting._series import change
from isentrope.reporting._text import counted, number, percent, visible
from isentrope.runs import Run

if TYPE_CHECKING:
    from jinja2 import Environment

_ENDS = (("reward", "Reward"), ("success", "Success"), ("entropy", "Entropy, nats per token"))


@frozen
class Ends:
    """A metric at both ends of a run."""

    name: str
    first: str
    last: str
    change: str


def report(run: Run | str | Path, out: Path | None = None) -> Path:
    """Write a page about a run, finished or not; return its path.

    out: the file; None for ``report.html`` in the run's folder. The page is one file, and fetches
    nothing.

    Raises `ConfigError` where `run` is no run, or the page cannot be written.
    """
    history = History.read(run)
    page = _render(
        "report.html.j2",
        title=history.name,
        run=history,
        state=_state(history),
        facts=_facts(history),
        versions=_versions(history),
        algorithm=_configs.algorithm_in_words(history.config),
        learning=_configs.learning_in_words(history.config),
        verdict=_charts.entropy_in_words(history) if history.metrics else "",
        ends=_ends(history),
        charts=_charts.of_run(history),
        highlights=Highlights.of(history.path),
        settings=list(_configs.flatten(history.config)),
    )
    return _write(history.path / "report.html" if out is None else Path(out), page)


def compare(*runs: Run | str | Path, out: Path | None = None) -> Path:
    """Write a page that lays runs over one another, and lists how their configs differ.

    out: the file; None for ``compare.html`` in the current folder.

    Raises `ConfigError` for fewer than two runs, where one is no run, or where the page cannot be
    written.
    """
    if len(runs) < 2:
        raise ConfigError(f"compare needs two runs or more; got {len(runs)}.")
    histories = _told_apart([History.read(run) for run in runs])
    page = _render(
        "compare.html.j2",
        title=" against ".join(run.name for run in histories),
        runs=histories,
        states=[_state(run) for run in histories],
        swatches=[_swatch(style) for style, _ in enumerate(histories)],
        ends=[_ends(run) for run in histories],
        evaluated=[number(_last(run, "eval/success")) for run in histories],
        differences=_configs.differences([run.config for run in histories]),
        charts=_charts.of_runs(histories),
    )
    return _write(Path("compare.html") if out is None else Path(out), page)


def _told_apart(runs: Sequence[History]) -> list[History]:
    """Number runs whose folders have the same name."""
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        seen[run.name] += 1
        again = seen[run.name] > 1
        named.append(evolve(run, name=f"{run.name} ({seen[run.name]})") if again else run)
    return named


def _state(run: History) -> str:
    done = len(run.metrics)
    progress = f"{done:,} of {counted(run.wanted, 'iteration')}"
    if run.stopped is not None:
        return f"{progress}. Stopped: {run.stopped}"
    if done < run.wanted:
        return f"{progress}: unfinished" if done else f"{progress}: no metrics yet"
    return f"{progress}: finished"


def _facts(run: History) -> list[tuple[str, str]]:
    """Return what ran."""
    begun, written = run.written("config.toml"), run.written("metrics.jsonl")
    return [
        ("Environment", _configs.name_of(run.config.get("env"))),
        ("Model", _configs.name_of(run.config.get("model"))),
        ("Engine", _configs.name_of(run.config.get("engine"))),
        ("Seed", str(run.config.get("seed", _configs.ABSENT))),
        ("Begun", f"{begun:%Y-%m-%d %H:%M} UTC" if begun else _configs.ABSENT),
        ("Last iteration", f"{written:%Y-%m-%d %H:%M} UTC" if written else _configs.ABSENT),
    ]


def _versions(run: History) -> str:
    packages = {"python": run.about.get("python"), **run.about.get("packages", {})}
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _ends(run: History) -> list[Ends]:
    rows = []
    for key, name in _ENDS:
        first, last = run.ends(run.entropy if key == "entropy" else key)
        rows.append(Ends(name, number(first), number(last), percent(change(first, last))))
    return rows


def _swatch(style: int) -> str:
    """Return a run's colour, as the charts draw it, for light and for dark screens."""
    hue = Line("", (), (), style).hue
    return f"light-dark({hue}, {PALETTE[hue]})"


def _last(run: History, key: str) -> float | None:
    return next((v for v in reversed(run.points(key)[1]) if v is not None), None)


def _render(template: str, **values: Any) -> str:
    scripts = {"plotly": _plotly(), "charts": _asset("charts.js")}
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in scripts.values())
    return (
        _templates()
        .get_template(template)
        .render(style=_asset("page.css"), scripts=scripts, hashes=hashes, palette=PALETTE, **values)
    )


@cache
def _templates() -> Environment:
    """Return the templates, in which every value is escaped and made visible."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if type(value) is str else value

    def as_script_data(value: Mapping[str, Any]) -> Markup:
        """Write JSON that ends no script element, whatever its strings hold."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return Markup(text)  # noqa: S704  # escaped above, and json.dumps leaves only ASCII

    made = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["as_script_data"] = as_script_data
    made.filters["counted"] = counted
    return made


def _asset(name: str) -> str:
    return files("isentrope.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n")


def _digest(script: str) -> str:
    """Return what the page's content security policy names a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _write(path: Path, page: str) -> Path:
    try:
        path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"Page {path} cannot be written: {error.strerror}.") from error
    return path
