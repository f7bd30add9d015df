"""The paper's table: every recipe with several seeds, each a run, and then all of them compared.

    python examples/paper.py examples/aime-like-grpo.toml                # on one CPU core, hours
    torchrun --nproc-per-node 4 examples/paper.py examples/appworld-qwen3-8b.toml

All runs share the file but for the recipe and the seed. Before the first of them each is planned,
so that a mistake shows now and not next week. Started again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import isentrope

RECIPES = ("rloo", "grpo", "loop", "dapo", "gspo", "grpo-bonus", "repo-r", "repo-d", "adapo")
FIRST = os.environ.get("RANK", "0") == "0"  # under torchrun every rank runs this, and one speaks


def algorithm(config: Path, recipe: str) -> dict[str, Any]:
    """Return the file's algorithm with another recipe; an on-policy one takes no epochs."""
    options = tomllib.loads(config.read_text(encoding="utf-8"))["algorithm"]
    kept = {k: v for k, v in options.items() if k in ("epochs", "minibatch")}
    on_policy = isentrope.recipe(recipe).objective.on_policy
    return {"recipe": recipe, **({} if on_policy else kept)}


def train_all(
    config: Path, out: Path, recipes: Sequence[str], seeds: int, **changes: Any
) -> dict[str, list[isentrope.Run]]:
    """Train what is not trained yet; return the runs by recipe."""
    wanted = {
        out / f"{recipe}-{seed}": {"algorithm": algorithm(config, recipe), "seed": seed, **changes}
        for recipe in recipes
        for seed in range(seeds)
    }
    plans = {folder: isentrope.plan(config, **options) for folder, options in wanted.items()}
    for folder, plan in plans.items():
        if not plan.ready:
            raise SystemExit(f"{folder.name}: {' '.join((*plan.missing, *plan.problems))}")
    begun = {folder for folder in wanted if folder.exists()}
    runs: dict[str, list[isentrope.Run]] = {recipe: [] for recipe in recipes}
    for folder, options in wanted.items():
        if folder not in begun:
            run = isentrope.train(config, out=folder, **options)
        elif len((run := isentrope.Run(folder)).metrics) < plans[folder].config.iterations:
            run = isentrope.train(resume=run)
        runs[options["algorithm"]["recipe"]].append(run)
    return runs


def best(run: isentrope.Run) -> tuple[float, float]:
    """Return success in the run's best evaluation, and by how much entropy had changed by then."""
    metrics = run.metrics
    evaluated = [m for m in metrics if "eval/success" in m]
    top = max(evaluated, key=lambda m: float(m["eval/success"]))
    return top["eval/success"], top["entropy"] / metrics[0]["entropy"] - 1


def main(arguments: Sequence[str] | None = None, **changes: Any) -> None:
    """Train, and print the table; changes: of the file's keys, for all runs alike."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    given = parser.parse_args(arguments)
    runs = train_all(given.config, given.out, given.recipes, given.seeds, **changes)
    if not FIRST:
        return
    print(f"{'recipe':<12} {'success, mean':>13} {'best':>6} {'entropy':>8}")
    for recipe, of_recipe in runs.items():
        successes, entropies = zip(*map(best, of_recipe), strict=True)
        print(
            f"{recipe:<12} {mean(successes):>13.3f} {max(successes):>6.3f} {mean(entropies):>+8.0%}"
        )
    print(isentrope.compare(*chain(*runs.values()), out=given.out / "compare.html"))


if __name__ == "__main__":
    main()
