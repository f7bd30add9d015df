"""Every recipe on the embedded task: what it does to entropy and to learning.

Trains each named run from the same warmed-up policy, two at a time, evaluates the final policies
with 8 rollouts of every held-out task at temperature 1, prints a Markdown table and writes
``<out>/results.json`` and one plot for each page of docs/algorithms. A run that is complete is not
run again; one that was stopped resumes. Off-policy recipes train two epochs in small minibatches
(here 32 of 256 rollouts, so 16 steps an iteration), and clip.

    pip install matplotlib
    python benchmarks/algorithms.py [RUN ...] [--seeds 2] [--iterations 150] [--out runs/recipes]
    python benchmarks/algorithms.py demo-grpo demo-repo-r --seeds 3 --iterations 300
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import isentrope

EXAMPLES = Path(__file__).parents[1] / "examples"
LAST = 10  # iterations that "last" averages over
ROLLOUTS = ("rollout.tasks=32", "rollout.group=8", "rollout.max_tokens=32")
OFF_POLICY = (*ROLLOUTS, "algorithm.minibatch=32")

# A policy of 0.1M weights needs more of REPO-R than the recipe's range, chosen for larger ones.
RUNS: dict[str, tuple[str, ...]] = {
    "rloo": ("algorithm.recipe=rloo", *ROLLOUTS),
    "grpo": ("algorithm.recipe=grpo", *OFF_POLICY),
    "dr-grpo": ("algorithm.recipe=dr-grpo", "algorithm.norm_length=32", *OFF_POLICY),
    "loop": ("algorithm.recipe=loop", *OFF_POLICY),
    "dapo": ("algorithm.recipe=dapo", *OFF_POLICY),
    "gspo": ("algorithm.recipe=gspo", *OFF_POLICY),
    "adapo": ("algorithm.recipe=adapo", *OFF_POLICY),
    "grpo-bonus": ("algorithm.recipe=grpo-bonus", *OFF_POLICY),
    "repo-r": (
        "algorithm.recipe=repo-r",
        "algorithm.repo_r.zeta=0.01",
        "algorithm.entropy_ladder.low=0.01",
        "algorithm.entropy_ladder.high=0.1",
        *OFF_POLICY,
    ),
    "repo-d": ("algorithm.recipe=repo-d", *OFF_POLICY),
    "dapo-3-epochs": ("algorithm.recipe=dapo", *OFF_POLICY, "algorithm.epochs=3"),
    "adapo-3-epochs": ("algorithm.recipe=adapo", *OFF_POLICY, "algorithm.epochs=3"),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "adapo-high-1": (*RUNS["adapo"], "algorithm.entropy_scale.high=1.0"),
    "adapo-factor-1.1": (*RUNS["adapo"], "algorithm.entropy_scale.factor=1.1"),
    "adapo-4-epochs": (*RUNS["adapo"], "algorithm.epochs=4"),
    "dapo-open": (*RUNS["dapo"], "algorithm.objective.eps_high=10.0"),
    "grpo-bonus-0.1": (*RUNS["grpo-bonus"], "algorithm.entropy_ladder.high=0.1"),
    "repo-r-narrow": ("algorithm.recipe=repo-r", *OFF_POLICY),
    "repo-r-wide": (*RUNS["repo-r"], "algorithm.entropy_ladder.high=0.5"),
    "repo-r-floor": (*RUNS["repo-r"], "algorithm.repo_r.floor=0.0"),
    "repo-d-raw": (*RUNS["repo-d"], "algorithm.repo_d.centred=false"),
    "decorrelate": (*RUNS["grpo"], 'algorithm.transforms=["decorrelate"]'),
}
"""The constants and forms that are ours to choose: docs/algorithms/choices.md."""
DEMO = {"demo-grpo": "arithmetic-grpo.toml", "demo-repo-r": "arithmetic-repo-r.toml"}

PLOTS: dict[str, tuple[str, ...]] = {
    "policy-gradient": ("rloo", "grpo"),
    "clipping": ("grpo", "dr-grpo", "loop", "dapo"),
    "gspo": ("gspo", "dapo"),
    "entropy-bonus": ("grpo-bonus", "grpo"),
    "repo": ("repo-r", "repo-d", "grpo"),
    "adapo": ("adapo-3-epochs", "dapo-3-epochs"),
}
"""Which runs each page of docs/algorithms compares."""


def train(name: str, seed: int, iterations: int, out: Path) -> Path:
    """Train in a process of its own, so that two runs use two cores; return the run folder."""
    folder = out / f"{name}-{seed}"
    if (folder / "policy").exists():
        return folder
    command = [sys.executable, "-m", "isentrope", "train"]
    if (folder / "config.toml").exists():
        command += ["--resume", str(folder)]
    else:
        base = EXAMPLES / DEMO[name] if name in DEMO else out / "base.toml"
        settings = (*(RUNS | CHOICES).get(name, ()), f"seed={seed}", f"iterations={iterations}")
        command.append(str(base))
        command += ["--out", str(folder)]
        command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(folder: Path) -> dict[str, float]:
    """Sum a run up: reward and entropy at both ends, and held-out success."""
    run = isentrope.Run(folder)
    metrics = run.metrics
    first, last = metrics[0], metrics[-LAST:]
    entropy = statistics.mean(m["entropy"] for m in last)
    result = isentrope.evaluate(run, split="test", k=8)
    clipped = [
        m.get("objective/clip_high", 0.0) + m.get("objective/clip_low", 0.0) for m in metrics
    ]
    return {
        "entropy, first": first["entropy"],
        f"entropy, last {LAST}": entropy,
        "entropy, change": entropy / first["entropy"] - 1,
        "clipped tokens": statistics.mean(clipped),
        f"reward, last {LAST}": statistics.mean(m["reward"] for m in last),
        "held-out success": result.success,
        "held-out pass@8": result.pass_at[8],
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """One row for each recipe; mean, and lowest to highest where there are several seeds."""
    names = list(next(iter(results.values()))[0])
    lines = [f"| recipe | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for recipe, runs in results.items():
        cells = [_cell([run[name] for run in runs]) for name in names]
        lines.append(f"| {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.2f}" + (f" ({min(values):.2f} .. {max(values):.2f})" if len(values) > 1 else "")


def plot(page: str, runs: dict[str, list[Path]], folder: Path) -> None:
    """Draw entropy, reward and the knobs that moved: one colour a recipe, one line a seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "isentrope", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    shown = {recipe: runs[recipe] for recipe in PLOTS[page] if recipe in runs}
    if not shown:
        return
    histories = {r: [isentrope.Run(f).metrics for f in folders] for r, folders in shown.items()}
    knobs = {r: _moving(h[0]) for r, h in histories.items()}
    panels: list[tuple[str, list[tuple[str, str]]]] = [
        ("entropy (nats per token)", [(r, "entropy") for r in histories]),
        ("reward per episode", [(r, "reward") for r in histories]),
        *((f"{r}: {k}", [(r, k)]) for r, keys in knobs.items() for k in keys),
    ]
    colours = dict(zip(PLOTS[page], ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=False))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.5))
    for axis, (title, lines) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=9)
        for recipe, key in lines:
            for i, history in enumerate(histories[recipe]):
                values = [m[key] for m in history]
                drawn = values if key in knobs[recipe] else _smooth(values)
                label = recipe if i == 0 else None
                style = ("-", "--", ":")[i % 3]
                axis.plot(drawn, style, color=colours[recipe], label=label, lw=1.2)
        if title.startswith("entropy"):
            target = histories[lines[0][0]][0][0]["entropy"]
            axis.axhline(target, color="#888888", lw=0.8, ls="--")
            axis.legend(frameon=False, fontsize=8)
        if any(key in knobs[recipe] for recipe, key in lines):
            positive = all(m[k] > 0 for r, k in lines for h in histories[r] for m in h)
            threshold = min(abs(m[k]) for r, k in lines for h in histories[r] for m in h)
            axis.set_yscale("log") if positive else axis.set_yscale("symlog", linthresh=threshold)
        axis.set_xlabel("iteration")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / f"{page}.svg", metadata={"Date": None})
    pyplot.close(figure)


