"""Which charts a page has: each only where its numbers exist."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import evolve, frozen

from isentrope.reporting import _figures
from isentrope.reporting._figures import Axis, Figure, Kind, Line
from isentrope.reporting._history import History
from isentrope.reporting._scale import SignedLog
from isentrope.reporting._series import change, evenly, mean, smooth, span_of_ends, window
from isentrope.reporting._text import number, size_in_percent

_ROWS = 13
"""Of the table beside a chart."""
ENTROPY = "Entropy"
_NATS = "entropy (nats per token)"
_LEFT_OUT = (
    "groups_zero",
    "groups_short",
    "episodes_failed",
    "episodes_cancelled",
    "episodes_empty",
)


@frozen
class Chart:
    """A figure, what it says in words, and its numbers for those who cannot see it."""

    title: str
    note: str
    """What is shown, and in what unit."""
    caption: str
    """What came out."""
    figure: Figure
    series: tuple[Line, ...]

    @property
    def wide(self) -> bool:
        """Whether it gets the page's full width."""
        return self.title == ENTROPY

    @property
    def rows(self) -> list[tuple[int, list[str]]]:
        """Some iterations, evenly chosen, and the value of each series there."""
        found = [dict(zip(s.x, range(len(s.x)), strict=True)) for s in self.series]
        places = sorted({x for at in found for x in at})
        chosen = [places[i] for i in evenly(len(places), _ROWS)]
        both = list(zip(self.series, found, strict=True))
        return [(x, [_cell(line, at.get(x)) for line, at in both]) for x in chosen]


def _cell(line: Line, i: int | None) -> str:
    """Return a number of a series, and its band."""
    if i is None:
        return number(None)
    band = f" ({number(line.low[i])} to {number(line.high[i])})" if line.low else ""
    return number(line.y[i]) + band


