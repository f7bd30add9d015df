"""What each algorithm does to entropy and to learning, measured with error bars.

Trains every recipe, and what the studies in dynamics/studies.py add, on the embedded task;
measures the policies; writes the record, docs/entropy-dynamics.md and its figures. Some six
hours on two cores. A run that is there is not run again, and one that was stopped goes on:

    python benchmarks/entropy_dynamics.py [--study recipes ...] [--workers 2] [--out runs/dynamics]
    python benchmarks/entropy_dynamics.py --redraw      page and figures from the record alone
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from dynamics import figures, page, precision
from dynamics.measuring import PROTOCOL, measure, measure_start
from dynamics.results import Results
from dynamics.running import StudyError, fingerprint, settings_of, train_all
from dynamics.studies import SEEDS, TASK, Trial, trials

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "dynamics" / "record.json"
PAGE = ROOT / "docs" / "entropy-dynamics.md"
FIGURES = ROOT / "docs" / "figures"


def collect(chosen: Sequence[Trial], studies: Sequence[str], out: Path, workers: int) -> Results:
    """Train and measure what is missing of the chosen trials; return their records."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        train_all(chosen, out, pool, workers)
        pending = {t.key: pool.submit(measure, t, out) for t in chosen}
        pending |= {f"start/policy/{s}": pool.submit(measure_start, s, out) for s in SEEDS}
        if "precision" in studies:
            pending |= {job.key: pool.submit(precision.run, job, out) for job in precision.jobs()}
        of = expected()
        return Results({k: {**found.result(), "of": of[k]} for k, found in pending.items()})


def expected() -> dict[str, str]:
    """Return the keys of a whole record, and fingerprints of what each record is of."""
    return {
        **{t.key: fingerprint(PROTOCOL, *settings_of(t)) for t in trials()},
        **{f"start/policy/{s}": fingerprint(PROTOCOL, TASK, s) for s in SEEDS},
        **{job.key: job.fingerprint for job in precision.jobs()},
    }


def not_of(results: Results) -> list[str]:
    """Return which expected records are not there, or are of other settings than the present."""
    records = results.records
    return sorted(k for k, of in expected().items() if records.get(k, {}).get("of") != of)


def main() -> None:
    every = [*dict.fromkeys(t.study for t in trials()), "precision"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", nargs="+", choices=every, default=every)
    parser.add_argument("--workers", type=int, default=2, help="processes; one for each core")
    parser.add_argument("--out", type=Path, default=Path("runs/dynamics"))
    parser.add_argument("--redraw", action="store_true")
    options = parser.parse_args()
    if not options.redraw:
        chosen = [t for t in trials() if t.study in options.study]
        try:
            found = collect(chosen, options.study, options.out, options.workers)
        except StudyError as error:
            sys.exit(str(error))
        earlier = Results.read(RECORD).records if RECORD.exists() else {}
        kept = {key: record for key, record in earlier.items() if key in expected()}
        Results({**kept, **found.records}).write(RECORD)
    results = Results.read(RECORD)
    if missing := not_of(results):
        sys.exit(
            f"{len(missing)} records are missing for the page, or of other settings, {missing[0]} "
            "the first."
        )
    figures.draw(results, FIGURES)
    page.write(results, PAGE)


if __name__ == "__main__":
    main()
