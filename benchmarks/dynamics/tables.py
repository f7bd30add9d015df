"""The tables of the page, but for those of the numerics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from dynamics import studies
from dynamics.markdown import number, percent, share, signed, table
from dynamics.results import Results
from dynamics.statistics import Estimate, difference, estimate
from dynamics.studies import tuning_arm

PAPER = {
    "rloo": ("+4 %", "-36 %", "-29 %"),
    "grpo": ("-64 %", "-57 %", "-47 %"),
    "loop": ("-53 %", "-60 %", ""),
    "dapo": ("+40 %", "+298 %", "+158 %"),
    "gspo": ("+2 %", "-14 %", "+37 %"),
    "adapo": ("-2 %", "+102 %", "+93 %"),
    "grpo-bonus": ("-6 %", "+27 %", ""),
    "repo-r": ("-9 %", "+7 %", "+91 %"),
}
"""Entropy change over training: Qwen3-8B and 32B on AppWorld, Qwen3-8B on AIME."""
HELD = 0.1
"""Relative change of entropy up to which a setting holds it."""

Cell = Callable[[str], str]


def recipes(results: Results) -> str:
    """What every recipe does to entropy, and what is learnt."""
    mean = partial(results.mean, "recipes")

    def best_seed(name: str) -> str:
        return f"{max(results.values('recipes', name, 'test.pass_at.1')):.2f}"

    return _by_recipe(
        [
            ("steps an iteration", lambda n: f"{mean(n, 'steps').mean:.1f}"),
            ("entropy, change at the end", lambda n: percent(mean(n, "entropy_change"))),
            ("deviation over training", lambda n: percent(mean(n, "entropy_error"), sign=False)),
            ("knob at an end", partial(_at_an_end, results)),
            ("at the best checkpoint", lambda n: percent(mean(n, "entropy_change_at_best"))),
            ("cumulative entropy", lambda n: number(mean(n, "cumulative_entropy"), 0)),
            ("reward at the end", lambda n: number(mean(n, "last_reward"))),
            ("success on dev", lambda n: number(mean(n, "dev_success"))),
            ("success on test", lambda n: number(mean(n, "test.pass_at.1"))),
            ("best seed", best_seed),
            ("pass@8", lambda n: number(mean(n, "test.pass_at.8"))),
            ("different right answers", lambda n: number(mean(n, "test.distinct_texts"), 1)),
        ]
    )


def _at_an_end(results: Results, name: str) -> str:
    """Return the share of training in which a recipe's knob sat at an end of its range."""
    if name not in studies.CONTROLLED:
        return ""
    knob, low, high = studies.CONTROLLED[name]
    return share(at_end(results.values("recipes", name, f"knobs.{knob}"), low, high))


def at_end(values: Any, low: float, high: float) -> float:
    """Return the share of a knob's values that are within a hundredth of an end of its range."""
    found = np.array(values)
    near_low = found <= low + 0.01 * abs(low)
    return float((near_low | (found >= high - 0.01 * abs(high))).mean())


def against_grpo(results: Results) -> str:
    """Differences from GRPO, paired by seed; bold where 0 is left out."""

    def cell(path: str, name: str) -> str:
        digits = 1 if path.endswith("texts") else 2
        return signed(results.change("recipes", name, "grpo", path), digits)

    paths = {
        "success": "test.pass_at.1",
        "success of the last policy": "final.pass_at.1",
        "reward at the end": "last_reward",
        "pass@8": "test.pass_at.8",
        "pass@1, best temperature": "best_1.pass_at.1",
        "pass@8, best temperature": "best_8.pass_at.8",
        "different right answers": "test.distinct_texts",
    }
    others = [name for name in studies.RECIPES if name != "grpo"]
    return _by_recipe([(title, partial(cell, path)) for title, path in paths.items()], others)


def temperature(results: Results) -> str:
    """pass@k at temperature 1, and at each policy's best."""

    def at(k: int, name: str) -> str:
        return f"{np.median(results.values('recipes', name, f'best_{k}.temperature')):g}"

    def of(path: str, name: str) -> str:
        return number(results.mean("recipes", name, path))

    return _by_recipe(
        [
            ("pass@1, T = 1", partial(of, "test.pass_at.1")),
            ("best T", partial(of, "best_1.pass_at.1")),
            ("T (median)", partial(at, 1)),
            ("pass@8, T = 1", partial(of, "test.pass_at.8")),
            ("best T", partial(of, "best_8.pass_at.8")),
            ("T (median)", partial(at, 8)),
        ]
    )


