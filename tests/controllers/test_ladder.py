"""The entropy ladder as a state machine, against a reference that knows rungs and no arithmetic."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isentrope import ConfigError, EntropyTarget, Knob, Statistics, component, recipe
from isentrope_controllers.entropy import EntropyLadder

KNOB = "repo_r.zeta"


def statistics(entropy: float, initial: float = 1.0) -> Statistics:
    return Statistics(
        iteration=3, entropy=entropy, initial_entropy=initial, reward=0.0, success=0.0
    )


UP, DOWN, STILL = statistics(0.5), statistics(1.5), statistics(1.0)


def walk(ladder: EntropyLadder, value: float, steps: str) -> list[float]:
    """Return the values that ``+`` (too little entropy), ``-`` and ``=`` lead through."""
    values = []
    for step in steps:
        now = {"+": UP, "-": DOWN, "=": STILL}[step]
        value = ladder.update(now, {KNOB: value}, {}).get(KNOB, value)
        values.append(value)
    return values


EIGHT = EntropyLadder(knob=KNOB, low=1.0, high=8.0)


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (8.0, 8.0, 4.0),
        (4.0, 8.0, 2.0),
        (2.0, 4.0, 1.0),
        (1.0, 2.0, -1.0),
        (-1.0, 1.0, -2.0),
        (-2.0, -1.0, -4.0),
        (-4.0, -2.0, -8.0),
        (-8.0, -4.0, -8.0),
    ],
)
def test_every_rung_leads_to_its_neighbours(value: float, up: float, down: float) -> None:
    assert [up] == walk(EIGHT, value, "+")
    assert [down] == walk(EIGHT, value, "-")


def test_the_whole_ladder_is_climbed_up_and_down_through_the_flip() -> None:
    up = [-4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert up == walk(EIGHT, -8.0, "+" * 8)
    assert [-x for x in up] == walk(EIGHT, 8.0, "-" * 8)


def test_a_highest_value_between_rungs_is_reached_and_halved_from_there() -> None:
    """As the paper says it: double or halve, flip below the lowest, then clip."""
    ladder = EntropyLadder(knob=KNOB, low=1.0, high=5.0)
    assert [4.0, 5.0, 5.0, 2.5, 1.25, -1.0, -2.0] == walk(ladder, 2.0, "+++----")
    assert [-4.0, -5.0, -5.0, -2.5, -1.25, 1.0, 2.0] == walk(ladder, -2.0, "---++++")


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (0.0, 1.0, -1.0),
        (0.25, 1.0, -1.0),  # doubled it is still below the lowest rung
        (0.75, 1.5, -1.0),
        (-0.25, 1.0, -1.0),
        (-0.75, 1.0, -1.5),
        (3.0, 6.0, 1.5),
        (-3.0, -1.5, -6.0),
        (100.0, 8.0, 8.0),
        (-100.0, -8.0, -8.0),
    ],
)
def test_values_off_the_ladder_come_back_onto_it(value: float, up: float, down: float) -> None:
    assert [up] == walk(EIGHT, value, "+")
    assert [down] == walk(EIGHT, value, "-")


def test_entropy_on_target_moves_nothing() -> None:
    assert {} == EIGHT.update(STILL, {KNOB: 0.3}, {})
    assert [2.0, 2.0, 1.0, 1.0] == walk(EIGHT, 1.0, "+=-=")


def test_an_explicit_target_takes_the_first_iterations_place() -> None:
    ladder = EntropyLadder(knob=KNOB, low=1.0, high=8.0, target=0.25)
    assert {KNOB: 2.0} == ladder.update(statistics(0.2, initial=0.1), {KNOB: 1.0}, {})
    assert {KNOB: -1.0} == ladder.update(statistics(0.3, initial=0.9), {KNOB: 1.0}, {})
    assert {} == ladder.update(statistics(0.25, initial=0.9), {KNOB: 1.0}, {})
    assert (0.25, 0.9) == tuple(
        x.target_entropy(statistics(0.3, initial=0.9)) for x in (ladder, EIGHT)
    )


def test_a_target_of_zero_is_a_target() -> None:
    ladder = EntropyLadder(knob=KNOB, low=1.0, high=8.0, target=0.0)
    assert {KNOB: 1.0} == ladder.update(statistics(0.2), {KNOB: 2.0}, {})


def test_one_rung_alone_flips_and_never_leaves() -> None:
    ladder = EntropyLadder(knob=KNOB, low=0.3, high=0.3)
    assert [0.3, -0.3, -0.3, 0.3] == walk(ladder, 0.3, "+--+")


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (EntropyTarget(), 0.8),
        (EntropyTarget(of_initial=0.5), 0.4),
        (EntropyTarget(of_initial={0: 1.0, 6: 0.0}), 0.4),
        (EntropyTarget(nats={0: 0.9, 6: 0.3}), 0.6),
    ],
)
def test_a_ladder_climbs_below_any_kind_of_target_and_descends_above_it(
    target: EntropyTarget, wanted: float
) -> None:
    """In the third iteration, with H_0 = 0.8."""
    ladder = EntropyLadder(knob=KNOB, low=1.0, high=8.0, target=target)
    assert pytest.approx(wanted) == ladder.target_entropy(statistics(0.1, initial=0.8))
    assert {KNOB: 4.0} == ladder.update(statistics(wanted - 1e-9, initial=0.8), {KNOB: 2.0}, {})
    assert {KNOB: 1.0} == ladder.update(statistics(wanted + 1e-9, initial=0.8), {KNOB: 2.0}, {})


def test_a_ladder_with_an_exact_target_sees_no_sampled_entropy() -> None:
    ladder = EntropyLadder(
        knob=KNOB, low=1.0, high=8.0, target=EntropyTarget(of_initial=0.5, estimator="exact")
    )
    assert {"entropy"} == ladder.needs
    assert frozenset() == EIGHT.needs
    for exact, sampled, moved in (
        (0.1, 9.0, {KNOB: 4.0}),
        (0.3, 0.0, {KNOB: 1.0}),
        (0.2, 9.0, {}),
    ):
        now = attrs.evolve(statistics(sampled), exact_entropy=exact, initial_exact_entropy=0.4)
        assert moved == ladder.update(now, {KNOB: 2.0}, {})


class Rungs:
    """The same ladder as a sorted list, for a `high` that is a rung; no doubling, no signs."""

    def __init__(self, low: float, count: int) -> None:
        positive = [math.ldexp(low, n) for n in range(count)]
        self.values = [-x for x in reversed(positive)] + positive

    def move(self, value: float, step: str) -> float:
        if step == "+":
            return self.values[min(bisect_right(self.values, value), len(self.values) - 1)]
        return self.values[max(bisect_left(self.values, value) - 1, 0)] if step == "-" else value


@given(
    low=st.sampled_from([1e-4, 1e-3, 0.3, 1.0]),
    count=st.integers(1, 14),
    start=st.integers(0, 27),
    steps=st.text("+-=", max_size=60),
)
def test_random_walks_agree_with_a_list_of_rungs(
    low: float, count: int, start: int, steps: str
) -> None:
    rungs = Rungs(low, count)
    value = rungs.values[start % len(rungs.values)]
    found = walk(EntropyLadder(knob=KNOB, low=low, high=rungs.values[-1]), value, steps)
    expected = []
    for step in steps:
        value = rungs.move(value, step)
        expected.append(value)
    assert expected == found


@given(
    low=st.floats(1e-6, 1),
    over=st.floats(1, 1e4),
    start=st.floats(-1e3, 1e3),
    steps=st.text("+-", min_size=1, max_size=40),
)
def test_a_move_stays_in_range_never_reaches_zero_and_goes_the_right_way(
    low: float, over: float, start: float, steps: str
) -> None:
    high = low * over
    value = start
    for i, moved in enumerate(walk(EntropyLadder(knob=KNOB, low=low, high=high), start, steps)):
        assert low <= abs(moved) <= high
        if low <= abs(value) <= high:
            assert moved >= value if steps[i] == "+" else moved <= value
            assert moved != value or abs(value) == high
        value = moved


def test_what_it_decides_by_and_returns_is_json() -> None:
    memory: dict[str, object] = {}
    moved = EIGHT.update(UP, {KNOB: 1.0}, memory)
    assert {KNOB: 2.0} == json.loads(json.dumps(dict(moved)))
    assert {} == memory


def test_it_moves_its_own_knob_and_leaves_the_others() -> None:
    assert {KNOB: Knob(-8.0, 8.0)} == EIGHT.moves
    assert {KNOB: 2.0} == EIGHT.update(UP, {KNOB: 1.0, "objective.eps_high": 0.2}, {})


def test_the_algorithm_hands_the_moved_knob_to_its_part() -> None:
    algorithm = recipe("repo-r")
    state = algorithm.initial_state()
    zetas = []
    for now in (UP, UP, DOWN, DOWN, DOWN, STILL):
        algorithm.control(now, state)
        zetas.append(algorithm.at(state.knobs).transforms[0].zeta)
    assert [0.02, 0.04, 0.02, 0.01, -0.01, -0.01] == zetas


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"low": 0.0}, ValueError),
        ({"low": -1.0}, ValueError),
        ({"high": 0.0}, ValueError),
        ({"target": -0.1}, ValueError),
        ({"low": 2.0, "high": 1.0}, ConfigError),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(
    values: dict[str, float], error: type[Exception]
) -> None:
    with pytest.raises(error):
        EntropyLadder(**{"knob": KNOB, "low": 1e-4, "high": 0.05, **values})


def test_a_ladder_that_reaches_beyond_its_knobs_bounds_is_refused_when_composed() -> None:
    beyond = EntropyLadder(knob=KNOB, low=1.0, high=16.0)
    with pytest.raises(ConfigError) as caught:
        recipe("repo-r", controllers=[beyond])
    assert (
        "Controller 'entropy_ladder' may move 'repo_r.zeta' within [-16, 16], but that knob's "
        "bounds are [-10, 10]."
    ) == str(caught.value)


def test_a_ladder_needs_a_knob_with_two_signs() -> None:
    with pytest.raises(ConfigError, match=r"'objective\.eps_high' within \[-0\.05, 0\.05\]"):
        recipe("grpo", controllers=[EntropyLadder(knob="objective.eps_high", low=1e-4, high=0.05)])


def test_two_ladders_may_hold_two_knobs() -> None:
    transforms = [component("transform", "repo-r"), component("transform", "repo-r")]
    ladders = [
        EntropyLadder(knob=KNOB, low=1e-4, high=0.05),
        EntropyLadder(knob="repo_r_2.zeta", low=1e-4, high=0.05, target=0.25),
    ]
    algorithm = recipe("repo-r", transforms=transforms, controllers=ladders)
    state = algorithm.initial_state()
    algorithm.control(UP, state)
    assert ["entropy_ladder", "entropy_ladder_2"] == list(algorithm.slots())[-2:]
    assert [2e-4, -1e-4] == [part.zeta for part in algorithm.at(state.knobs).transforms]


def test_two_ladders_on_one_knob_are_refused() -> None:
    ladder = EntropyLadder(knob=KNOB, low=1e-4, high=0.05)
    with pytest.raises(ConfigError, match="'entropy_ladder' and 'entropy_ladder_2' both move"):
        recipe("repo-r", controllers=[ladder, ladder])
