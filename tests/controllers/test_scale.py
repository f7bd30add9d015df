"""The entropy scale (ADAPO's), against powers of its factor; and the schedule of a knob."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isentrope import Algorithm, ConfigError, EntropyTarget, Knob, Statistics, component, recipe
from isentrope.testing import check_controller
from isentrope_controllers.entropy import EntropyScale
from isentrope_controllers.schedule import Scheduled

KNOB = "objective.eps_high"


def statistics(entropy: float = 1.0, iteration: int = 3, **exact: float) -> Statistics:
    return Statistics(
        iteration=iteration, entropy=entropy, initial_entropy=1.0, reward=0.0, success=0.0, **exact
    )


UP, DOWN, STILL = statistics(0.5), statistics(1.5), statistics(1.0)


def walk(scale: EntropyScale, value: float, steps: str) -> list[float]:
    """Return the values that ``+`` (too little entropy), ``-`` and ``=`` lead through."""
    values = []
    for step in steps:
        now = {"+": UP, "-": DOWN, "=": STILL}[step]
        value = scale.update(now, {KNOB: value}, {}).get(KNOB, value)
        values.append(value)
    return values


TWICE = EntropyScale(knob=KNOB, low=1.0, high=10.0, factor=2.0)


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (1.0, 2.0, 1.0),  # at the lower end
        (1.5, 3.0, 1.0),  # would be 0.75
        (2.0, 4.0, 1.0),
        (4.0, 8.0, 2.0),
        (5.0, 10.0, 2.5),
        (8.0, 10.0, 4.0),  # would be 16
        (10.0, 10.0, 5.0),  # at the upper end
        (0.3, 1.0, 1.0),  # below the range
        (0.6, 1.2, 1.0),
        (0.0, 1.0, 1.0),
        (-3.0, 1.0, 1.0),
        (15.0, 10.0, 7.5),  # above it
        (100.0, 10.0, 10.0),
    ],
)
def test_a_step_multiplies_or_divides_and_stays_in_range(
    value: float, up: float, down: float
) -> None:
    assert [up] == walk(TWICE, value, "+")
    assert [down] == walk(TWICE, value, "-")


@pytest.mark.parametrize("value", [1.0, 3.0, 10.0, 0.2, 40.0])
def test_entropy_on_target_moves_nothing_not_even_into_range(value: float) -> None:
    assert {} == TWICE.update(STILL, {KNOB: value}, {})


def test_by_default_a_step_is_a_fifth() -> None:
    scale = EntropyScale(knob=KNOB, low=0.1, high=1.0)
    assert pytest.approx([0.24, 0.288, 0.24, 0.2, 0.2 / 1.2]) == walk(scale, 0.2, "++---")


factors = st.floats(1.001, 10)


@given(factor=factors, start=st.floats(1e-3, 1e3), steps=st.text("+-=", max_size=40))
def test_inside_the_range_a_walk_is_the_factor_to_the_power_of_its_steps(
    factor: float, start: float, steps: str
) -> None:
    scale = EntropyScale(knob=KNOB, low=1e-60, high=1e60, factor=factor)
    found = walk(scale, start, steps)
    for i, value in enumerate(found, 1):
        power = steps[:i].count("+") - steps[:i].count("-")
        assert pytest.approx(start * factor**power, rel=1e-12) == value


@given(factor=factors, start=st.floats(1e-3, 1e3), count=st.integers(0, 30), up=st.booleans())
def test_as_many_steps_back_lead_back(factor: float, start: float, count: int, up: bool) -> None:
    scale = EntropyScale(knob=KNOB, low=1e-40, high=1e40, factor=factor)
    steps = ("+" * count + "-" * count) if up else ("-" * count + "+" * count)
    assert pytest.approx(start, rel=1e-13) == [start, *walk(scale, start, steps)][-1]


@given(
    low=st.floats(1e-6, 1),
    over=st.floats(1, 1e4),
    factor=factors,
    start=st.floats(-1e3, 1e6),
    steps=st.text("+-", min_size=1, max_size=40),
)
def test_a_step_is_whole_or_ends_on_a_bound_and_goes_the_right_way(
    low: float, over: float, factor: float, start: float, steps: str
) -> None:
    high = low * over
    value = start
    scale = EntropyScale(knob=KNOB, low=low, high=high, factor=factor)
    for step, moved in zip(steps, walk(scale, start, steps), strict=True):
        assert moved in scale.moves[KNOB]
        if low <= value <= high:
            assert moved >= value if step == "+" else moved <= value
            assert moved != value or value in (low, high)
        if moved not in (low, high):
            whole = value * factor if step == "+" else value / factor
            assert pytest.approx(whole, rel=1e-12) == moved
        value = moved


def test_a_scale_of_one_value_stays_there() -> None:
    scale = EntropyScale(knob=KNOB, low=0.3, high=0.3)
    assert [0.3] * 4 == walk(scale, 0.3, "+-+-")


def test_it_moves_its_own_knob_and_remembers_nothing() -> None:
    memory: dict[str, object] = {}
    assert {KNOB: Knob(1.0, 10.0)} == TWICE.moves
    moved = TWICE.update(UP, {KNOB: 2.0, "objective.eps_low": 0.2}, memory)
    assert {KNOB: 4.0} == json.loads(json.dumps(dict(moved)))
    assert {} == memory


@pytest.mark.parametrize(
    "values",
    [
        {"low": 0.0},
        {"low": -1.0},
        {"low": math.nan},
        {"high": 0.0},
        {"high": math.inf},
        {"high": math.nan},
        {"low": 2.0, "high": 1.0},
        {"factor": 1.0},
        {"factor": 0.5},
        {"factor": math.inf},
        {"factor": math.nan},
        {"target": -0.1},
    ],
)
def test_a_scale_that_cannot_be_is_refused(values: dict[str, float]) -> None:
    given = {"knob": KNOB, "low": 0.1, "high": 1.0, **values}
    with pytest.raises(ValueError):  # noqa: PT011  # attrs words some of them, in Python
        EntropyScale(**given)
    with pytest.raises(ConfigError):
        component("controller", "entropy-scale", **given)


def test_a_scale_may_hold_no_knob_of_which_it_leaves_the_bounds() -> None:
    beyond = EntropyScale(knob="objective.eps_low", low=0.1, high=2.0)
    with pytest.raises(ConfigError, match=r"'objective.eps_low' within \[0.1, 2\], but that knob"):
        recipe("adapo", controllers=[beyond])


def test_adapo_hands_the_moved_bound_to_its_objective() -> None:
    algorithm = recipe("adapo")
    state = algorithm.initial_state()
    bounds = []
    for now in (STILL, UP, UP, DOWN, DOWN, DOWN):
        algorithm.control(now, state)
        objective: Any = algorithm.at(state.knobs).objective
        assert 0.2 == objective.eps_low
        bounds.append(objective.eps_high)
    expected = [0.28, 0.28 * 1.2, 0.28 * 1.44, 0.28 * 1.2, 0.28, 0.28 / 1.2]
    assert pytest.approx(expected) == bounds


def test_adapos_bound_falls_below_the_lower_one_and_rises_to_its_own_height() -> None:
    algorithm = recipe("adapo")
    (scale,) = algorithm.controllers
    assert scale.low < 0.2
    for now, end in ((DOWN, scale.low), (UP, scale.high)):
        state = algorithm.initial_state()
        for _ in range(40):
            algorithm.control(now, state)
        assert end == state.knobs[KNOB]


def test_a_scale_drives_gspos_bound_too() -> None:
    scale = EntropyScale(knob=KNOB, low=1e-4, high=1e-2)
    algorithm = recipe("gspo", controllers=[scale])
    state = algorithm.initial_state()
    algorithm.control(UP, state)
    assert pytest.approx(4.8e-4) == state.knobs[KNOB]


# ---------------------------------------------------------------- targets

TARGETS = {
    "nats": (EntropyTarget(nats=0.7), 0.7),
    "fraction": (EntropyTarget(of_initial=0.7), 0.7),
    "schedule": (EntropyTarget(nats={0: 1.0, 6: 0.4}), 0.7),
    "fractions": (EntropyTarget(of_initial={0: 1.0, 6: 0.4}), 0.7),
    "exact": (EntropyTarget(estimator="exact"), 0.5),
    "exact-fraction": (EntropyTarget(of_initial=0.6, estimator="exact"), 0.3),
    "exact-nats": (EntropyTarget(nats=0.3, estimator="exact"), 0.3),
}
"""And what each asks for in iteration 3, where H_0 is 1 as sampled and 0.5 exactly."""


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("name", ["repo-r", "adapo", "grpo-bonus"])
def test_a_controller_moves_towards_its_target_by_the_targets_own_measure(
    name: str, case: str
) -> None:
    target, wanted = TARGETS[case]
    slot = "entropy_scale" if name == "adapo" else "entropy_ladder"
    algorithm = recipe(name, **{slot: {"target": target}})
    (controller,) = algorithm.controllers
    (path,) = controller.moves
    start = algorithm.initial_state().knobs[path]
    exact = target.estimator == "exact"
    assert (frozenset({"entropy"}) if exact else frozenset()) == controller.needs
    assert algorithm.needs | controller.needs == algorithm.needs_of_experience
    for offset, way in ((-1e-6, 1), (0.0, 0), (1e-6, -1)):
        measured, other = wanted + offset, wanted - 5 * offset  # the other one must not matter
        now = Statistics(
            iteration=3,
            entropy=other if exact else measured,
            initial_entropy=1.0,
            exact_entropy=measured if exact else other,
            initial_exact_entropy=0.5,
            reward=0.0,
            success=0.0,
        )
        assert pytest.approx(wanted) == controller.target_entropy(now)
        assert pytest.approx(wanted) == algorithm.target_entropy(now)
        if not offset and controller.target_entropy(now) != measured:
            continue  # one rounding off is not on target
        state = algorithm.initial_state()
        algorithm.control(now, state)
        assert way == np.sign(state.knobs[path] - start)


def test_a_scheduled_target_falls_and_the_controller_turns_with_it() -> None:
    scale = EntropyScale(
        knob=KNOB, low=0.1, high=1.0, factor=2.0, target=EntropyTarget(nats={10: 1.0, 20: 0.5})
    )
    moves = [
        scale.update(statistics(0.75, iteration=i), {KNOB: 0.3}, {}) for i in (0, 10, 15, 20, 99)
    ]
    assert [{KNOB: 0.6}, {KNOB: 0.6}, {}, {KNOB: 0.15}, {KNOB: 0.15}] == moves


# ---------------------------------------------------------------- schedules


@given(
    course=st.dictionaries(st.integers(0, 1000), st.floats(0, 1), min_size=1, max_size=6),
    iteration=st.integers(0, 2000),
    present=st.floats(0, 10),
)
def test_a_scheduled_knob_is_what_the_schedule_says_whatever_it_was(
    course: dict[int, float], iteration: int, present: float
) -> None:
    controller = Scheduled(knob=KNOB, schedule=course)
    moved = controller.update(statistics(9.0, iteration=iteration), {KNOB: present}, {})
    known = sorted(course)
    expected = np.interp(iteration, known, [course[k] for k in known])
    assert {KNOB: pytest.approx(expected, rel=1e-12, abs=1e-12)} == moved
    assert moved[KNOB] in controller.moves[KNOB]
    assert Knob(min(course.values()), max(course.values())) == controller.moves[KNOB]


@given(
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    length=st.integers(1, 10**6),
    back=st.integers(1, 3),
)
def test_rounding_never_takes_a_scheduled_knob_past_its_last_value(
    ends: tuple[float, float], length: int, back: int
) -> None:
    assume(back <= length)
    controller = Scheduled(knob=KNOB, schedule={0: ends[0], length: ends[1]})
    algorithm = recipe("grpo", controllers=[controller])
    state = algorithm.initial_state()
    algorithm.control(statistics(iteration=length - back), state)
    assert min(ends) <= state.knobs[KNOB] <= max(ends)


def test_a_schedule_steers_towards_no_entropy_and_needs_none() -> None:
    controller = Scheduled(knob=KNOB, schedule={0: 0.2, 10: 0.1})
    assert controller.target_entropy(STILL) is None
    assert frozenset() == controller.needs
    assert recipe("grpo", controllers=[controller]).target_entropy(STILL) is None


def test_the_first_controller_with_a_target_is_the_one_that_is_logged() -> None:
    scheduled = Scheduled(knob="objective.eps_low", schedule=0.1)
    scale = EntropyScale(knob=KNOB, low=0.1, high=1.0, target=0.25)
    algorithm = recipe("grpo", controllers=[scheduled, scale])
    assert 0.25 == algorithm.target_entropy(STILL)


def test_a_schedule_beyond_its_knobs_bounds_is_refused_when_composed() -> None:
    beyond = Scheduled(knob="objective.eps_low", schedule={0: 0.2, 100: 1.5})
    with pytest.raises(ConfigError) as caught:
        recipe("grpo", controllers=[beyond])
    assert (
        "Controller 'scheduled' may move 'objective.eps_low' within [0.2, 1.5], but that knob's "
        "bounds are [0, 1]."
    ) == str(caught.value)


@pytest.mark.parametrize("schedule", ["x", [], True, math.nan, None, {"a": 1}])
def test_what_is_no_schedule_is_refused_with_its_place(schedule: Any) -> None:
    part = {"id": "schedule", "knob": KNOB, "schedule": schedule}
    with pytest.raises(ConfigError, match=r"^controllers.*: A schedule must be a number, or pairs"):
        recipe("grpo", controllers=[part])
    with pytest.raises(ConfigError, match="must be a number, or pairs"):
        Scheduled(knob=KNOB, schedule=schedule)


# ---------------------------------------------------------------- the conformance kit

CONTROLLED: dict[str, Algorithm] = {
    **{name: recipe(name) for name in ("adapo", "grpo-bonus", "repo-r", "repo-d")},
    "nats": recipe("adapo", entropy_scale={"target": 0.5}),
    "zero": recipe("repo-r", entropy_ladder={"target": 0}),
    "fraction": recipe("repo-d", entropy_ladder={"target": {"of_initial": 0.8}}),
    "target's schedule": recipe("grpo-bonus", entropy_ladder={"target": [[0, 0.6], [100, 0.3]]}),
    "schedule": recipe("grpo", controllers=[Scheduled(knob=KNOB, schedule={0: 0.2, 99: 0.1})]),
}


@pytest.mark.parametrize("case", CONTROLLED)
def test_every_controller_keeps_the_contract(case: str) -> None:
    (controller,) = CONTROLLED[case].controllers
    report = check_controller(controller, CONTROLLED[case])
    report.raise_for_failures()
    assert {"composes", "moves", "bounds", "deterministic", "memory", "direction"} == {
        finding.check for finding in report.findings
    }


@pytest.mark.parametrize("name", ["adapo", "repo-r"])
def test_a_controller_by_the_exact_entropy_keeps_the_contract(name: str) -> None:
    slot = "entropy_scale" if name == "adapo" else "entropy_ladder"
    algorithm = recipe(name, **{slot: {"target": {"estimator": "exact"}}})
    check_controller(algorithm.controllers[0], algorithm).raise_for_failures()
