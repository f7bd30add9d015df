"""Series to figures: plain data in plotly's JSON schema, drawn by its script in the page.

Every colour is one of the light palette below; the page's script swaps it for the dark one, index
by index, where the reader's screen is dark. The hues are Okabe and Ito's, darkened or lightened
until they stand out from their background: they stay apart for colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, frozen

from isentrope.reporting import _series
from isentrope.reporting._scale import SignedLog
from isentrope.reporting._series import Values
from isentrope.reporting._text import label

Figure = dict[str, Any]
Scale = Literal["linear", "log", "signed-log"]
Kind = Literal["noisy", "steps", "sparse", "target"]
"""How a series is drawn: faint points under a moving average; its exact values as steps; marked
points; or dashed, because it is not measured but aimed at."""

INK, GRID, PAPER = "#24292f", "#d8dee4", "#ffffff"
_THIN = "33"
"""Makes a colour nearly transparent."""
_HUES = ("#0072b2", "#d55e00", "#008a64", "#a8508a", "#a97500", "#5a55b5", "#6b7280", "#b91c3c")
_DARK = ("#5bb8f0", "#ff8f45", "#2ed3a6", "#e59ac8", "#f2c14e", "#aaa8f7", "#b4bcc8", "#ff7a93")
PALETTE = {
    **dict(zip(_HUES, _DARK, strict=True)),
    **{f"{light}{_THIN}": f"{dark}{_THIN}" for light, dark in zip(_HUES, _DARK, strict=True)},
    INK: "#e6edf3",
    GRID: "#30363d",
    PAPER: "#161b22",
}
"""Light colour to dark colour."""
_SILENT = {"showlegend": False, "hoverinfo": "skip", "hovertemplate": None}
_DASHES = ("solid", "dot", "dashdot", "longdash")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_DIGITS = 5
_FEW = 10
"""Iterations that each get a tick: of fewer, plotly would put ticks between."""


@frozen
class Line:
    """A series, and how it looks."""

    name: str
    x: Sequence[int]
    y: Values
    style: int = 0
    """Index of hue and, when all are used up, of dash."""
    kind: Kind = "noisy"
    low: Values = ()
    high: Values = ()
    """The edges of a band round it; empty for none."""

    @property
    def hue(self) -> str:
        """The colour in the light palette."""
        return _HUES[self.style % len(_HUES)]

    @property
    def shape(self) -> str:
        """How plotly goes from point to point."""
        return "hv" if self.kind == "steps" else "linear"

    @property
    def dash(self) -> str:
        """Solid, until the hues are used up; a target is always dashed."""
        return "dash" if self.kind == "target" else _DASHES[self.style // len(_HUES) % len(_DASHES)]


@frozen
class Axis:
    """The axis of the numbers."""

    title: str
    scale: Scale = "linear"
    from_zero: bool = False
    least: float = 0.0
    """Share of the largest value that the axis spans at least, lest noise fill the chart."""


def lines(series: Sequence[Line], axis: Axis) -> Figure:
    """Draw faint points and a moving average for each series, targets and sparse ones as lines."""
    every = [v for line in series for v in (*line.y, *line.low, *line.high)]
    log = SignedLog.fitting(every) if axis.scale == "signed-log" else None
    traces = [trace for line in series for trace in _traces(line, log)]
    layout = _layout(axis, len(series) > 1, _y(axis, log, every), series)
    return {"data": traces, "layout": layout}


def stack(series: Sequence[Line], axis: Axis) -> Figure:
    """Draw series on top of one another."""
    traces = [
        _trace(evolve(line, x=_series.thin_places(line.x), y=_series.thin_means(line.y)), None)
        | {"stackgroup": "one", "mode": "lines", "line": {"color": line.hue, "width": 0.7}}
        for line in series
    ]
    return {"data": traces, "layout": _layout(axis, True, _y(axis, None, []), series)}


def curves(series: Sequence[Line], axis: Axis, ticks: Sequence[int], title: str) -> Figure:
    """Draw lines with their bands over places that are spread logarithmically.

    ticks, title: of the axis of places.
    """
    layout = _layout(axis, len(series) > 1, {"range": [-0.02, 1.02]})
    layout["xaxis"] |= {"type": "log", "tickvals": list(ticks), "ticktext": list(map(str, ticks))}
    layout["xaxis"]["title"]["text"] = title
    bands = [edge for line in series for edge in _band(line)]
    drawn = [_drawn(line, None) | _look(line, marked=True) for line in series]
    return {"data": [*bands, *drawn], "layout": layout}


def _band(line: Line, log: SignedLog | None = None) -> Iterable[Figure]:
    """Return the edges of a band, of which the second fills it."""
    edge = {"mode": "lines", "line": {"color": line.hue, "width": 0, "shape": line.shape}}
    fill = {"fill": "tonexty", "fillcolor": f"{line.hue}{_THIN}"}
    for values, filled in ((line.low, {}), (line.high, fill)):
        yield _drawn(line, log, values) | edge | _SILENT | filled


def _traces(line: Line, log: SignedLog | None) -> Iterable[Figure]:
    """Return the average last, so that it lies on the points, or on the band."""
    width = _series.window(len(line.y)) if line.kind == "noisy" else 1
    if line.low:
        yield from _band(line, log)
    elif width > 1:
        yield _drawn(line, log) | _faint(line)
    if width > 1:
        line = evolve(line, y=_series.smooth(line.y, width))
    yield _drawn(line, log) | _look(line, marked=width == 1 and line.kind in ("noisy", "sparse"))


def _faint(line: Line) -> Figure:
    marker = {"color": line.hue, "size": 4.5}
    return {"mode": "markers", "marker": marker, "opacity": 0.4} | _SILENT


def _look(line: Line, *, marked: bool) -> Figure:
    stroke = {"color": line.hue, "width": 2.4, "dash": line.dash, "shape": line.shape}
    look: Figure = {"line": stroke}
    return look | ({"mode": "lines+markers", "marker": {"size": 7}} if marked else {})


def _drawn(line: Line, log: SignedLog | None, values: Values | None = None) -> Figure:
    """Return the trace of a series, or of other values at its places, thinned."""
    chosen, values = _series.thin(line.y), line.y if values is None else values
    thinned = evolve(line, x=[line.x[i] for i in chosen], y=[values[i] for i in chosen])
    return _trace(thinned, log)


def _trace(line: Line, log: SignedLog | None) -> Figure:
    values = [_rounded(v) for v in line.y]
    trace: Figure = {
        "type": "scatter",
        "mode": "lines",
        "name": label(line.name),
        "legendgroup": label(line.name),
        "x": list(line.x),
        "y": values,
        "connectgaps": False,
        "hovertemplate": "%{y:.4g}",
    }
    if log is not None:
        trace["y"] = [None if v is None else _rounded(log.place(v)) for v in values]
        trace |= {"customdata": values, "hovertemplate": "%{customdata:.4g}"}
    return trace


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _y(axis: Axis, log: SignedLog | None, values: Values) -> Mapping[str, Any]:
    if log is not None:
        places, texts = log.ticks(values)
        return {"tickvals": places, "ticktext": texts}
    if axis.scale == "log":
        return {"type": "log", "minexponent": 3, "minorloglabels": "complete"}
    if axis.least:
        return {"range": _range(values, axis.least)}
    return {"rangemode": "tozero" if axis.from_zero else "normal"}


def _range(values: Values, least: float) -> list[float]:
    """Return what holds all values with some room, and is no narrower than `least` of the top."""
    known = [v for v in values if v is not None]
    low, high = min(known), max(known)
    half = max(0.55 * (high - low), 0.5 * least * abs(high), 1e-9)
    middle = (low + high) / 2
    return [max(middle - half, 0.0) if low >= 0 else middle - half, middle + half]


def _layout(axis: Axis, legend: bool, y: Mapping[str, Any], series: Sequence[Line] = ()) -> Figure:
    """Return what is round the lines; series: over iterations, which are never between two."""
    places = [x for line in series for x in line.x]
    few = bool(places) and max(places) - min(places) <= _FEW
    common = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    return {
        "autosize": True,
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 12, "t": 12, "b": 44},
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": GRID, "font": {"color": INK}},
        "xaxis": {
            "title": {"text": "iteration", "font": {"size": 13}},
            "showgrid": False,
            **({"dtick": 1} if few else {}),
            **common,
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": label(axis.title), "font": {"size": 13}},
            "exponentformat": "power",
            "minexponent": 5,  # 0.0003, and not 300\u00b5
            **common,
            **y,
        },
    }
