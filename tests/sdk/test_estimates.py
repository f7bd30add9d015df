"""The mathematics of evaluation against brute force, SciPy, and simulated tasks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaln

from isentrope.evaluation import estimates
from isentrope.evaluation.estimates import difference, mean, pass_all, pass_at, share, student_t


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_and_pass_all_are_shares_of_the_subsets(outcomes, data) -> None:
    j = data.draw(st.integers(1, len(outcomes)))
    subsets = list(itertools.combinations(outcomes, j))
    some, every = (sum(map(holds, subsets)) / len(subsets) for holds in (any, all))
    assert some == pytest.approx(pass_at(sum(outcomes), len(outcomes), j))
    assert every == pytest.approx(pass_all(sum(outcomes), len(outcomes), j))


def test_pass_at_of_thousands_of_tries_does_not_overflow() -> None:
    expected = 1 - math.exp(sum(math.log1p(-100 / (5000 - i)) for i in range(200)))
    assert expected == pytest.approx(pass_at(100, 5000, 200))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 29, 30, 199, 4999])
def test_the_quantile_of_student_is_scipys(freedom: int) -> None:
    assert stats.t.ppf(0.975, freedom) == pytest.approx(student_t(freedom))


VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=40)


@given(VALUES.filter(lambda values: len(set(values)) > 1))
def test_the_bounds_of_a_share_solve_wilsons_equation(values) -> None:
    found = share(values, tries=1e9)
    middle, error = np.mean(values), stats.sem(values)
    effective = middle * (1 - middle) / error**2
    quantile = stats.t.ppf(0.975, len(values) - 1)
    for bound in (found.low, found.high):
        expected = quantile**2 * bound * (1 - bound) / effective
        assert expected == pytest.approx((middle - bound) ** 2, rel=1e-6, abs=1e-9)
    assert found.low < found.value < found.high
    assert middle == pytest.approx(found.value)


@given(VALUES, st.integers(1, 16))
def test_a_share_is_in_its_interval_which_is_in_the_unit_interval(values, tries) -> None:
    found = share(values, len(values) * tries)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_tasks_are_at_a_bound_they_count_as_single_tries(value: float) -> None:
    found = share([value] * 30, tries=30 * 64)
    square = stats.t.ppf(0.975, 29) ** 2
    assert square / (30 + square) == pytest.approx(found.high - found.low)  # Wilson's with p = 0
    assert value in (found.low, found.high)


def test_equal_tasks_within_the_bounds_are_as_certain_as_their_tries() -> None:
    narrow, wide = share([0.5] * 30, tries=30 * 16), share([0.5] * 30, tries=30 * 2)
    assert 0 < narrow.high - narrow.low < wide.high - wide.low


def test_one_task_or_none_has_no_interval() -> None:
    assert (0.25, 1) == (share([0.25], 4).value, share([0.25], 4).tasks)
    assert all(math.isnan(x) for x in (share([0.25], 4).low, mean([2.0]).high, difference([0]).low))
    assert all(math.isnan(x) for x in (share([], 0).value, mean([]).value, difference([]).value))


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=40).filter(lambda v: np.ptp(v) > 1e-3))
def test_the_interval_of_a_mean_is_scipys(values) -> None:
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (expected.low, expected.high) == pytest.approx((mean(values).low, mean(values).high))


def test_a_mean_of_equal_numbers_has_no_interval_rather_than_one_of_width_zero() -> None:
    assert math.isnan(mean([3.0] * 10).low)


def test_the_interval_of_a_difference_is_that_of_scipys_paired_test() -> None:
    ours, theirs = np.random.default_rng(0).random((2, 30))
    expected = stats.ttest_rel(ours, theirs).confidence_interval()
    found = difference([*(ours - theirs)])
    assert (expected.low, expected.high) == pytest.approx((found.low, found.high))


def test_the_interval_of_a_difference_ends_where_differences_do() -> None:
    values = [1.0, 1.0, 1.0, 0.5]
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert expected.high > 1
    found = difference(values)
    assert (expected.low, 1.0) == pytest.approx((found.low, found.high))
    found = difference([-v for v in values])
    assert (-1.0, -expected.low) == pytest.approx((found.low, found.high))


def test_equal_differences_get_two_tasks_more() -> None:
    expected = stats.ttest_1samp([0.0] * 30 + [1, -1], 0).confidence_interval()
    found = difference([0.0] * 30)
    assert (expected.low, 0.0, expected.high) == pytest.approx((found.low, found.value, found.high))


# ---------------------------------------------------------------- coverage
# Tasks of known chances are drawn again and again; 95 % of the intervals must hold the true mean,
# which is known exactly: a beta distribution's moments, or those of one or two points.

REPEATS = 2000


def of_beta(a: float, b: float):
    def moment(i: int, j: int) -> float:  # E[p^i (1 - p)^j]
        return math.exp(betaln(a + i, b + j) - betaln(a, b))

    return lambda rng, shape: rng.beta(a, b, shape), moment


def of_points(points: dict[float, float]):
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.choice(list(points), size=shape, p=list(points.values()))

    return draw, lambda i, j: sum(w * p**i * (1 - p) ** j for p, w in points.items())


ALIKE = of_points({0.5: 1.0})
SPREAD = of_beta(2, 5)
HARD_OR_EASY = of_beta(0.3, 0.3)
MOSTLY_HARD = of_beta(0.2, 2)
KNOWN_OR_NOT = of_points({0.0: 0.8, 1.0: 0.2})
RARELY = of_points({0.02: 1.0})


@pytest.mark.parametrize(
    ("tasks", "tries", "j"),
    [(30, 1, 1), (30, 4, 1), (30, 16, 1), (30, 4, 2), (30, 32, 8), (100, 4, 1), (100, 8, 4)],
)
@pytest.mark.parametrize("of", [SPREAD, HARD_OR_EASY, MOSTLY_HARD, KNOWN_OR_NOT])
def test_intervals_of_pass_at_hold_the_truth_nineteen_times_of_twenty(of, tasks, tries, j) -> None:
    draw, moment = of
    values = np.array([pass_at(c, tries, j) for c in range(tries + 1)])
    assert 0.92 <= covered(draw, values, 1 - moment(0, j), tasks, j) <= 0.99  # counts are coarse


@pytest.mark.parametrize("of", [SPREAD, HARD_OR_EASY, MOSTLY_HARD, KNOWN_OR_NOT])
def test_intervals_of_pass_all_hold_the_truth_nineteen_times_of_twenty(of) -> None:
    draw, moment = of
    values = np.array([pass_all(c, 8, 4) for c in range(9)])
    assert 0.92 <= covered(draw, values, moment(4, 0), 30, 4) <= 0.99


@pytest.mark.parametrize(("of", "tries", "j"), [(ALIKE, 4, 1), (ALIKE, 4, 2), (RARELY, 16, 1)])
def test_intervals_over_tasks_that_are_all_alike_are_never_too_narrow(of, tries, j) -> None:
    draw, moment = of
    values = np.array([pass_at(c, tries, j) for c in range(tries + 1)])
    assert 0.94 <= covered(draw, values, 1 - moment(0, j), 30, j)


def covered(draw, values: np.ndarray, truth: float, tasks: int, j: int) -> float:
    """Return the share of simulated evaluations whose interval holds the truth."""
    rng = np.random.default_rng(0)
    tries = len(values) - 1
    right = rng.binomial(tries, draw(rng, (REPEATS, tasks)))
    found = [share(row, tasks * tries / j) for row in values[right].tolist()]
    return float(np.mean([e.low <= truth <= e.high for e in found]))


@pytest.mark.parametrize("tries", [1, 4, 16])
@pytest.mark.parametrize("gained", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("of", [SPREAD, HARD_OR_EASY])
def test_intervals_of_differences_hold_the_truth(of, gained, tries) -> None:
    assert 0.92 <= covered_differences(of, gained, tries) <= 0.98


def test_a_gain_in_few_tasks_is_held_less_often_as_the_docs_say() -> None:
    assert 0.85 <= covered_differences(HARD_OR_EASY, 0.1, 16) <= 0.91


def covered_differences(of, gained: float, tries: int) -> float:
    """Compare policies of which the second is certain at some of the tasks, else like the first."""
    draw, moment = of
    rng = np.random.default_rng(1)
    before = draw(rng, (REPEATS, 30))
    after = np.where(rng.random(before.shape) < gained, 1.0, before)
    rows = (rng.binomial(tries, after) - rng.binomial(tries, before)) / tries
    truth = gained * (1 - moment(1, 0))
    found = [difference(row) for row in rows.tolist()]
    return float(np.mean([e.low <= truth <= e.high for e in found]))


def test_a_normal_interval_would_not_do() -> None:
    """The reason for Wilson's: the plain one fails where few tasks are ever solved."""
    rng = np.random.default_rng(0)
    rows = (rng.random((REPEATS, 30)) < 0.05).astype(float)
    half = student_t(29) * rows.std(axis=1, ddof=1) / math.sqrt(30)
    assert np.mean(abs(rows.mean(axis=1) - 0.05) <= half) < 0.85
    found = [share(row, 30) for row in rows.tolist()]
    assert np.mean([e.low <= 0.05 <= e.high for e in found]) > 0.92


def test_numbers_are_shown_to_three_digits_without_a_negative_zero() -> None:
    assert ["0.125", "+0.000", "-0.500", "\u2013"] == [
        estimates.shown(0.125),
        estimates.shown(-1e-9, "+"),
        estimates.shown(-0.5),
        estimates.shown(math.nan),
    ]
