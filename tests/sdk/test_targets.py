"""What entropy is steered towards: numbers, fractions, schedules; and how it is written."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope import (
    Algorithm,
    ConfigError,
    EntropyTarget,
    Schedule,
    Statistics,
    TrainConfig,
    UnknownNameError,
    component,
    recipe,
)
from isentrope.config import parse_settings, read_config, to_toml
from isentrope.structuring import structure, unstructure

SLOT = {"repo-r": "entropy_ladder", "adapo": "entropy_scale"}
"""Recipes with each of the entropy controllers, and its slot."""


def statistics(iteration: int = 3, exact: bool = True) -> Statistics:
    """Return statistics whose four entropies are all different."""
    return Statistics(
        iteration=iteration,
        entropy=0.5,
        initial_entropy=0.8,
        exact_entropy=0.25 if exact else None,
        initial_exact_entropy=0.4 if exact else None,
        reward=0.0,
        success=0.0,
    )


def refusal(call: Any, *arguments: Any, **keywords: Any) -> str:
    """Return the one sentence of the `ConfigError` that a call is refused with."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence[-1] in ".?"
    return sentence


# ---------------------------------------------------------------- schedules

iterations = st.integers(0, 10**6)
values = st.floats(-1e6, 1e6)
courses = st.dictionaries(iterations, values, min_size=1, max_size=8)


@given(course=courses, at=iterations, data=st.data())
def test_a_schedule_is_straight_between_its_points_and_flat_outside(
    course: dict[int, float], at: int, data: st.DataObject
) -> None:
    known = sorted(course)
    pairs = data.draw(st.permutations(list(course.items())))
    scale = max(abs(value) for value in course.values())
    for given_as in (dict(pairs), pairs, {str(k): v for k, v in pairs}, tuple(map(list, pairs))):
        schedule = Schedule(given_as)
        for iteration in {at, *known, 0, known[-1] + 1, max(known[0] - 1, 0)}:
            expected = np.interp(iteration, known, [course[k] for k in known])
            assert pytest.approx(expected, rel=1e-12, abs=1e-12 * scale) == schedule(iteration)
        for iteration, value in course.items():
            assert value == schedule(iteration)


def test_before_the_first_point_and_after_the_last_a_schedule_is_flat() -> None:
    schedule = Schedule({10: 1.0, 20: 3.0})
    expected = [1.0, 1.0, 1.0, 1.2, 2.0, 2.8, 3.0, 3.0, 3.0]
    assert pytest.approx(expected) == [schedule(i) for i in (0, 9, 10, 11, 15, 19, 20, 21, 10**9)]


@given(value=values, at=iterations)
def test_a_number_is_a_schedule_that_never_changes(value: float, at: int) -> None:
    assert value == Schedule(value)(at)
    assert value == Schedule(value).plain()


def test_the_keys_of_a_toml_table_are_iterations_by_number_and_not_by_spelling() -> None:
    assert ((9, 2.0), (10, 1.0), (100, 3.0)) == Schedule({"10": 1, "9": 2, "100": 3}).points


def test_a_whole_number_is_a_value_too_and_a_schedule_passes_through() -> None:
    schedule = Schedule([[0, 1], (10, 2)])
    assert 1.5 == schedule(5)
    assert all(type(value) is float for _, value in schedule.points)
    assert schedule is Schedule.read(schedule)


@given(course=courses, at=iterations)
def test_a_schedule_written_plainly_reads_back_to_the_same_values(
    course: dict[int, float], at: int
) -> None:
    schedule = Schedule(course)
    again = Schedule.read(schedule.plain())
    known = sorted(course)
    assert [schedule(i) for i in (at, *known)] == [again(i) for i in (at, *known)]
    assert len(course) == 1 or schedule == again


def test_a_schedule_of_one_late_point_reads_back_equal() -> None:
    assert Schedule({5: 0.6}) == Schedule.read(Schedule({5: 0.6}).plain())


NO_SCHEDULE = [
    math.nan,
    math.inf,
    -math.inf,
    True,
    None,
    "0.5",
    "",
    b"5",
    [],
    (),
    {},
    [0, 1],
    [[0]],
    [[0, 1, 2]],
    [[0, math.nan]],
    [[0, math.inf]],
    [[0, True]],
    [[0, "1"]],
    [[0, None]],
    [[True, 1.0]],
    [[1.0, 1.0]],
    [[-1, 1.0]],
    {"a": 1.0},
    {"-1": 1.0},
    {"1.5": 1.0},
    {"": 1.0},
    ["01"],
]


