"""What is compared with what: every training run of every study, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

ITERATIONS = 150
TUNING_SEEDS = (0, 1)
SEEDS = (2, 3, 4, 5, 6)
"""No constant of a recipe was chosen on these."""
FEWER_SEEDS = SEEDS[:3]
"""Of the studies that take many steps, and of the demo."""

Settings = Mapping[str, Any]
"""Keys of a configuration, dotted, to values."""

TASK: Settings = {
    "env": {"id": "arithmetic", "grading": "derivation"},
    "model": {"id": "tiny-qwen3", "warmup_env": "arithmetic", "warmup_steps": 900},
    "rollout": {"tasks": 32, "group": 8, "max_tokens": 40},
    "learner": {"probe": 0},
    "evaluation": {"every": 10, "split": "dev", "k": 4, "tasks": 64},
    "iterations": ITERATIONS,
    "checkpoint_every": 50,
}
"""Graded by the whole derivation, from a policy that gets one in four right; every seed has a
policy, an order of tasks and a sampling of its own, the same ones whatever learns."""


@frozen
class Trial:
    """One training run."""

    study: str
    arm: str
    seed: int
    settings: Settings = field(repr=False)
    start: Trial | None = None
    """The trial whose best policy this one starts from."""

    @property
    def key(self) -> str:
        """Names the trial, and its folder."""
        return f"{self.study}/{self.arm}/{self.seed}"


def recipe(name: str, **changes: Any) -> Settings:
    """Return the settings of a recipe.

    changes: of the algorithm, ``__`` for a dot.
    """
    changed = {f"algorithm.{key.replace('__', '.')}": value for key, value in changes.items()}
    return {"algorithm.recipe": name, **changed}


NORM_LENGTH = 32
"""About the longest answer, in tokens."""
RECIPES: Mapping[str, Settings] = {
    "rloo": recipe("rloo"),
    "grpo": recipe("grpo"),
    "dr-grpo": recipe("dr-grpo", norm_length=NORM_LENGTH),
    "loop": recipe("loop"),
    "dapo": recipe("dapo"),
    "gspo": recipe("gspo"),
    "adapo": recipe("adapo"),
    "grpo-bonus": recipe("grpo-bonus"),
    "repo-r": recipe("repo-r"),
    "repo-d": recipe("repo-d"),
}


def _ladder(name: str, knob: str, low: float, high: float) -> Settings:
    moved = {f"algorithm.{knob}": low}
    ranged = {"algorithm.entropy_ladder.low": low, "algorithm.entropy_ladder.high": high}
    return {**recipe(name), **moved, **ranged}


def _scale(low: float, high: float, factor: float) -> Settings:
    ranged = {"entropy_scale__low": low, "entropy_scale__high": high}
    return recipe("adapo", **ranged, entropy_scale__factor=factor)


def _ladders(name: str, knob: str, *ranges: tuple[float, float]) -> dict[str, Settings]:
    return {f"{low:g}..{high:g}": _ladder(name, knob, low, high) for low, high in ranges}


TUNING: Mapping[str, Mapping[str, Settings]] = {
    "repo-r": _ladders(
        "repo-r", "repo_r.zeta", (1e-4, 0.05), (0.01, 0.1), (0.02, 0.2), (0.05, 0.5)
    ),
    "grpo-bonus": _ladders(
        "grpo-bonus", "entropy_bonus.coef", (1e-4, 0.02), (2e-3, 0.02), (0.01, 0.1), (0.03, 0.3)
    ),
    "repo-d": _ladders(
        "repo-d", "repo_d.zeta", (1e-3, 10.0), (4e-3, 0.04), (0.01, 0.1), (0.03, 0.3)
    ),
    "adapo": {
        f"{low:g}..{high:g} x{factor:g}": _scale(low, high, factor)
        for low, high, factor in (
            (0.02, 5.0, 1.2),
            (0.02, 5.0, 1.5),
            (0.02, 5.0, 2.0),
            (0.02, 1.0, 1.2),
        )
    },
}
"""Four settings of each controlled recipe."""


def tuning_arm(name: str, setting: str) -> str:
    """Return the arm of a recipe's setting in the study `tuning`."""
    return f"{name} {setting}"


MINIBATCH = 32
"""Of the studies that take many steps: two epochs of eight minibatches."""
MANY_STEPS: Mapping[str, Settings] = {
    name: {**settings, "algorithm.minibatch": MINIBATCH}
    for name, settings in RECIPES.items()
    if name != "rloo"  # takes one step, whatever happens
}
"""All recipes, 16 steps an iteration in place of 4."""