def _moving(history: Sequence[dict[str, Any]]) -> list[str]:
    paths = [k for k in history[0] if "." in k]
    return [k for k in paths if len({m[k] for m in history}) > 1]


def _smooth(values: Sequence[float], width: int = 9) -> list[float]:
    half = width // 2
    return [statistics.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", default=[*RUNS], metavar="RUN")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "base.toml").write_text('env = "arithmetic"\n')
    wanted = [(r, s) for s in range(options.seeds) for r in options.runs]
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda job: train(*job, options.iterations, options.out), wanted))
    measured = [measure(folder) for folder in folders]  # transformers loads in one thread at a time
    results: dict[str, list[dict[str, float]]] = {}
    runs: dict[str, list[Path]] = {}
    for (recipe, _), folder, numbers in zip(wanted, folders, measured, strict=True):
        results.setdefault(recipe, []).append(numbers)
        runs.setdefault(recipe, []).append(folder)
    record = options.out / "results.json"
    earlier = json.loads(record.read_text()) if record.exists() else {}
    record.write_text(json.dumps(earlier | results, indent=1))
    print(f"{options.iterations} iterations, {options.seeds} seeds: mean (lowest .. highest)\n")
    print(table(results))
    for page in PLOTS:
        plot(page, runs, options.out)


if __name__ == "__main__":
    main()