@pytest.mark.parametrize("value", NO_SCHEDULE, ids=repr)
def test_what_is_no_schedule_is_refused(value: Any) -> None:
    assert (
        f"A schedule must be a number, or pairs of iteration and number; got {value!r}."
        == refusal(Schedule, value)
    )


@pytest.mark.parametrize("value", [[[0, 1], [5, 2], [0, 1]], {"1": 1, 1: 2}, {"01": 1, "1": 2}])
def test_two_values_for_one_iteration_are_refused(value: Any) -> None:
    assert f"A schedule must have one value for an iteration; got {value!r}." == refusal(
        Schedule, value
    )


@pytest.mark.parametrize("value", [{"²": 1.0}, 10**400, [[0, 10**400]]], ids=["²", "int", "pair"])
def test_what_python_itself_cannot_convert_is_refused_like_the_rest(value: Any) -> None:
    refusal(Schedule, value)


# ---------------------------------------------------------------- targets


def test_the_default_target_is_the_first_iterations_entropy() -> None:
    for target in (EntropyTarget(), EntropyTarget.read(None), EntropyTarget.read({})):
        assert 0.8 == target(statistics())
        assert pytest.approx(0.3) == target.missing(statistics())
        assert frozenset() == target.needs


def test_a_number_is_nats_and_no_fraction() -> None:
    assert EntropyTarget(nats=0.6) == EntropyTarget.read(0.6)
    assert 0.6 == EntropyTarget.read(0.6)(statistics())
    assert pytest.approx(0.1) == EntropyTarget.read(0.6).missing(statistics())
    assert 0.0 == EntropyTarget.read(0)(statistics())
    assert -0.5 == EntropyTarget.read(0).missing(statistics())


def test_a_fraction_is_of_the_estimators_own_first_entropy() -> None:
    assert pytest.approx(0.4) == EntropyTarget(of_initial=0.5)(statistics())
    exact = EntropyTarget(of_initial=0.5, estimator="exact")
    assert pytest.approx(0.2) == exact(statistics())
    assert pytest.approx(-0.05) == exact.missing(statistics())


def test_an_exact_target_compares_exact_entropies_and_says_what_it_needs() -> None:
    exact = EntropyTarget(estimator="exact")
    assert 0.4 == exact(statistics())
    assert pytest.approx(0.15) == exact.missing(statistics())
    in_nats = EntropyTarget(nats=0.3, estimator="exact")
    assert 0.3 == in_nats(statistics())
    assert pytest.approx(0.05) == in_nats.missing(statistics())
    assert {"entropy"} == exact.needs == in_nats.needs


@given(
    course=st.dictionaries(iterations, st.floats(0, 10), min_size=1, max_size=5),
    at=iterations,
    estimator=st.sampled_from(["sampled", "exact"]),
)
def test_a_target_may_follow_a_schedule_in_nats_or_of_the_first(
    course: dict[int, float], at: int, estimator: Any
) -> None:
    known = sorted(course)
    value = float(np.interp(at, known, [course[k] for k in known]))
    first, present = {"sampled": (0.8, 0.5), "exact": (0.4, 0.25)}[estimator]
    now = statistics(at)
    for target, expected in (
        (EntropyTarget(nats=course, estimator=estimator), value),
        (EntropyTarget(of_initial=course, estimator=estimator), value * first),
    ):
        assert pytest.approx(expected, rel=1e-9, abs=1e-9) == target(now)
        assert pytest.approx(expected - present, rel=1e-9, abs=1e-9) == target.missing(now)


@pytest.mark.parametrize("ask", [EntropyTarget.__call__, EntropyTarget.missing])
def test_an_exact_target_without_a_measurement_is_refused(ask: Any) -> None:
    sentence = refusal(ask, EntropyTarget(estimator="exact"), statistics(exact=False))
    assert "its controller must pass on the target's needs" in sentence


def test_a_target_in_nats_needs_no_measurement_to_be_known() -> None:
    assert 0.3 == EntropyTarget(nats=0.3, estimator="exact")(statistics(exact=False))


def test_both_a_fraction_and_nats_are_refused() -> None:
    told = "EntropyTarget takes of_initial or nats, not both."
    assert told == refusal(EntropyTarget, of_initial=0.8, nats=0.5)
    assert told == refusal(EntropyTarget, of_initial=1.0, nats=0)


@pytest.mark.parametrize("field", ["of_initial", "nats"])
@pytest.mark.parametrize("value", [-0.1, {0: 0.5, 10: -1e-9}, -1])
def test_a_negative_target_is_refused(field: str, value: Any) -> None:
    assert refusal(EntropyTarget, **{field: value}).startswith(
        "A target entropy must not be negative; got "
    )