OUTCOME: Mapping[str, Settings] = {"grpo": {**recipe("grpo"), "env.grading": "answer"}}
"""Rewarded for the box alone: what becomes of the derivation."""

DEMO: Mapping[str, Settings] = {
    name: {**recipe(name, epochs=1), "evaluation.every": 25, "iterations": 300}
    for name in ("grpo", "repo-r")
}
"""`make demo`: examples/arithmetic-*.toml for 300 iterations."""

BOUNDS = (0.02, 1.0, 5.0)
"""Fixed upper bounds beside DAPO's 0.28: what ADAPO's knob can do."""

UNSURE: Settings = {"model.warmup_steps": 300, "env.grading": "answer"}
"""A policy that was warmed up for a third of the time, rewarded for what it can guess already."""
SCALE_OF_DAPO, SCALE_OF_GSPO = (0.02, 5.0), (4e-5, 4e-2)
"""Ranges of the upper bound under ADAPO's controller."""


def _regimes() -> dict[str, Settings]:
    """Further regimes for DAPO and ADAPO, and fixed bounds."""
    arms: dict[str, Settings] = {}
    for name in ("dapo", "adapo"):
        arms[f"{name} unsure"] = {**recipe(name, minibatch=MINIBATCH), **UNSURE}
    for bound in BOUNDS:
        bounded = recipe("dapo", objective__eps_high=bound, minibatch=MINIBATCH)
        arms[f"dapo bound {bound:g}"] = bounded
    low, high = SCALE_OF_GSPO
    scale = {"id": "entropy-scale", "knob": "objective.eps_high", "low": low, "high": high}
    arms["adapo on gspo"] = recipe("gspo", controllers=[scale], minibatch=MINIBATCH)
    return arms


REGIMES: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "4 steps": (("recipes", "dapo"), ("recipes", "adapo")),
    "16 steps": (("many-steps", "dapo"), ("many-steps", "adapo")),
    "16 steps, an unsure policy": (("adapo", "dapo unsure"), ("adapo", "adapo unsure")),
    "16 steps, on GSPO": (("many-steps", "gspo"), ("adapo", "adapo on gspo")),
}
"""Study and arm of DAPO, or GSPO, and of ADAPO. Steps are what an iteration takes at most."""

LADDER = 0.1
"""Where the recipes' ladders end, in both directions."""
CONTROLLED: Mapping[str, tuple[str, float, float]] = {
    "repo-r": ("repo_r.zeta", -LADDER, LADDER),
    "repo-d": ("repo_d.zeta", -LADDER, LADDER),
    "grpo-bonus": ("entropy_bonus.coef", -LADDER, LADDER),
    "adapo": ("objective.eps_high", *SCALE_OF_DAPO),
}
"""The knob of each controlled recipe, and the ends of its range."""

ALONE = "B alone grpo"
SEQUENTIAL = ("grpo", "repo-r", "adapo")
SMALL, LARGE = ({"env.coefficients": which} for which in ("small", "large"))
"""Task A has coefficients from 2 to 5, task B from 6 to 9."""


def _sequence(seed: int) -> list[Trial]:
    """Task A, task B from A's best policy, and B from the start for comparison."""
    trials = [Trial("sequence", ALONE, seed, {**RECIPES["grpo"], **LARGE})]
    for name in SEQUENTIAL:
        first = Trial("sequence", f"A {name}", seed, {**RECIPES[name], **SMALL})
        second = Trial("sequence", f"B {name}", seed, {**RECIPES[name], **LARGE}, start=first)
        trials += [first, second]
    return trials


UNTESTED = ("tuning",)
"""Studies whose policies no test problem sees."""
SEARCHED = ("recipes",)
"""Studies whose policies are tested at their best temperature too."""


def _trials(study: str, arms: Mapping[str, Settings], seeds: Sequence[int]) -> list[Trial]:
    return [Trial(study, arm, s, settings) for s in seeds for arm, settings in arms.items()]


def trials() -> list[Trial]:
    """Return every run, those first that others start from."""
    settings = {tuning_arm(n, s): found for n, of in TUNING.items() for s, found in of.items()}
    return [
        *_trials("tuning", settings, TUNING_SEEDS),
        *_trials("recipes", RECIPES, SEEDS),
        *_trials("outcome", OUTCOME, SEEDS),
        *_trials("many-steps", MANY_STEPS, FEWER_SEEDS),
        *_trials("demo", DEMO, FEWER_SEEDS),
        *(trial for seed in SEEDS for trial in _sequence(seed)),
        *_trials("adapo", _regimes(), FEWER_SEEDS),
    ]