def of_run(run: History) -> list[Chart]:
    """Return the charts of one run."""
    made = [
        _entropy([run]),
        _chart(f"Reward{' and success' * ('success' in run.keys)}",
               "means over an iteration's episodes", "per episode",
               _merged(_of(run, {"reward": "reward", "success": "success"})), from_zero=True),
        _evaluations(run),
        *(_knob(name, [run]) for name in run.moving_knobs()),
        _chart("Entropy change by the update", "exact entropy of the probe's tokens after the "
               "update, less before: the same tokens, so no noise of tasks", "nats per token",
               _of(run, {"probe/entropy_change": "measured"})),
        _chart("Entropy change predicted", "to first order, per unit of learning rate in the "
               "logits: by the estimator's advantages, and by the transformed ones",
               "nats per token",
               _merged(_of(run, _PREDICTED))),
        _chart("Entropy of single tokens", "exact, of the probe's tokens before the update",
               _NATS, _of(run, _SPREAD), from_zero=True),
        _chart("Clipped tokens", "share of an iteration's tokens whose ratio left the bounds; "
               "kept: whose advantage pulls it back, so that it keeps its gradient",
               "share of tokens", _of(run, _CLIPPED), from_zero=True),
        _chart("Tokens with gradient", "share of the learnt tokens whose log-prob had one",
               "share of tokens", _of(run, {"tokens_effective": "with gradient"}), from_zero=True),
        _chart("Importance ratios", "quantiles over all steps of an iteration", "ratio",
               _of(run, _RATIOS), scale="log"),
        _chart("Advantage and log-prob", "correlation over the learnt tokens, before transforms",
               "correlation",
               _of(run, {"advantage_logp_correlation": "correlation"})),
        _chart("What 16 bits would change", "share of tokens on which a clip at 0.8 and 1.2 would "
               "decide otherwise, had both log-probs been rounded", "share of tokens",
               _of(run, _ROUNDING), from_zero=True),
        _chart("Tokens per episode", "sampled tokens", "tokens",
               _of(run, {"tokens_per_episode": "tokens"}), from_zero=True),
        _chart("Turns per episode", "turns that the environment answered", "turns",
               _of(run, {"turns_per_episode": "turns"}), from_zero=True),
        _chart("Engine against learner", "difference of their log-probs of the same tokens; "
               "zero is not drawn", "|difference| (nats)", _of(run, _MISMATCH), scale="log"),
        *(_chart(f"Engine against learner, by {name}", "mean difference of their log-probs, of "
                 f"tokens whose {name} is in a bin; zero is not drawn", "|difference| (nats)",
                 _binned(run, f"mismatch_{name}/", unit), scale="log")
          for name, unit in _BINNED.items()),
        _chart("Engine against what it was sent", "a proof of every update: difference of log-"
               "probs of the same tokens, on the worst of the engine's servers",
               "|difference| (nats)", _of(run, _PROOF), scale="log"),
        _chart("Staleness", "updates since the policy that sampled a token", "updates",
               _of(run, _STALENESS) if any(run.values("staleness_max")) else [], from_zero=True),
        _stack("Left out", "groups and episodes that were not learnt from", "count",
               _of(run, {key: key.replace("_", " ") for key in _LEFT_OUT})),
        _stack("Failures", "episodes whose environment, grader or engine failed, retries too; they "
               "are not learnt from", "episodes",
               [line for line in _under(run, "status/") if line.name != "ok"]),
        _stack("Workers", "processes that ran environments: started and killed in an iteration; "
               "leaked are processes that closed environments left behind", "processes",
               _under(run, "workers/")),
        _stack("Why episodes ended", "every episode of an iteration, by its reason", "episodes",
               _under(run, "stop/")),
        _chart("Gradient norm", "L2, before clipping; mean over an iteration's steps", "norm",
               _of(run, {"grad_norm": "gradient norm"}), from_zero=True),
        _stack("Time", "wall-clock time of an iteration, by phase", "seconds",
               _under(run, "seconds/")),
        _chart("Tokens per second", "sampled ones: while they were sampled, environments included; "
               "and those learnt from, over log-probs and steps", "tokens per second",
               _of(run, _SPEED), from_zero=True),
        _chart("Use of the hardware", "floating-point operations that the model needs, of what "
               "matrix products reach, while learning and probing", "share",
               _of(run, {"performance/flop_utilisation": "share"}), from_zero=True),
        _chart("Peak memory", "of the process, or its GPU, that has held most so far", "GiB",
               _of(run, {"performance/peak_memory_gib": "peak"}), from_zero=True),
        _chart("Learning rate", "of each iteration's steps", "rate", _of(run, {"lr": "rate"}),
               from_zero=True),
        *(_chart(line.name, "the environment's own number", line.name, [line])
          for line in _under(run, "env/")),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


_SPEED = {
    "performance/rollout_tokens_per_second": "sampled",
    "performance/learn_tokens_per_second": "learnt from",
}
_CLIPPED = {
    "objective/clip_high": "above",
    "objective/clip_low": "below",
    "objective/kept_high": "above, kept",
    "objective/kept_low": "below, kept",
}
_PREDICTED = {
    "probe/predicted_change": "estimator's",
    "probe/predicted_change_transformed": "transformed",
}
_SPREAD = {
    "probe/entropy_p90": "90th percentile",
    "probe/entropy_p50": "median",
    "probe/entropy_p10": "10th percentile",
}
_RATIOS = {"ratio/p99": "99th percentile", "ratio/p50": "median", "ratio/p01": "1st percentile"}
_ROUNDING = {"rounding/bf16_clip_changed": "bfloat16", "rounding/fp16_clip_changed": "float16"}
_BINNED = {"position": "", "entropy": " nats", "surprise": " nats"}
_PROOF = {"proof_mean": "mean", "proof_max": "maximum"}
_STALENESS = {"staleness_mean": "mean", "staleness_max": "maximum"}
_MISMATCH = {"mismatch_mean": "mean", "mismatch_p99": "99th percentile", "mismatch_max": "maximum"}


def of_runs(runs: Sequence[History]) -> list[Chart]:
    """Return the charts of several runs, each in its colour throughout; of seeds the mean."""
    over = _overlaid(runs)
    made = [
        _entropy(runs),
        _chart("Reward", "mean over an iteration's episodes", "reward per episode",
               over("reward"), from_zero=True),
        _chart("Success", "share of an iteration's episodes", "share", over("success"),
               from_zero=True),
        *(_chart(f"Evaluation: {key.removeprefix('eval/')}", "on held-out tasks", "share",
                 over(key, kind="sparse"), from_zero=True) for key in _shared_evaluations(runs)),
        *(_knob(name, runs) for name in _union(run.moving_knobs() for run in runs)),
        _chart("Clipped above", "share of an iteration's tokens", "share of tokens",
               over("objective/clip_high"), from_zero=True),
        _chart("Clipped below", "share of an iteration's tokens", "share of tokens",
               over("objective/clip_low"), from_zero=True),
        _chart("Tokens per episode", "sampled tokens", "tokens", over("tokens_per_episode"),
               from_zero=True),
        _chart("Turns per episode", "turns that the environment answered", "turns",
               over("turns_per_episode"), from_zero=True),
        _chart("Engine against learner", "mean difference of their log-probs of the same tokens",
               "|difference| (nats)", over("mismatch_mean"), scale="log"),
        _chart("Groups of equal rewards", "left out: there is nothing to learn from them", "groups",
               over("groups_zero"), from_zero=True),
        _chart("Gradient norm", "L2, before clipping; mean over an iteration's steps", "norm",
               over("grad_norm"), from_zero=True),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


def entropy_in_words(run: History) -> str:
    """Say how far entropy moved, and whether anything held it."""
    first, last = run.ends(run.entropy)
    if first is None or last is None:
        return "Entropy was not measured."
    moved = change(first, last) or 0.0
    how = "stayed" if abs(moved) < 1 else "fell" if moved < 0 else "rose"
    size = "" if how == "stayed" else f" by {size_in_percent(moved)}"
    said = f"Entropy {how}{size}, from {number(first)} to {number(last)} nats per token"
    return f"{said}; {_aim_in_words(run, last)}."


def _aim_in_words(run: History, last: float) -> str:
    aim = run.ends(run.entropy_target)[1]
    off = change(aim, last)
    if aim is None or off is None:
        return "it had no target"
    values = run.values(run.entropy)
    paired = zip(smooth(values, window(len(values))), run.values(run.entropy_target), strict=True)
    farthest = max((abs(change(t, v) or 0.0) for v, t in paired), default=0.0)
    where = "at" if not off else f"{size_in_percent(off)} {'above' if off > 0 else 'below'}"
    return (
        f"{where} its target of {number(aim)}, and at most {size_in_percent(farthest)} away from "
        "it (moving average)"
    )


def _entropy(runs: Sequence[History]) -> Chart | None:
    measured = [
        _line(_measured(runs, run), run, run.entropy, style)
        for style, run in enumerate(runs)
        if run.entropy in run.keys
    ]
    targets = [
        Line(
            _named(runs, run, "target"),
            run.iterations,
            run.values(run.entropy_target),
            style,
            "target",
        )
        for style, run in enumerate(runs)
        if run.entropy_target in run.keys
    ]
    named = [f"{run.name}: " if len(runs) > 1 else "" for run in runs]
    caption = "\n".join(name + entropy_in_words(run) for name, run in zip(named, runs, strict=True))
    note = "per sampled token, over all usable episodes; the axis need not begin at zero"
    return _chart(ENTROPY, note, _NATS, [*measured, *targets], least=0.3, caption=caption)


def _measured(runs: Sequence[History], run: History) -> str:
    """Name a run's line; entropies by two measures in one chart must say so."""
    if len(runs) == 1:
        return "entropy"
    return f"{run.name} (exact)" if run.entropy != "entropy" else run.name


def _named(runs: Sequence[History], run: History, what: str) -> str:
    return what if len(runs) == 1 else f"{run.name} ({what})"


def _evaluations(run: History) -> Chart | None:
    """Draw success and a few pass@k; the environment's reward has another unit."""
    keys = ["eval/success", *_some(_pass_at(run))]
    lines = [
        Line(key.removeprefix("eval/"), *run.points(key), style, "sparse", *_interval(run, key))
        for style, key in enumerate(k for k in keys if k in run.keys)
    ]
    note = "success, with its 95 % interval over tasks, and pass@k on held-out tasks"
    return _chart("Evaluations", note, "share of tasks", _merged(lines), from_zero=True)


def _interval(run: History, key: str) -> list[list[float | None]]:
    """Return the edges of a metric's confidence interval, where they were recorded."""
    edges = [f"{key}_low", f"{key}_high"]
    return [run.points(edge)[1] for edge in edges if edge in run.keys]


def _pass_at(run: History) -> list[str]:
    return sorted(run.starting_with("eval/pass@"), key=lambda key: (len(key), key))


def _some(keys: Sequence[str]) -> list[str]:
    return [keys[i] for i in evenly(len(keys), 4)]


def _shared_evaluations(runs: Sequence[History]) -> list[str]:
    """Return success and the largest pass@k that any run has."""
    passes = sorted(_union(_pass_at(run) for run in runs), key=lambda key: (len(key), key))
    found = ["eval/success"] if any("eval/success" in run.keys for run in runs) else []
    return found + passes[-1:]


def _knob(name: str, runs: Sequence[History]) -> Chart | None:
    lines = [
        _line(name if len(runs) == 1 else run.name, run, name, style, "steps")
        for style, run in enumerate(runs)
        if name in run.keys
    ]
    log = SignedLog.fitting(v for line in lines for v in line.y)
    note = "its value in each iteration" + ("; logarithmic, through zero" if log else "")
    return _chart(f"Knob {name}", note, name, lines, scale="signed-log")


def _overlaid(runs: Sequence[History]) -> Callable[..., list[Line]]:
    """Return what draws one metric of every run; a run has the same style in every chart."""

    def over(key: str, *, kind: Kind = "noisy") -> list[Line]:
        return [
            _line(run.name, run, key, style, kind)
            for style, run in enumerate(runs)
            if key in run.keys
        ]

    return over


def _line(name: str, run: History, key: str, style: int, kind: Kind = "noisy") -> Line:
    """Return a metric of a run; of the mean of several, with the band that holds its seeds."""
    line = Line(name, *run.points(key), style, kind)
    return _banded(line, key, run.seeds) if run.seeds else line


def _banded(line: Line, key: str, seeds: Sequence[History]) -> Line:
    """Add the lowest and the highest of seeds at a line's places, each averaged as the line is."""
    found = []
    for one in seeds:
        at = dict(zip(*one.points(key), strict=True))
        values = [at.get(x) for x in line.x]
        found.append(smooth(values, window(len(values))) if line.kind == "noisy" else values)
    known = [[v for v in values if v is not None] for values in zip(*found, strict=True)]
    low, high = ([edge(values, default=None) for values in known] for edge in (min, max))
    return evolve(line, low=low, high=high)


def _of(run: History, names: dict[str, str]) -> list[Line]:
    known = [(key, name) for key, name in names.items() if key in run.keys]
    return [
        Line(name, run.iterations, run.values(key), style)
        for style, (key, name) in enumerate(known)
    ]


def _under(run: History, prefix: str) -> list[Line]:
    names = {key: key.removeprefix(prefix).replace("_", " ") for key in run.starting_with(prefix)}
    return _of(run, names)


def _binned(run: History, prefix: str, unit: str) -> list[Line]:
    """Return the series of bins, named by where each begins, lowest first."""
    keys = sorted(run.starting_with(prefix), key=lambda key: float(key.removeprefix(prefix)))
    return _of(run, {key: f"from {key.removeprefix(prefix)}{unit}" for key in keys})


def _chart(
    title: str,
    note: str,
    unit: str,
    lines: Sequence[Line],
    *,
    scale: _figures.Scale = "linear",
    from_zero: bool = False,
    least: float = 0.0,
    caption: str | None = None,
) -> Chart | None:
    if all(line.kind == "target" for line in lines):
        return None
    figure = _figures.lines(lines, Axis(unit, scale, from_zero, least))
    said = _in_words(lines) if caption is None else caption
    return Chart(title, note, said, figure, tuple(lines))


def _merged(lines: Sequence[Line]) -> list[Line]:
    """Draw series that are equal throughout once, under both names: one would hide the other."""
    merged: list[Line] = []
    for line in lines:
        twin = next((i for i, m in enumerate(merged) if (m.x, m.y) == (line.x, line.y)), None)
        if twin is None:
            merged.append(line)
        else:
            merged[twin] = evolve(merged[twin], name=f"{merged[twin].name} = {line.name}")
    return merged


def _stack(title: str, note: str, unit: str, lines: Sequence[Line]) -> Chart | None:
    """Stack what is not zero throughout."""
    lines = [line for line in lines if any(line.y)]
    if not lines:
        return None
    figure = _figures.stack(lines, Axis(unit))
    return Chart(title, note, _in_words(lines), figure, tuple(lines))


def _in_words(lines: Sequence[Line]) -> str:
    """Say where each series began and ended."""
    return "; ".join(filter(None, map(_line_in_words, lines)))


def _line_in_words(line: Line) -> str:
    span = span_of_ends(len(line.y)) if line.kind == "noisy" else 1
    first, last = mean(line.y[:span]), mean(line.y[-span:])
    return f"{line.name} {number(first)} \u2192 {number(last)}"


def _union(lists: Iterable[Iterable[str]]) -> Iterator[str]:
    return iter(dict.fromkeys(name for names in lists for name in names))
