"""The figures, each from the recorded results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dynamics.measuring import BLOCK, TEMPERATURES
from dynamics.precision import SEEDS as PRECISION_SEEDS
from dynamics.precision.variants import VARIANTS
from dynamics.results import Results
from dynamics.studies import ALONE, RECIPES, REGIMES, SEQUENTIAL, TUNING, tuning_arm
from dynamics.tables import chosen

Values = NDArray[np.floating[Any]]
GREY = "#888888"
COLOURS = {
    "rloo": "#999999",
    "grpo": "#d55e00",
    "dr-grpo": "#a65628",
    "loop": "#e69f00",
    "dapo": "#cc79a7",
    "gspo": "#56b4e9",
    "adapo": "#7b3294",
    "grpo-bonus": "#b8a000",
    "repo-r": "#0072b2",
    "repo-d": "#009e73",
}
"""Okabe and Ito's, which most colour-blind people can tell apart, and three more."""

matplotlib.use("svg")
matplotlib.rcParams |= {
    "svg.hashsalt": "isentrope",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


PAGES: dict[str, tuple[str, ...]] = {
    "policy-gradient": ("rloo", "grpo"),
    "clipping": ("grpo", "dr-grpo", "loop", "dapo"),
    "gspo": ("gspo", "dapo"),
    "entropy-bonus": ("grpo-bonus", "grpo"),
    "repo": ("repo-r", "repo-d", "grpo"),
}
"""Which recipes each page of docs/algorithms compares."""


SHOWN_REGIMES = ("4 steps", "16 steps", "16 steps, an unsure policy")


def draw(results: Results, folder: Path) -> None:
    """Draw all of them into `folder`, as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[Results], Any]] = {
        "entropy-trajectories": trajectories,
        "entropy-accuracy": entropy_and_accuracy,
        "temperatures": temperatures,
        "tuning": tuning,
        "diversity": diversity,
        "adapo": adapo_regime,
        "demo": demo,
        "sequence": sequence,
        "precision": precision,
        **{page: partial(comparison, names=names) for page, names in PAGES.items()},
    }
    for name, figure in figures.items():
        drawn = figure(results)
        drawn.tight_layout()
        drawn.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(drawn)


def comparison(results: Results, names: Sequence[str], study: str = "recipes") -> Any:
    """Entropy, success and the knobs that moved, of some of a study's arms."""
    knobs = {n: results.values(study, n, "knobs") for n in names}
    moved = [(n, path) for n, found in knobs.items() for path in found[0]]
    figure, axes = pyplot.subplots(1, 2 + len(moved), figsize=(3.2 * (2 + len(moved)), 2.6))
    for name in names:
        _lines(axes[0], _relative(results, study, name), COLOURS[name], name)
        _lines(axes[1], results.series(study, name, "series.success"), COLOURS[name], name)
    axes[0].axhline(1, color=GREY, lw=0.8, ls="--")
    axes[0].set_title("entropy / first iteration's")
    axes[0].legend()
    axes[1].set_title("success")
    for axis, (name, path) in zip(axes[2:], moved, strict=True):
        _lines(axis, np.array([found[path] for found in knobs[name]]), COLOURS[name])
        axis.axhline(0, color=GREY, lw=0.8, ls="--")
        axis.set_title(f"{name}: {path}")
    for axis in axes:
        axis.set_xlabel("iteration")
    return figure


def demo(results: Results) -> Any:
    """What `make demo` shows, on several seeds."""
    return comparison(results, ("grpo", "repo-r"), "demo")


def _iterations(values: Values) -> Values:
    return (np.arange(values.shape[-1]) + 0.5) * BLOCK


def _lines(
    axis: Axes, values: Values, colour: str, label: str | None = None, style: str = "-"
) -> None:
    """Draw the mean over seeds, and every seed [seeds, blocks] thinly behind it."""
    x = _iterations(values)
    for seed in values:
        axis.plot(x, seed, style, color=colour, lw=0.5, alpha=0.35)
    axis.plot(x, values.mean(0), style, color=colour, lw=1.6, label=label)


def _relative(results: Results, study: str, arm: str) -> Values:
    """Return entropy by its own first iteration's [seeds, blocks]."""
    first = np.array(results.values(study, arm, "first_entropy"))
    relative: Values = results.series(study, arm, "series.entropy") / first[:, None]
    return relative


def trajectories(results: Results) -> Any:
    """Entropy of every recipe, relative to its first iteration's (the paper's figure 4)."""
    figure, axes = pyplot.subplots(2, 5, figsize=(11, 4.4), sharex=True, sharey=True)
    for axis, name in zip(axes.flat, RECIPES, strict=True):
        _lines(axis, _relative(results, "recipes", name), COLOURS[name])
        axis.axhline(1, color=GREY, lw=0.8, ls="--")
        axis.set_title(name)
    axes[0, 0].set_ylim(0, 2)
    figure.supylabel("entropy / first iteration's", fontsize=9)
    figure.supxlabel("iteration", fontsize=9)
    return figure


def entropy_and_accuracy(results: Results) -> Any:
    """Mean entropy over training against final accuracy (the paper's figure 1)."""
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6))
    panels = (
        ("final.pass_at.1", "pass@1 of the last policy, temperature 1"),
        ("best_1.pass_at.1", "pass@1, best temperature"),
        ("best_8.pass_at.8", "pass@8, best temperature"),
    )
    for axis, (path, title) in zip(axes, panels, strict=True):
        for name in RECIPES:
            first = np.array(results.values("recipes", name, "first_entropy"))
            x = np.array(results.values("recipes", name, "mean_entropy")) / first
            y = np.array(results.values("recipes", name, path))
            axis.scatter(x, y, s=8, color=COLOURS[name], alpha=0.4, lw=0)
            axis.scatter(x.mean(), y.mean(), s=45, color=COLOURS[name], label=name)
        axis.axvline(1, color=GREY, lw=0.8, ls="--")
        axis.set_title(title)
        axis.set_xlabel("mean entropy over training / first iteration's")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def temperatures(results: Results) -> Any:
    """pass@1 and pass@8 on dev problems by sampling temperature."""
    figure, axes = pyplot.subplots(1, 2, figsize=(8.5, 3.4))
    for axis, k in zip(axes, ("1", "8"), strict=True):
        for name in RECIPES:
            curves = results.values("recipes", name, f"temperatures.{k}")
            axis.plot(TEMPERATURES, np.mean(curves, 0), color=COLOURS[name], label=name, lw=1.4)
        axis.set_title(f"pass@{k} on dev problems")
        axis.set_xlabel("temperature")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


