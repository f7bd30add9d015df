"""GRPO against REPO-R on the embedded task, several seeds each: what the demo shows, with spread.

For each seed and algorithm one run of the example config, two runs at a time; then the final policy
is evaluated with 8 rollouts of every held-out task at temperature 1. Prints a Markdown table and
writes the numbers to ``<out>/results.json``; a run folder that is complete is not run again.

    python benchmarks/demo_seeds.py [--seeds 3] [--iterations 300] [--out runs/demo-seeds]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import isentrope

EXAMPLES = Path(__file__).parents[1] / "examples"
ALGORITHMS = ("grpo", "repo-r")
LAST = 10  # iterations that "final" averages over


def train(algorithm: str, seed: int, iterations: int, out: Path) -> Path:
    """Train in a process of its own, so that two runs use two cores; return the run folder."""
    folder = out / f"{algorithm}-{seed}"
    if not (folder / "policy").exists():
        command = [sys.executable, "-m", "isentrope", "train"]
        if (folder / "config.toml").exists():
            command += ["--resume", str(folder)]
        else:
            config = EXAMPLES / f"arithmetic-{algorithm}.toml"
            settings = (f"seed={seed}", f"iterations={iterations}")
            command += [str(config), "--out", str(folder)]
            command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(folder: Path) -> dict[str, float]:
    """Sum a run up: reward and entropy at both ends, and held-out success."""
    run = isentrope.Run(folder)
    metrics = run.metrics
    result = isentrope.evaluate(run, split="test", k=8)
    seconds = sum(v for m in metrics for k, v in m.items() if k.startswith("seconds/"))
    return {
        "reward first": metrics[0]["reward"],
        f"reward last {LAST}": statistics.mean(m["reward"] for m in metrics[-LAST:]),
        "entropy first": metrics[0]["entropy"],
        f"entropy last {LAST}": statistics.mean(m["entropy"] for m in metrics[-LAST:]),
        "test success": result.success,
        "test pass@8": result.pass_at[8],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [(a, s) for s in range(options.seeds) for a in ALGORITHMS]
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda job: train(*job, options.iterations, options.out), wanted))
    results = {f"{a} {s}": measure(f) for (a, s), f in zip(wanted, folders, strict=True)}
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    print(f"{options.iterations} iterations, {options.seeds} seeds: mean (lowest .. highest)\n")
    print("| | GRPO | REPO-R |\n| --- | --- | --- |")
    for name in next(iter(results.values())):
        cells = []
        for algorithm in ALGORITHMS:
            values = [results[f"{algorithm} {s}"][name] for s in range(options.seeds)]
            low, mean, high = min(values), statistics.mean(values), max(values)
            cells.append(f"{mean:.3g} ({low:.3g} .. {high:.3g})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
