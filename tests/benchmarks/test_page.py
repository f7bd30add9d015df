"""The page: a whole record, its words and figures, and recipes that are as it chooses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import entropy_dynamics
import numpy as np
import pytest
from dynamics import figures, measuring, page, running, studies, tables
from dynamics.results import Results
from dynamics.studies import SEEDS, TASK, TUNING_SEEDS, Trial

from isentrope.config import read_config

ROOT = Path(__file__).parents[2]


def _made_up(trial: Trial, rng: np.random.Generator) -> dict[str, Any]:
    """Return a record with every key that a trial's has."""

    def blocks() -> list[float]:
        return rng.uniform(0.2, 0.6, 30).tolist()

    def test() -> dict[str, Any]:
        return {
            "pass_at": {str(k): float(rng.uniform()) for k in (1, 2, 4, 8, 16)},
            "right_answer": 0.5,
            "right_derivation": 0.4,
            "distinct_texts": 5.0,
            "distinct_derivations": 1.0,
        }

    scalars = (
        "dev_success first_entropy cumulative_entropy mean_entropy entropy_change "
        "entropy_change_at_best entropy_error first_success early_success last_reward steps"
    )
    moves = [p for c in running.config(trial, Path()).algorithm.controllers for p in c.moves]
    return {
        "series": {name: blocks() for name in measuring._SERIES},
        "knobs": {path: blocks() for path in moves},
        **{name: float(rng.uniform(0.1, 0.9)) for name in scalars.split()},
        "test": test(),
        "final": test(),
        **{f"best_{k}": {"temperature": 0.8, **test()} for k in (1, 8)},
        "temperatures": {k: rng.uniform(size=len(measuring.TEMPERATURES)).tolist() for k in "18"},
        "surprisal": {"wording": 4.0, "rest": 3.0},
    }


@pytest.fixture(scope="module")
def made_up(record: Results) -> Results:
    """Records of all trials that look like real ones; those of the numerics are real."""
    rng = np.random.default_rng(0)
    trials = studies.trials()
    records = {t.key: _made_up(t, rng) for t in trials}
    records |= {f"start/policy/{s}": _made_up(trials[0], rng) for s in SEEDS}
    numerics = {k: r for k, r in record.records.items() if k.startswith("precision/")}
    return Results({**records, **numerics})


@pytest.fixture(scope="module")
def record() -> Results:
    return Results.read(entropy_dynamics.RECORD)


def test_the_record_holds_what_the_studies_ask_for(record: Results, made_up: Results) -> None:
    assert entropy_dynamics.not_of(record) == []
    assert entropy_dynamics.expected().keys() == record.records.keys()
    for key, found in record.records.items():
        if not key.startswith("precision/"):
            assert found.keys() - {"of"} <= made_up.records[key].keys()


def test_a_record_of_other_settings_is_not_drawn(
    record: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever changes: a study's settings, what a recipe stands for, or how is measured."""
    monkeypatch.setitem(studies.RECIPES, "grpo", studies.recipe("grpo", epochs=3))
    monkeypatch.setitem(studies.TASK, "iterations", 7)
    assert "recipes/grpo/2" in entropy_dynamics.not_of(record)
    assert len(record.records) == len(entropy_dynamics.not_of(record))


def test_the_recipes_have_the_settings_that_tuning_chose(record: Results) -> None:
    for name, settings in studies.TUNING.items():
        chosen = settings[tables.chosen(record, name)]
        configs = [read_config(TASK, {**s}) for s in (chosen, studies.RECIPES[name])]
        assert configs[0] == configs[1]


def test_the_page_is_what_the_record_says(record: Results) -> None:
    assert entropy_dynamics.PAGE.read_text(encoding="utf-8") == page.render(record)


def test_every_figure_of_the_docs_is_drawn_from_the_record(
    made_up: Results, tmp_path: Path
) -> None:
    figures.draw(made_up, tmp_path)
    drawn = {p.name for p in tmp_path.glob("*.svg")}
    assert drawn == {p.name for p in (ROOT / "docs" / "figures").glob("*.svg")}
    shown = {
        name
        for document in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"figures/([\w-]+\.svg)\)", document.read_text(encoding="utf-8"))
    }
    assert shown == drawn


def test_the_page_says_what_the_numbers_are(made_up: Results) -> None:
    changes = {"rloo": -0.2, "gspo": +0.3}
    records = dict(made_up.records)
    for name in studies.RECIPES:
        for i, seed in enumerate(SEEDS):
            key = f"recipes/{name}/{seed}"
            spread = 0.01 * (i - 2)
            records[key] = {**records[key], "entropy_change": changes.get(name, 0.0) + spread}
    rest = [f"`{n}`" for n in studies.RECIPES if n not in changes]
    text = " ".join(page.render(Results(records)).split())
    expected = (
        "falls over training in `rloo`; it rises in `gspo`; no change can be told from 0 in "
        + ", ".join(rest)
    )
    assert expected in text
    assert "| `rloo` | -20 % (-22 % .. -18 %) |" in text


def _tuned(**found: tuple[float, float, float]) -> Results:
    """Settings of REPO-R, in their order: change, error, success."""
    names = studies.TUNING["repo-r"]
    keys = ("entropy_change", "entropy_error", "dev_success")
    return Results(
        {
            f"tuning/{studies.tuning_arm('repo-r', name)}/{seed}": dict(zip(keys, v, strict=True))
            for name, v in zip(names, found.values(), strict=True)
            for seed in TUNING_SEEDS
        }
    )


def test_the_best_of_the_settings_that_hold_entropy_is_chosen() -> None:
    first, second, third, _ = studies.TUNING["repo-r"]
    best = (-0.4, 0.3, 0.9)
    held = _tuned(a=best, b=(0.09, 0.2, 0.5), c=(-0.09, 0.1, 0.6), d=(0.2, 0.1, 0.7))
    assert third == tables.chosen(held, "repo-r")
    none = _tuned(a=best, b=(0.3, 0.1, 0.2), c=(-0.2, 0.2, 0.6), d=(0.2, 0.4, 0.7))
    assert second == tables.chosen(none, "repo-r")
    assert first not in (second, third)