def tuning(results: Results) -> str:
    """Every setting that was tried; bold what was chosen."""

    def cells(name: str, setting: str) -> list[str]:
        arm = tuning_arm(name, setting)
        success, error = (
            results.mean("tuning", arm, path).mean for path in ("dev_success", "entropy_error")
        )
        shown = f"`{name}` {setting}"
        shown = f"**{shown}**" if setting == chosen(results, name) else shown
        holds = "yes" if setting in holding(results, name) else ""
        off = share(_off(results, name, setting))
        return [shown, f"{success:.3f}", share(error), off, holds]

    head = ["setting", "success on dev", "deviation of entropy", "off at the end", "holds"]
    return table(head, (cells(name, s) for name, found in studies.TUNING.items() for s in found))


def chosen(results: Results, name: str) -> str:
    """Return the setting of a controlled recipe that tuning chooses.

    Of those that hold entropy, the one under which most is learnt; if none does, the one under
    which it deviates least.
    """

    def of(setting: str, path: str) -> list[float]:
        return results.values("tuning", tuning_arm(name, setting), path)

    settings = studies.TUNING[name]
    if held := holding(results, name):
        return max(held, key=lambda s: float(np.mean(of(s, "dev_success"))))
    return min(settings, key=lambda s: float(np.mean(of(s, "entropy_error"))))


def holding(results: Results, name: str) -> list[str]:
    """Return the settings of a controlled recipe that hold entropy."""
    return [s for s in studies.TUNING[name] if _off(results, name, s) <= HELD]


def _off(results: Results, name: str, setting: str) -> float:
    """Return how far from where it began entropy ends, up or down: mean over seeds."""
    changes = results.values("tuning", tuning_arm(name, setting), "entropy_change")
    return float(np.abs(changes).mean())


def many_steps(results: Results) -> str:
    """Many steps an iteration against few, on the seeds that have both."""
    paths = {
        "steps": "steps",
        "success": "test.pass_at.1",
        "pass@8": "test.pass_at.8",
        "cumulative entropy": "cumulative_entropy",
    }

    def cell(path: str, name: str) -> str:
        many, few = ("many-steps", name), ("recipes", name)
        if path == "steps":
            taken = (results.mean(*arm, path).mean for arm in (few, many))
            return " to ".join(f"{steps:.1f}" for steps in taken)
        digits = 0 if path == "cumulative_entropy" else 2
        return signed(results.differ(many, few, path), digits)

    columns = [(title, partial(cell, path)) for title, path in paths.items()]
    return _by_recipe(columns, studies.MANY_STEPS)


def adapo(results: Results) -> str:
    """DAPO and ADAPO in every regime, on the seeds that both of them have."""
    head = [
        "regime",
        "clipped above, fixed bound",
        "entropy change, fixed bound",
        "ADAPO",
        "deviation, ADAPO's less the fixed one's",
        "success, the same",
        "its bound at an end of its range",
    ]
    return table(head, (_regime(results, name) for name in studies.REGIMES))


def _regime(results: Results, name: str) -> list[str]:
    fixed, moving = studies.REGIMES[name]

    def of(arm: tuple[str, str], path: str) -> list[Any]:
        return results.values(*arm, path, studies.FEWER_SEEDS)

    bounds = of(moving, "knobs.objective.eps_high")
    low, high = studies.SCALE_OF_GSPO if "GSPO" in name else studies.SCALE_OF_DAPO
    return [
        name,
        share(float(np.mean(of(fixed, "series.clip_high"))), ".1%"),
        percent(estimate(of(fixed, "entropy_change"))),
        percent(estimate(of(moving, "entropy_change"))),
        signed(difference(of(moving, "entropy_error"), of(fixed, "entropy_error"))),
        signed(difference(of(moving, "test.pass_at.1"), of(fixed, "test.pass_at.1"))),
        share(at_end(bounds, low, high)),
    ]