@pytest.mark.parametrize("field", ["of_initial", "nats"])
@pytest.mark.parametrize("value", [v for v in NO_SCHEDULE if v is not None], ids=repr)
def test_what_is_no_schedule_is_no_target(field: str, value: Any) -> None:
    assert f"got {value!r}." in refusal(EntropyTarget, **{field: value})


def test_an_estimator_that_does_not_exist_is_refused_with_the_nearest() -> None:
    sentence = refusal(EntropyTarget, estimator="exakt")
    assert "EntropyTarget.estimator: 'exakt' does not exist. Did you mean 'exact'?" == sentence
    with pytest.raises(UnknownNameError, match="Known: exact, sampled"):
        EntropyTarget(estimator="full")  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("value", [3, None])
def test_an_estimator_that_is_no_name_is_refused(value: Any) -> None:
    refusal(EntropyTarget, estimator=value)


def test_a_mapping_of_iterations_is_a_schedule_of_nats() -> None:
    expected = EntropyTarget(nats=[(0, 0.6), (100, 0.3)])
    assert expected == EntropyTarget.read({0: 0.6, 100: 0.3})
    assert expected == EntropyTarget.read({"0": 0.6, "100": 0.3})


@pytest.mark.parametrize("table", [{"of_inital": 0.8}, {"10": 0.5, "nat": 1}, {0.5: 0.5}])
def test_a_table_that_is_no_target_is_refused_in_python_too(table: dict[Any, Any]) -> None:
    refusal(EntropyTarget.read, table)


# ---------------------------------------------------------------- there and back


def configured(algorithm: Any, *settings: str) -> TrainConfig:
    return read_config({"env": "arithmetic", "algorithm": algorithm}, parse_settings(settings))


def target_of(config: TrainConfig) -> EntropyTarget:
    (controller,) = config.algorithm.controllers
    return controller.target  # type: ignore[attr-defined]  # an entropy controller


WRITTEN = {
    "default": EntropyTarget(),
    "number": EntropyTarget(nats=0.5),
    "zero": EntropyTarget(nats=0),
    "fraction": EntropyTarget(of_initial=0.8),
    "schedule": EntropyTarget(nats={0: 0.6, 200: 0.3}),
    "late": EntropyTarget(nats={50: 0.6, 200: 0.3}),
    "fractions": EntropyTarget(of_initial={0: 1, 100: 0.5}),
    "exact": EntropyTarget(estimator="exact"),
    "exact-schedule": EntropyTarget(of_initial={5: 1, 9: 0.5}, estimator="exact"),
}


@pytest.mark.parametrize("name", SLOT)
@pytest.mark.parametrize("case", WRITTEN)
def test_a_target_survives_toml(name: str, case: str) -> None:
    made = configured(recipe(name, **{SLOT[name]: {"target": WRITTEN[case]}}))
    assert WRITTEN[case] == target_of(made)
    back = read_config(tomllib.loads(to_toml(made)))
    assert made == back
    assert to_toml(made) == to_toml(back)


@settings(deadline=None)
@given(
    field=st.sampled_from(["of_initial", "nats"]),
    course=st.floats(0, 10) | st.dictionaries(iterations, st.floats(0, 10), min_size=2, max_size=4),
    estimator=st.sampled_from(["sampled", "exact"]),
)
def test_any_target_survives_plain_data(field: str, course: Any, estimator: Any) -> None:
    target = EntropyTarget(**{field: course}, estimator=estimator)
    algorithm = recipe("repo-r", entropy_ladder={"target": target})
    again = structure(unstructure(algorithm), Algorithm)
    assert algorithm == again
    assert target == again.controllers[0].target  # type: ignore[attr-defined]


def test_a_schedule_for_a_knob_survives_toml() -> None:
    for written in (0.3, {0: 0.2, 100: 0.05}, {"100": 0.05, "20": 0.2}, [[0, 0.2], [9, 0.1]]):
        part = component("controller", "schedule", knob="objective.eps_high", schedule=written)
        made = configured(recipe("grpo", controllers=[part]))
        assert made == read_config(tomllib.loads(to_toml(made)))
        assert (part,) == made.algorithm.controllers


# ---------------------------------------------------------------- on the command line