CROWDED = 0.28
"""Deviation from which on settings are too near one another to be named."""


def tuning(results: Results) -> Any:
    """Every setting that was tried: how well it held entropy, and what was learnt."""
    figure, axis = pyplot.subplots(figsize=(7, 3.8))
    for name, settings in TUNING.items():
        for i, setting in enumerate(settings):
            x, y = (
                results.mean("tuning", tuning_arm(name, setting), path).mean
                for path in ("entropy_error", "dev_success")
            )
            ring = "black" if setting == chosen(results, name) else "none"
            axis.scatter(
                x, y, s=40, color=COLOURS[name], edgecolors=ring, label=None if i else name
            )
            where = (5, (-3, 4, -10, -3)[i])
            if x < CROWDED:
                axis.annotate(setting, (x, y), where, textcoords="offset points", fontsize=7)
    axis.set_title("a ring: chosen; on the right, where entropy fell, see the table", fontsize=9)
    axis.set_xlabel("mean deviation from the first iteration's entropy, relative")
    axis.set_ylabel("success on dev problems")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def diversity(results: Results) -> Any:
    """Where an episode's entropy is, and what becomes of derivations that nobody grades."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2))
    names = ["start", *RECIPES]
    for i, name in enumerate(names):
        study = "start" if name == "start" else "recipes"
        arm = "policy" if name == "start" else name
        wording = results.mean(study, arm, "surprisal.wording").mean
        rest = results.mean(study, arm, "surprisal.rest").mean
        colour = COLOURS.get(name, GREY)
        left.bar(i, wording, color=colour)
        left.bar(i, rest, bottom=wording, color=colour, alpha=0.4)
    left.set_xticks(range(len(names)), names, rotation=40, ha="right")
    left.set_ylabel("nats per episode")
    left.set_title("entropy of the wording (solid) and of the rest (pale)")
    for study, label, style in (
        ("recipes", "derivation rewarded", "-"),
        ("outcome", "answer rewarded", "--"),
    ):
        for name, colour in (("right_answer", "#e69f00"), ("right_derivation", "#0072b2")):
            shown = f"{name.replace('_', ' ')}, {label}"
            _lines(right, results.series(study, "grpo", f"series.{name}"), colour, shown, style)
    right.set_ylim(0, 1)
    right.set_xlabel("iteration")
    right.set_title("GRPO: share of episodes")
    right.legend(fontsize=7)
    return figure


def adapo_regime(results: Results) -> Any:
    """Entropy under DAPO and ADAPO by regime, and where ADAPO's bound goes."""
    figure, axes = pyplot.subplots(2, len(SHOWN_REGIMES), figsize=(9, 4.8))
    for axis, lower, title in zip(axes[0], axes[1], SHOWN_REGIMES, strict=True):
        arms = REGIMES[title]
        for name, (study, arm) in zip(("dapo", "adapo"), arms, strict=True):
            _lines(axis, _relative(results, study, arm), COLOURS[name], name)
        axis.axhline(1, color=GREY, lw=0.8, ls="--")
        axis.set_title(title)
        axis.set_ylim(0, 2)
        bounds = results.values(*arms[1], "knobs.objective.eps_high")
        _lines(lower, np.array(bounds), COLOURS["adapo"])
        lower.set_yscale("log")
        lower.set_ylim(0.015, 7)
        lower.set_title("ADAPO's upper bound")
        lower.set_xlabel("iteration")
    axes[0, 0].legend()
    axes[0, 0].set_ylabel("entropy / first iteration's")
    return figure