def bounds(results: Results) -> str:
    """What a fixed upper bound does."""
    arms = {f"{b:g}": ("adapo", f"dapo bound {b:g}") for b in studies.BOUNDS}
    arms["0.28"] = ("many-steps", "dapo")
    rows = []
    for bound, (study, arm) in sorted(arms.items(), key=lambda item: float(item[0])):
        seeds = studies.FEWER_SEEDS
        clipped, change = (
            results.values(study, arm, path, seeds)
            for path in ("series.clip_high", "entropy_change")
        )
        rows.append([bound, share(float(np.mean(clipped)), ".1%"), percent(estimate(change))])
    return table(["bound", "clipped above", "entropy change"], rows)


def sequence(results: Results) -> str:
    """Task A, and task B after it or alone."""
    arms = [studies.ALONE, *(f"{task} {n}" for task in "AB" for n in studies.SEQUENTIAL)]
    rows = (
        [
            arm,
            f"{results.mean('sequence', arm, 'first_success').mean:.2f}",
            number(results.mean("sequence", arm, "early_success")),
            number(results.mean("sequence", arm, "last_reward")),
            number(results.mean("sequence", arm, "test.pass_at.1")),
            number(results.mean("sequence", arm, "test.pass_at.8")),
            number(results.mean("sequence", arm, "first_entropy")),
            percent(results.mean("sequence", arm, "entropy_change")),
        ]
        for arm in arms
    )
    head = [
        "task, recipe",
        "success at first",
        "early",
        "reward at the end",
        "on test",
        "pass@8",
        "first entropy",
        "change",
    ]
    return table(head, rows)


def outcome(results: Results) -> str:
    """What is right under a reward for the answer, and for the derivation."""
    arms = {
        "start": ("start", "policy"),
        "`grpo`, answer rewarded": ("outcome", "grpo"),
        "`grpo`, derivation rewarded": ("recipes", "grpo"),
    }
    rows = (
        [
            title,
            number(results.mean(study, arm, "test.right_answer")),
            number(results.mean(study, arm, "test.right_derivation")),
        ]
        for title, (study, arm) in arms.items()
    )
    return table(["policy", "right answer", "and a right derivation"], rows)


def demo(results: Results) -> str:
    """What `make demo` comes to."""
    rows = (
        [
            f"`{name}`",
            f"{results.mean('demo', name, 'first_entropy').mean:.3f}",
            percent(results.mean("demo", name, "entropy_change")),
            share(float(np.mean(results.values("demo", name, "series.clip_high"))), ".1%"),
            number(results.mean("demo", name, "test.pass_at.1")),
            number(results.mean("demo", name, "test.pass_at.8")),
        ]
        for name in studies.DEMO
    )
    head = ["recipe", "first entropy", "change at the end", "clipped above", "success", "pass@8"]
    return table(head, rows)


def paper(results: Results) -> str:
    """The paper's entropy changes beside ours."""

    def same(name: str) -> str:
        ours = results.mean("recipes", name, "entropy_change")
        if not ours.differs:
            return "ours is not to be told from 0"
        theirs = [text for text in PAPER[name] if text]
        agree = sum((text[0] == "+") == (ours.mean > 0) for text in theirs)
        return f"{agree} of {len(theirs)}"

    def change(path: str, name: str) -> Estimate:
        return results.mean("recipes", name, path)

    rows = (
        [
            f"`{name}`",
            percent(change("entropy_change", name)),
            percent(change("entropy_change_at_best", name)),
            *theirs,
            same(name),
        ]
        for name, theirs in PAPER.items()
    )
    head = [
        "recipe",
        "here, at the end",
        "at the best checkpoint",
        "AppWorld, 8B",
        "AppWorld, 32B",
        "AIME, 8B",
        "same sign",
    ]
    return table(head, rows)


def _by_recipe(
    columns: Iterable[tuple[str, Cell]], names: Iterable[str] = tuple(studies.RECIPES)
) -> str:
    columns = list(columns)
    rows = ([f"`{name}`", *(cell(name) for _, cell in columns)] for name in names)
    return table(["recipe", *(title for title, _ in columns)], rows)