SETTINGS = {
    "target=0.5": EntropyTarget(nats=0.5),
    "target=1": EntropyTarget(nats=1),
    "target.nats=0.4": EntropyTarget(nats=0.4),
    "target.of_initial=0.8": EntropyTarget(of_initial=0.8),
    "target = [[0, 0.6], [100, 0.3]]": EntropyTarget(nats={0: 0.6, 100: 0.3}),
    "target.nats = [[0, 0.6], [100, 0.3]]": EntropyTarget(nats={0: 0.6, 100: 0.3}),
    "target.nats = {0 = 0.6, 100 = 0.3}": EntropyTarget(nats={0: 0.6, 100: 0.3}),
    "target = {0 = 0.6, 100 = 0.3}": EntropyTarget(nats={0: 0.6, 100: 0.3}),
    "target.of_initial = [[0, 1], [50, 0.5]]": EntropyTarget(of_initial={0: 1, 50: 0.5}),
    "target.estimator=exact": EntropyTarget(estimator="exact"),
    'target={of_initial=0.8, estimator="exact"}': EntropyTarget(of_initial=0.8, estimator="exact"),
    "target={}": EntropyTarget(),
}


@pytest.mark.parametrize("name", SLOT)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_target_can_be_set_by_key(name: str, setting: str) -> None:
    key = f"algorithm.{SLOT[name]}.{setting}"
    assert SETTINGS[setting] == target_of(configured(name, key))
    assert SETTINGS[setting] == target_of(read_config(configured(name), parse_settings([key])))


def test_two_keys_of_one_target_are_set_together() -> None:
    keys = ("of_initial=0.8", "estimator=exact")
    made = configured("repo-r", *(f"algorithm.entropy_ladder.target.{key}" for key in keys))
    assert EntropyTarget(of_initial=0.8, estimator="exact") == target_of(made)


@pytest.mark.parametrize("name", SLOT)
@pytest.mark.parametrize(
    ("setting", "place", "told"),
    [
        ("=-1", "", "must not be negative"),
        ("=nan", "", "A schedule must be a number, or pairs"),
        ("=inf", "", "A schedule must be a number, or pairs"),
        ("=true", "", "A schedule must be a number, or pairs"),
        ("=abc", "", "A schedule must be a number, or pairs"),
        ("=[]", "", "A schedule must be a number, or pairs"),
        ("=[[0, 1], [0, 2]]", "", "A schedule must have one value for an iteration"),
        ("={of_initial = 0.8, nats = 0.5}", "", "of_initial or nats, not both"),
        (".of_initial=abc", ".of_initial", "A schedule must be a number, or pairs"),
        (".of_inital=0.8", "", "Did you mean 'of_initial'?"),
        (".estimator=exakt", ".estimator", "Did you mean 'exact'?"),
        (".estimator=3", ".estimator", "Known: exact, sampled"),
    ],
)
def test_a_wrong_target_is_refused_with_its_place(
    name: str, setting: str, place: str, told: str
) -> None:
    sentence = refusal(configured, name, f"algorithm.{SLOT[name]}.target{setting}")
    assert sentence.startswith(f"algorithm.{SLOT[name]}.target{place}: ")
    assert told in sentence


def test_a_number_replaces_a_table_and_a_table_never_half_a_number() -> None:
    tabled = {
        "recipe": "repo-r",
        "entropy_ladder": {"target": {"of_initial": 0.8, "estimator": "exact"}},
    }
    key = "algorithm.entropy_ladder.target"
    assert EntropyTarget(nats=0.5) == target_of(configured(tabled, f"{key}=0.5"))
    assert "of_initial or nats, not both" in refusal(configured, tabled, f"{key}.nats=0.5")
    numbered = {"recipe": "repo-r", "entropy_ladder": {"target": 0.5}}
    sentence = refusal(configured, numbered, f"{key}.estimator=exact")
    assert f"{key}: must be a table to have keys that can be set; it is 0.5." == sentence


def test_a_key_of_a_table_leaves_its_others() -> None:
    tabled = {"recipe": "repo-r", "entropy_ladder": {"target": {"nats": 0.5}}}
    made = configured(tabled, "algorithm.entropy_ladder.target.estimator=exact")
    assert EntropyTarget(nats=0.5, estimator="exact") == target_of(made)


def test_a_key_of_a_finished_configs_target_leaves_its_others() -> None:
    made = configured({"recipe": "repo-r", "entropy_ladder": {"target": {"nats": 0.5}}})
    changes = parse_settings(["algorithm.entropy_ladder.target.estimator=exact"])
    expected = EntropyTarget(nats=0.5, estimator="exact")
    assert expected == target_of(read_config(made, changes))
    assert expected == target_of(read_config(tomllib.loads(to_toml(made)), changes))
