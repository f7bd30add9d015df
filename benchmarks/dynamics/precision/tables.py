"""The tables of the numerics: lowest to highest over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dynamics.markdown import span, table
from dynamics.precision import SEEDS
from dynamics.precision.trajectories import BLOCK, distance
from dynamics.precision.variants import REFERENCE, VARIANTS
from dynamics.results import Results

RATIOS = {
    "error of log r": ("log_ratio_error_abs", ".1e"),
    "ratios off by over 1 %": ("ratio_off_1_percent", ".1%"),
    "bias of the ratio": ("ratio_bias", "+.1e"),
    "clip at 0.2 changed": ("clip_changed", ".2%"),
    "GSPO's clip changed": ("sequences_changed", ".1%"),
    "bias of entropy": ("entropy_bias", "+.0e"),
}
DRIFT = {
    "drift, mean": ("mean_abs", ".0e"),
    "drift, highest": ("max", ".0e"),
    "error, mean": ("error_mean", ".1e"),
    "error, highest": ("error_max", ".0e"),
    "GSPO would clip for the error": ("error_sequences_clipped", ".0%"),
    "error of the gradient": ("gradient_error", ".1e"),
}
"""Title of a column to its key in a variant's record, and how it is written."""


def ratios(results: Results, steps: int) -> str:
    """What rounding does to ratios and clips, after so many steps in float32."""
    found = [record["steps"][str(steps)]["variants"] for record in _each(results, "fixed")]
    return _by_variant(found, RATIOS)


def drift(results: Results) -> str:
    """What differs at lr = 0."""
    return _by_variant([record["variants"] for record in _each(results, "drift")], DRIFT)


def softmax(results: Results) -> str:
    """Errors of 1 - p by its size: the highest over seeds and policies."""
    policies = [p for record in _each(results, "softmax") for p in record["iterations"].values()]
    rows = []
    for decade in sorted({d for policy in policies for d in policy["decades"]}, key=int):
        found = [p["decades"][decade] for p in policies if decade in p["decades"]]
        highest = (
            f"{max(f[way][which] for f in found):.0e}"
            for way in ("plain", "ours")
            for which in ("relative_median", "relative_max")
        )
        tokens = sum(f["tokens"] for f in found)
        rows.append([f"1e{decade} .. 1e{int(decade) + 1}", f"{tokens:,}", *highest])
    head = ["1 - p", "tokens", "plain, median", "plain, highest", "exact, median", "exact, highest"]
    return table(head, rows)


def trajectories(results: Results) -> str:
    """How far training in each variant goes from training in float64."""
    head = [
        "variant",
        "distance from float64's entropy",
        "signed",
        "mismatch with the engine",
        "success at the end",
        "steps skipped",
    ]
    return table(head, map(partial(_trained, results), VARIANTS))


def _trained(results: Results, variant: str) -> list[str]:
    runs, truths = (
        [results.records[f"precision/trajectory/{v}/{seed}"] for seed in SEEDS]
        for v in (variant, REFERENCE)
    )
    apart = [
        distance(run["entropy"], truth["entropy"]) for run, truth in zip(runs, truths, strict=True)
    ]
    return [
        variant,
        span((a["mean_abs"] for a in apart), ".3f"),
        span((a["mean"] for a in apart), "+.3f"),
        span((float(np.mean(run["mismatch_mean"])) for run in runs), ".0e"),
        f"{np.mean([run['success'][-4:] for run in runs]):.2f}",
        str(sum(round(BLOCK * sum(run["steps_skipped"])) for run in runs)),
    ]


def further(results: Results) -> str:
    """Name the variants that end further from float64's entropy than float32 on every seed."""

    def apart(variant: str) -> list[float]:
        every = (
            tuple(
                results.records[f"precision/trajectory/{v}/{seed}"]["entropy"]
                for v in (variant, REFERENCE)
            )
            for seed in SEEDS
        )
        return [distance(*pair)["mean_abs"] for pair in every]

    names = [name for name in VARIANTS if name not in (REFERENCE, "float32")]
    found = [
        n for n in names if all(a > b for a, b in zip(apart(n), apart("float32"), strict=True))
    ]
    return ", ".join(f"`{name}`" for name in found) or "none"


def _each(results: Results, kind: str) -> list[Any]:
    """Return one kind of record, seed by seed."""
    return [results.records[f"precision/{kind}/{seed}"] for seed in SEEDS]


def _by_variant(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]
) -> str:
    rows = (
        [name, *(span((r[name][key] for r in records), form) for key, form in columns.values())]
        for name in VARIANTS
        if name != REFERENCE
    )
    return table(["variant", *columns], rows)
