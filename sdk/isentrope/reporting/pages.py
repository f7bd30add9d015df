"""Pages: of a run, of an evaluation, and of several of them laid over one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import evolve, frozen

from isentrope.errors import ConfigError
from isentrope.evaluation.result import Evaluation
from isentrope.reporting import _charts, _configs
from isentrope.reporting._episodes import EpisodeFile, as_text
from isentrope.reporting._evaluations import (
    Column,
    as_evaluation,
    cells,
    names_of,
    page_of,
    rows_of,
)
from isentrope.reporting._history import History
from isentrope.reporting._page import BROWSER, CHARTS, LIVE, render, swatch, write
from isentrope.reporting._paired import Evaluated, Paired, paired
from isentrope.reporting._seeds import pooled
from isentrope.reporting._series import change, window
from isentrope.reporting._text import counted, number, percent
from isentrope.runs import Run

_ENDS = (("reward", "Reward"), ("success", "Success"), ("entropy", "Entropy, nats per token"))


@frozen
class Ends:
    """A metric at both ends of a run."""

    name: str
    first: str
    last: str
    change: str
    spread: str
    """The lowest and the highest of seeds at its end; empty for a single run."""


def report(of: Run | Evaluation | str | Path, out: str | Path | None = None) -> Path:
    """Write a page about a run or an evaluation, finished or not; return its path.

    out: the file; None for ``report.html`` in its folder. The page is one file, and fetches
    nothing.

    Raises `ConfigError` where `of` is neither, or the page cannot be written.
    """
    if (evaluation := as_evaluation(of)) is not None:
        if out is None and evaluation.path is None:
            raise ConfigError("This evaluation has no folder: name the page's file as `out`.")
        place = Path(evaluation.path or "") / "report.html" if out is None else Path(out)
        return write(place, page_of([evaluation]))
    assert not isinstance(of, Evaluation)  # it would have been one
    history = History.read(of)
    place = history.path / "report.html" if out is None else Path(out)
    episodes = EpisodeFile(Run(history.path))
    episodes.update()
    return write(place, page_of_run(history, episodes, episodes.embedded()))


def compare(*of: Run | Evaluation | str | Path, out: str | Path | None = None) -> Path:
    """Write a page that lays runs, or evaluations, over one another, and lists what differs.

    Evaluations, and those that runs made while they trained, are subtracted from the first's, task
    by task. Runs that differ in the seed alone are one: its mean, and a band that holds every seed.
    out: the file; None for ``compare.html`` in the current folder.

    Raises `ConfigError` for fewer than two, where one is neither, for runs beside evaluations, and
    where the page cannot be written.
    """
    place = Path("compare.html" if out is None else out)
    runs, evaluations = _read(of)
    return write(place, page_of(evaluations) if evaluations else _page_of_runs(runs))


def compared(of: Sequence[Run | Evaluation | str | Path]) -> list[Paired]:
    """Return the differences that `compare` shows: of all but the first from the first.

    Raises `ConfigError` as `compare` does.
    """
    runs, evaluations = _read(of)
    if not evaluations:
        return paired([Evaluated.of(run) for run in runs])
    (base, first), *others = zip(names_of(evaluations), evaluations, strict=True)
    return [Paired(name, base, None, other.against(first)) for name, other in others]


def _read(
    of: Sequence[Run | Evaluation | str | Path],
) -> tuple[list[History], list[Evaluation]]:
    """Read runs, of seeds the mean, or evaluations."""
    if len(of) < 2:
        raise ConfigError(f"compare needs two runs or more, or two evaluations; got {len(of)}.")
    paths = [one if isinstance(one, (str, Path)) else one.path for one in of]
    places = [Path(path).resolve() for path in paths if path is not None]
    if twice := [str(place) for place in dict.fromkeys(places) if places.count(place) > 1]:
        raise ConfigError(f"compare got {twice[0]} twice.")
    evaluations = [found for one in of if (found := as_evaluation(one)) is not None]
    if evaluations and len(evaluations) < len(of):
        raise ConfigError("compare takes runs or evaluations, and not both at once.")
    runs = [] if evaluations else [History.read(r) for r in of if not isinstance(r, Evaluation)]
    return _told_apart(pooled(runs)), evaluations


def page_of_run(
    history: History,
    episodes: EpisodeFile,
    chunks: Mapping[str, bytes],
    *,
    live: str | None = None,
    scripts: bool = True,
) -> str:
    """Return the page of a run.

    chunks: of the episodes, by name, to be part of it. live: it asks its server for them, and for
    what is new when this stamp is no longer the server's. scripts: False for what another page
    takes over, which has them.
    """
    charts = _charts.of_run(history)
    run = [
        *(CHARTS if charts or live else ()),
        *(BROWSER if chunks or live else ()),
        *(LIVE if live else ()),
    ]
    return render(
        "report.html.j2",
        run if scripts else (),
        title=history.name,
        run=history,
        state=_state(history),
        facts=_facts(history),
        versions=_versions(history),
        algorithm=_configs.algorithm_in_words(history.config),
        learning=_configs.learning_in_words(history.config),
        verdict=_charts.entropy_in_words(history) if history.metrics else "",
        ends=_ends(history, [history]),
        charts=charts,
        smoothed=window(len(history.metrics)) > 1,
        episodes=episodes,
        chunks=[(name, as_text(data)) for name, data in chunks.items()],
        settings=list(_configs.flatten(history.config)),
        live=live,
    )


def _page_of_runs(runs: Sequence[History]) -> str:
    charts = _charts.of_runs(runs)
    evaluated = [Evaluated.of(run) for run in runs]
    differences = paired(evaluated)
    rows = rows_of([e for run in evaluated for found in run.during.values() for e in found])
    return render(
        "compare.html.j2",
        CHARTS if charts else (),
        title=" against ".join(run.name for run in runs),
        runs=runs,
        seeds=any(run.seeds for run in runs),
        states=[_state(run) for run in runs],
        swatches=[swatch(style) for style, _ in enumerate(runs)],
        ends=[_ends(run, runs) for run in runs],
        evaluations=[
            Column(run.name, swatch(style), f"iteration {run.last}", cells(run.estimates, rows), [])
            for style, run in enumerate(evaluated)
            if run.last is not None
        ],
        compared=[
            Column(
                name=one.name,
                swatch=swatch(style + 1),
                state=f"iteration {one.iteration}, {one.found.tasks} common tasks",
                cells=cells(one.found.differences, rows, sign="+"),
                notes=one.found.notes(one.name, one.base),
            )
            for style, one in enumerate(differences)
            if one.found is not None
        ],
        problems=[one.problem for one in differences if one.problem],
        rows=rows,
        base=runs[0].name,
        differences=_configs.differences([run.config for run in runs]),
        charts=charts,
        smoothed=any(window(len(run.metrics)) > 1 for run in runs),
    )


def _told_apart(runs: Sequence[History]) -> list[History]:
    """Name runs whose folders have the same name by the folders above too; or number them."""
    alike: dict[str, list[History]] = {}
    for run in runs:
        alike.setdefault(run.name, []).append(run)
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        name, above = run.name, [one.path.resolve().parent.name for one in alike[run.name]]
        if len(set(above)) > 1:
            name = f"{run.path.resolve().parent.name}/{name}"
        seen[name] += 1
        named.append(evolve(run, name=f"{name} ({seen[name]})" if seen[name] > 1 else name))
    return named


def _state(run: History) -> str:
    if run.seeds:
        each = dict.fromkeys(map(_state, run.seeds))
        return f"{len(run.seeds)} seeds ({_seeds(run)}). {'; '.join(each)}"
    done = len(run.metrics)
    progress = f"{done:,} of {counted(run.wanted, 'iteration')}"
    if run.stopped is not None:
        return f"{progress}. Stopped: {run.stopped}"
    if done < run.wanted:
        return f"{progress}: unfinished" if done else f"{progress}: no metrics yet"
    return f"{progress}: finished"


def _seeds(run: History) -> str:
    return ", ".join(str(seed) for seed in run.config["seed"])


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


def _ends(run: History, among: Sequence[History]) -> list[Ends]:
    """Return the ends of a run, of what is measured in some of a page's."""
    rows = []
    for key, name in _ENDS:
        if key == "success" and not any(key in one.keys for one in among):
            continue  # no environment says what one is
        key = run.entropy if key == "entropy" else key
        first, last = run.ends(key) if key in run.keys else (None, None)
        moved = percent(change(first, last))
        rows.append(Ends(name, number(first), number(last), moved, _spread(run, key)))
    return rows


def _spread(run: History, key: str) -> str:
    """Return the lowest and the highest of seeds at the end of their mean."""
    shared = [evolve(one, metrics=one.metrics[: len(run.metrics)]) for one in run.seeds]
    lasts = [last for one in shared if (last := one.ends(key)[1]) is not None]
    return f"{number(min(lasts))} to {number(max(lasts))}" if lasts else ""