def sequence(results: Results) -> Any:
    """The second task: learning curves and entropy (the paper's figure 7)."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    arms = [(ALONE, GREY), *((f"B {n}", COLOURS[n]) for n in SEQUENTIAL)]
    for arm, colour in arms:
        _lines(left, results.series("sequence", arm, "series.success"), colour, arm)
        _lines(right, results.series("sequence", arm, "series.entropy"), colour, arm)
    left.set_title("success on task B")
    right.set_title("entropy on task B (nats per token)")
    for axis in (left, right):
        axis.set_xlabel("iteration")
    left.legend()
    return figure


def precision(results: Results) -> Any:
    """Entropy trained in every variant: one panel a seed, the same start, tasks and sampling."""
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), sharey=True)
    palette = ["#000000", *list(COLOURS.values())[: len(VARIANTS)]]
    for axis, seed in zip(axes, PRECISION_SEEDS, strict=True):
        for variant, colour in zip(VARIANTS, palette, strict=False):
            entropy = results.records[f"precision/trajectory/{variant}/{seed}"]["entropy"]
            whole = len(entropy) // BLOCK * BLOCK
            blocks = np.reshape(entropy[:whole], (-1, BLOCK)).mean(1)
            axis.plot(_iterations(blocks), blocks, color=colour, lw=1.2, label=variant)
        axis.set_title(f"seed {seed}")
        axis.set_xlabel("iteration")
    axes[0].set_ylabel("entropy (nats per token)")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
