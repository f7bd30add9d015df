"""Recipes: what each is, and that two of them differ in what their papers differ in, no more."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

import isentrope
from isentrope import (
    Algorithm,
    ConfigError,
    EntropyTarget,
    Statistics,
    UnknownNameError,
    recipe,
)
from isentrope.components import id_of
from isentrope.config import read_config, to_toml
from isentrope.plugins import registry
from isentrope_objectives import recipes

CLIP = {"objective.eps_low", "objective.eps_high"}
PASSES = (2, 128)


def fields(part: Any) -> dict[str, Any]:
    """Return a part by its id and fields: what decides what it does."""
    return {"id": id_of(part), **attrs.asdict(part)}


def clip(low: float, high: float, name: str = "clipped") -> dict[str, Any]:
    return {"id": name, "eps_low": low, "eps_high": high}


def ladder(knob: str, low: float, high: float) -> dict[str, Any]:
    target = attrs.asdict(EntropyTarget())
    return {"id": "entropy-ladder", "knob": knob, "low": low, "high": high, "target": target}


NORMALISED = {"id": "group-normalized", "correction": 1, "eps": 1e-6}
LEAVE_ONE_OUT = {"id": "leave-one-out"}
GRPO = {
    "advantage": NORMALISED,
    "objective": clip(0.2, 0.2),
    "transforms": [],
    "regularizers": [],
    "controllers": [],
    "aggregation": "seq-mean-token-mean",
    "norm_length": None,
    "epochs": 2,
    "minibatch": 128,
}
LOOP = {**GRPO, "advantage": LEAVE_ONE_OUT}
DAPO = {**LOOP, "objective": clip(0.2, 0.28)}
SCALE = {"id": "entropy-scale", "knob": "objective.eps_high", "low": 0.02, "high": 5.0}
BONUS = {"id": "entropy-bonus", "coef": 0.01}
REPO_R = {"id": "repo-r", "zeta": 0.01, "floor": None, "of": "present"}
REPO_D = {"id": "repo-d", "zeta": 0.01, "centred": True}
RECIPES: dict[str, dict[str, Any]] = {
    "rloo": {**LOOP, "objective": {"id": "reinforce"}, "epochs": 1, "minibatch": None},
    "grpo": GRPO,
    "dr-grpo": {
        **GRPO,
        "advantage": {"id": "group-centered"},
        "aggregation": "seq-mean-token-sum-norm",
        "norm_length": 1024,
    },
    "loop": LOOP,
    "dapo": DAPO,
    "gspo": {**LOOP, "objective": clip(3e-4, 4e-4, "sequence-clipped")},
    "adapo": {
        **DAPO,
        "controllers": [{**SCALE, "target": attrs.asdict(EntropyTarget()), "factor": 1.2}],
    },
    "grpo-bonus": {
        **GRPO,
        "regularizers": [BONUS],
        "controllers": [ladder("entropy_bonus.coef", 0.01, 0.1)],
    },
    "repo-r": {
        **GRPO,
        "transforms": [REPO_R],
        "controllers": [ladder("repo_r.zeta", 0.01, 0.1)],
    },
    "repo-d": {
        **GRPO,
        "transforms": [REPO_D],
        "controllers": [ladder("repo_d.zeta", 0.01, 0.1)],
    },
}
"""Every field of every recipe, written out."""
BASES = [name for name in RECIPES if not name.startswith("repo-")]


def written_out(algorithm: Algorithm) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (a.name for a in attrs.fields(Algorithm) if a.init):
        value = getattr(algorithm, name)
        if isinstance(value, tuple):
            found[name] = [fields(part) for part in value]
        else:
            found[name] = fields(value) if attrs.has(type(value)) else value
    return found


def difference(first: str, second: str) -> set[str]:
    """Return the fields of `Algorithm` in which two recipes differ, or ``field.field`` of a part.

    Of parts of one class, what differs; of others, that they do.
    """
    one, other = recipe(first), recipe(second)
    found = set()
    for name in (a.name for a in attrs.fields(Algorithm) if a.init):
        mine, its = getattr(one, name), getattr(other, name)
        if mine == its:
            continue
        if type(mine) is type(its) and attrs.has(type(mine)):
            found |= {f"{name}.{k}" for k, v in fields(mine).items() if v != fields(its)[k]}
        else:
            found.add(name)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_is_written_here_in_every_field(name: str) -> None:
    assert RECIPES[name] == written_out(recipe(name))


def test_these_are_all_the_recipes() -> None:
    rows = [r for r in registry().rows if r.kind == "recipe" and r.distribution == "isentrope"]
    assert set(RECIPES) == {row.id for row in rows}


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        ("rloo", "grpo", {"advantage", "objective", "epochs", "minibatch"}),
        ("rloo", "loop", {"objective", "epochs", "minibatch"}),
        ("grpo", "loop", {"advantage"}),
        ("grpo", "dr-grpo", {"advantage", "aggregation", "norm_length"}),
        ("loop", "dapo", {"objective.eps_high"}),
        ("dapo", "gspo", {"objective"}),
        ("loop", "gspo", {"objective"}),
        ("dapo", "adapo", {"controllers"}),
        ("grpo", "grpo-bonus", {"regularizers", "controllers"}),
        ("grpo", "repo-r", {"transforms", "controllers"}),
        ("grpo", "repo-d", {"transforms", "controllers"}),
        ("repo-r", "repo-d", {"transforms", "controllers"}),
    ],
)
def test_two_recipes_differ_in_what_their_papers_do_and_nothing_else(
    first: str, second: str, fields: set[str]
) -> None:
    assert fields == difference(first, second)
    assert fields == difference(second, first)


@pytest.mark.parametrize(
    ("name", "knob"),
    [
        ("repo-r", "repo_r.zeta"),
        ("repo-d", "repo_d.zeta"),
        ("grpo-bonus", "entropy_bonus.coef"),
    ],
)
def test_a_ladders_knob_begins_on_its_lowest_rung(name: str, knob: str) -> None:
    algorithm = recipe(name)
    (controller,) = algorithm.controllers
    assert controller.low == algorithm.initial_state().knobs[knob]


def test_adapos_bound_begins_at_dapos_inside_its_range_which_reaches_below_the_lower_one() -> None:
    (controller,) = recipe("adapo").controllers
    knobs = recipe("adapo").initial_state().knobs
    assert recipe("dapo").initial_state().knobs == knobs
    assert controller.low < knobs["objective.eps_low"] < knobs["objective.eps_high"]
    assert knobs["objective.eps_high"] < controller.high


@pytest.mark.parametrize(
    ("name", "needs", "keeps"),
    [
        ("rloo", set(), False),
        ("grpo", set(), False),
        ("dr-grpo", set(), False),
        ("loop", set(), False),
        ("dapo", set(), False),
        ("gspo", set(), False),
        ("adapo", set(), False),
        ("grpo-bonus", {"entropy"}, True),
        ("repo-r", set(), False),
        ("repo-d", {"entropy"}, True),
    ],
)
def test_what_a_recipe_asks_of_the_learner(name: str, needs: set[str], keeps: bool) -> None:
    """And whether groups of equal rewards still teach it something."""
    algorithm = recipe(name)
    assert (needs, keeps) == (algorithm.needs, algorithm.keeps_zero_groups)
    assert needs == algorithm.needs_of_experience
    assert (name != "rloo") == bool(algorithm.with_ratio)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("rloo", {}),
        ("grpo", {"objective.eps_low": 0.2, "objective.eps_high": 0.2}),
        ("dr-grpo", {"objective.eps_low": 0.2, "objective.eps_high": 0.2}),
        ("loop", {"objective.eps_low": 0.2, "objective.eps_high": 0.2}),
        ("dapo", {"objective.eps_low": 0.2, "objective.eps_high": 0.28}),
        ("gspo", {"objective.eps_low": 3e-4, "objective.eps_high": 4e-4}),
        ("adapo", {"objective.eps_low": 0.2, "objective.eps_high": 0.28}),
        (
            "grpo-bonus",
            {"objective.eps_low": 0.2, "objective.eps_high": 0.2, "entropy_bonus.coef": 0.01},
        ),
        ("repo-r", {"objective.eps_low": 0.2, "objective.eps_high": 0.2, "repo_r.zeta": 0.01}),
        ("repo-d", {"objective.eps_low": 0.2, "objective.eps_high": 0.2, "repo_d.zeta": 0.01}),
    ],
)
def test_the_knobs_of_a_recipe_and_where_they_begin(name: str, knobs: dict[str, float]) -> None:
    algorithm = recipe(name)
    assert knobs == algorithm.initial_state().knobs
    assert set(knobs) == set(algorithm.knobs())
    for part in algorithm.controllers:
        for path, range_ in part.moves.items():
            assert knobs[path] in range_


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_toml(name: str) -> None:
    made = read_config({"env": "arithmetic", "algorithm": name})
    assert recipe(name) == made.algorithm
    assert made == read_config(tomllib.loads(to_toml(made)))


def test_an_on_policy_recipe_takes_neither_passes_nor_minibatches() -> None:
    for changes in ({"epochs": 2}, {"minibatch": 128}):
        with pytest.raises(ConfigError, match="Reinforce is right only for the policy"):
            recipe("rloo", **changes)


def test_dr_grpos_length_is_a_parameter() -> None:
    assert 64 == recipe("dr-grpo", norm_length=64).norm_length
    table = {"env": "arithmetic", "algorithm": {"recipe": "dr-grpo", "norm_length": 64}}
    assert recipe("dr-grpo", norm_length=64) == read_config(table).algorithm
    for wrong in (0, -1, "64", 1.5, True):
        with pytest.raises(ConfigError, match="norm_length"):
            recipe("dr-grpo", norm_length=wrong)


def test_dr_grpos_aggregation_can_be_another() -> None:
    assert "token-mean" == recipe("dr-grpo", aggregation="token-mean", norm_length=None).aggregation


# ---------------------------------------------------------------- REPO on another recipe

REPOS = {"repo-r": "repo_r", "repo-d": "repo_d"}


@pytest.mark.parametrize("name", REPOS)
def test_repo_is_on_grpo_unless_said_otherwise(name: str) -> None:
    assert recipe(name) == recipe(name, on="grpo")


@pytest.mark.parametrize("name", REPOS)
@pytest.mark.parametrize("on", BASES)
def test_repo_on_a_recipe_adds_its_transform_and_its_ladder(name: str, on: str) -> None:
    made, base = recipe(name, on=on), recipe(on)
    for field in {a.name for a in attrs.fields(Algorithm) if a.init} - {
        "transforms",
        "controllers",
    }:
        assert getattr(base, field) == getattr(made, field)
    assert RECIPES[name]["transforms"] == [fields(part) for part in made.transforms]
    assert RECIPES[name]["controllers"][0] == fields(made.controllers[-1])
    assert REPOS[name] in made.slots()
    assert f"{REPOS[name]}.zeta" in made.knobs()
    assert base.keeps_zero_groups or name == "repo-d" or not made.keeps_zero_groups


@pytest.mark.parametrize(
    ("name", "on"),
    [
        ("repo-r", "adapo"),
        ("repo-d", "adapo"),
        ("repo-r", "grpo-bonus"),
        ("repo-d", "grpo-bonus"),
        ("repo-r", "repo-d"),
        ("repo-d", "repo-r"),
    ],
)
def test_repo_on_a_recipe_takes_nothing_away(name: str, on: str) -> None:
    made, base = recipe(name, on=on), recipe(on)
    assert base.transforms == made.transforms[:-1]
    assert base.controllers == made.controllers[:-1]
    state = made.initial_state()
    before = dict(state.knobs)
    now = Statistics(iteration=1, entropy=0.5, initial_entropy=1.0, reward=0.0, success=0.0)
    made.control(now, state)
    moved = {path for part in made.controllers for path in part.moves}
    assert 2 == len(moved)
    assert moved == {path for path, value in state.knobs.items() if value > before[path]}


@pytest.mark.parametrize("name", REPOS)
def test_repo_on_itself_has_a_ladder_for_each(name: str) -> None:
    moved = [path for c in recipe(name, on=name).controllers for path in c.moves]
    assert [f"{REPOS[name]}.zeta", f"{REPOS[name]}_2.zeta"] == moved


@pytest.mark.parametrize("name", REPOS)
def test_repo_on_another_recipe_is_written_in_toml_as_in_python(name: str) -> None:
    table = {"recipe": name, "on": "dapo", "epochs": 1, REPOS[name]: {"zeta": 0.025}}
    made = read_config({"env": "arithmetic", "algorithm": table})
    expected = recipe(name, on="dapo", epochs=1, **{REPOS[name]: {"zeta": 0.025}})
    assert expected == made.algorithm
    assert made == read_config(tomllib.loads(to_toml(made)))
    plain = {"env": "arithmetic", "algorithm": name}
    assert recipe(name, on="dapo") == read_config(plain, {"algorithm.on": "dapo"}).algorithm


@pytest.mark.parametrize("name", REPOS)
def test_a_recipe_that_repo_cannot_be_on_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        recipe(name, on="dappo")
    assert "The recipe 'dappo' does not exist. Did you mean 'dapo'?" == str(caught.value)
    with pytest.raises(UnknownNameError, match=r"Key 'onn' does not exist\. Did you mean 'on'"):
        recipe(name, onn="dapo")
    table = {"env": "arithmetic", "algorithm": {"recipe": name, "onn": "dapo"}}
    with pytest.raises(UnknownNameError, match=r"^algorithm: Key 'onn' does not exist"):
        read_config(table)
    with pytest.raises(UnknownNameError, match="Key 'on' does not exist"):
        recipe("grpo", on="dapo")


@pytest.mark.parametrize("on", [3, None, ["dapo"], {}, True])
def test_what_is_no_recipes_name_is_refused_in_a_sentence(on: Any) -> None:
    with pytest.raises(ConfigError):
        recipe("repo-r", on=on)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPOS)
@pytest.mark.parametrize("on", BASES)
def test_repo_trains_on_every_recipe(tiny_run: dict[str, Any], name: str, on: str) -> None:
    """Its zeta moves, and its transform decides what is learnt: another zeta, another policy."""
    passes = {} if on == "rloo" else {"epochs": 2, "minibatch": 16}
    weights = []
    out = Path(tiny_run.pop("out"))
    for i, zeta in enumerate((0.0, 0.02)):
        algorithm = recipe(name, on=on, **passes, **{REPOS[name]: {"zeta": zeta}})
        run = isentrope.train(
            **{**tiny_run, "algorithm": algorithm, "iterations": 2}, out=out / str(i)
        )
        assert 2 == len(run.metrics)
        first, second = run.metrics
        assert (zeta, True) == (first[f"{REPOS[name]}.zeta"], first["steps"] > 0)
        assert (0, 0) == (first["steps_skipped"], second["steps_skipped"])
        assert zeta != second[f"{REPOS[name]}.zeta"]
        weights.append((run.policy / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(tiny_run: dict[str, Any], name: str) -> None:
    run = isentrope.train(**{**tiny_run, "algorithm": name, "iterations": 2})
    assert any(m["steps"] and m["grad_norm"] > 0 for m in run.metrics)
    assert all(m["steps_skipped"] == 0 for m in run.metrics)


def test_every_recipe_says_what_it_is() -> None:
    for name in RECIPES:
        compose = getattr(recipes, name.replace("-", "_"))
        assert compose.__doc__
        assert registry().find("recipe", name).summary
