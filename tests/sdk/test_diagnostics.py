"""Diagnostics, against exact fractions, numpy and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope.diagnostics import (
    clip_fractions,
    correlation,
    covariance,
    mismatch,
    predicted_entropy_change,
    quantiles,
    rounding,
)

# Of each type: bits of its significand (the hidden one too), and its least normal exponent.
KINDS = {"bf16": (8, -126), "fp16": (11, -14), "fp32": (24, -126)}
NUMBERS = st.floats(-8, 8, width=32)
VALUES = st.lists(NUMBERS, min_size=1, max_size=20)


def float64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spacing(value: float, dtype: str) -> Fraction:
    """Return the distance from a number of the type to its neighbour further from 0."""
    bits, least = KINDS[dtype]
    exponent = math.frexp(value)[1] - 1 if value else least
    return Fraction(2) ** (max(exponent, least) - bits + 1)


def rounded(value: float, dtype: str) -> float:
    """Return the nearest number of the type, the even one of two, by rational arithmetic."""
    step = spacing(value, dtype)
    return float(round(Fraction(value) / step) * step)


def ulp(value: float, dtype: str) -> float:
    """Return the last digit that `rounding` sees: beside 0, two independent errors are foretold."""
    found = rounding(float64([value]), float64([0.0]), dtype).predicted_bias
    return math.sqrt(max(found * 24 - float(spacing(0.0, dtype)) ** 2, 0.0))


def grid(start: float, dtype: str, count: int) -> list[float]:
    """Return numbers evenly spread over one last digit from `start` on, its middle symmetric."""
    step = spacing(start, dtype)
    return [float(Fraction(start) - step * Fraction(2 * i + 1, 2 * count)) for i in range(count)]


# The last digit.
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("exponent", [-13, -3, -1, 0, 1, 4, 6])
def test_the_last_digit_doubles_at_every_power_of_two(dtype: str, exponent: int) -> None:
    power, step = 2.0**exponent, float(spacing(2.0**exponent, dtype))
    below = power * (1 - 2**-20)
    assert [pytest.approx(step / 2), pytest.approx(step), pytest.approx(step)] == [
        ulp(-x, dtype) for x in (below, power, power * 1.5)
    ]
    assert 2.0 ** (exponent - KINDS[dtype][0] + 1) == step


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", np.float16), ("fp32", np.float32)])
def test_the_last_digit_is_numpys_spacing(dtype: str, kind: type[np.floating]) -> None:
    finest = float(np.finfo(kind).smallest_subnormal)
    values = [-0.1, -0.5, -1.0, -3.3, -31.9, -64.0, -(2.0**-14), -(2.0**-15), -3 * finest]
    for value in values:
        own = float(np.spacing(kind(-value)))
        assert float(spacing(value, dtype)) == own
        assert pytest.approx(own, rel=1e-6) == ulp(value, dtype)


@pytest.mark.parametrize("dtype", KINDS)
def test_below_the_least_normal_number_digits_are_as_far_apart_as_at_zero(dtype: str) -> None:
    bits, least = KINDS[dtype]
    finest = 2.0 ** (least - bits + 1)
    for value in (2.0**least, 2.0**least * 0.75, 3 * finest, finest):
        assert pytest.approx(finest, rel=1e-6) == ulp(-value, dtype)


def test_rounding_by_hand_is_numpys_and_torchs_rounding() -> None:
    """The reference of what follows."""
    rng = np.random.default_rng(0)
    values = -np.abs(rng.normal(0, 1, 500)) * 10.0 ** rng.integers(-6, 2, 500)
    values = np.concatenate([values.astype(np.float32), [-1.00390625, -1.01171875, 0.0, -3e-6]])
    for dtype, kind in (("fp16", np.float16), ("fp32", np.float32)):
        assert values.astype(kind).astype(np.float64).tolist() == [
            rounded(float(x), dtype) for x in values
        ]
    bf16 = torch.from_numpy(values.astype(np.float32)).bfloat16().double()
    assert bf16.tolist() == [rounded(float(x), "bf16") for x in values.astype(np.float32)]


# Thm. 3: what rounding does to ratios.
@pytest.mark.parametrize("dtype", KINDS)
@settings(deadline=None, max_examples=50)
@given(
    pairs=st.lists(
        st.tuples(st.floats(-20, 0, width=32), st.floats(-0.5, 0.5, width=32)),
        min_size=1,
        max_size=12,
    ),
    clip=st.sampled_from([0.05, 0.2]),
)
@example(pairs=[(-3.0, 0.0), (0.0, 0.0)], clip=0.2)
def test_the_bias_and_the_changed_decisions_are_those_of_exact_rounding(
    dtype: str, pairs: list[tuple[float, float]], clip: float
) -> None:
    old = np.array([x for x, _ in pairs], np.float32)
    new = np.minimum(old + np.array([d for _, d in pairs], np.float32), 0)
    biases, changed = [], 0
    for x, y in zip(new.tolist(), old.tolist(), strict=True):
        true, found = math.exp(x - y), math.exp(rounded(x, dtype) - rounded(y, dtype))
        biases.append(found / true - 1)
        decisions = [(r > 1 + clip, r < 1 - clip) for r in (true, found)]
        changed += decisions[0] != decisions[1]
    found = rounding(torch.from_numpy(new), torch.from_numpy(old), dtype, clip=clip)
    assert pytest.approx(math.fsum(biases) / len(biases), rel=1e-9, abs=1e-15) == found.bias
    assert changed / len(biases) == found.clip_changed


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("new", "old"), [(-2.5, -3.25), (-0.75, -1.5), (-5.0, -0.3), (-1.9, -9.0)])
def test_far_apart_the_bias_is_that_of_two_independent_errors(
    dtype: str, new: float, old: float
) -> None:
    """Thm. 3: ``(ulp^2 + ulp^2) / 24``, over all of where in its last digit each may lie."""
    new, old = (rounded(x, dtype) for x in (new, old))
    pairs = list(product(grid(new, dtype, 40), grid(old, dtype, 40)))
    found = rounding(*(float64(x) for x in zip(*pairs, strict=True)), dtype)
    expected = float(spacing(new, dtype) ** 2 + spacing(old, dtype) ** 2) / 24
    assert pytest.approx(expected, rel=1e-12) == found.predicted_bias
    # The grid has 1/40^2 less spread than the line, and there are terms of the fourth order.
    assert pytest.approx(expected, rel=0.02) == found.bias


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("start", [-3.0, -1.25, -0.7])
@pytest.mark.parametrize("part", [-15, -8, -1, 0, 1, 4, 8, 12, 15])
def test_near_one_another_the_bias_is_that_of_errors_made_together(
    dtype: str, start: float, part: int
) -> None:
    """Thm. 3 near on-policy: ``|d| (ulp - |d|) / 2``, d a part of the last digit."""
    start = rounded(start, dtype)
    step = spacing(start, dtype)
    old = grid(start, dtype, 160)
    new = [float(Fraction(x) + step * Fraction(part, 16)) for x in old]
    found = rounding(float64(new), float64(old), dtype)
    d = abs(part) / 16 * float(step)
    expected = d * (float(step) - d) / 2
    assert pytest.approx(expected, rel=1e-6, abs=0) == found.predicted_bias
    errors = [
        Fraction(rounded(x, dtype)) - Fraction(rounded(y, dtype)) - (Fraction(x) - Fraction(y))
        for x, y in zip(new, old, strict=True)
    ]
    exact = float(sum(e + e**2 / 2 + e**3 / 6 for e in errors) / len(errors))
    assert pytest.approx(exact, rel=0.02, abs=0) == expected
    assert pytest.approx(exact, rel=1e-4, abs=5e-16) == found.bias  # fp32's is at float64's end
    independent = float(step) ** 2 / 12
    assert expected == 0 or abs(expected / independent - 1) > 0.01


@pytest.mark.parametrize("dtype", KINDS)
def test_equal_log_probs_have_no_bias_whatever_they_are(dtype: str) -> None:
    values = float64([0.0, -1e-9, -0.1, -1.0, -(2.0**-15), -17.3])
    found = rounding(values, values.clone(), dtype)
    assert (0.0, 0.0, 0.0) == (found.bias, found.predicted_bias, found.clip_changed)


def test_on_two_sides_of_a_power_of_two_errors_are_taken_as_independent() -> None:
    """However near: the one's last digit is twice the other's."""
    found = rounding(float64([-1.999]), float64([-2.001]), "bf16")
    assert pytest.approx((2.0**-14 + 2.0**-12) / 24) == found.predicted_bias


def test_a_difference_of_one_last_digit_is_far() -> None:
    """There the near formula would say zero."""
    found = rounding(float64([-3.0]), float64([-3.0 - 2.0**-6]), "bf16")
    assert pytest.approx(2.0**-12 / 12) == found.predicted_bias


def test_a_changed_clip_decision_is_counted_on_either_side_and_once() -> None:
    """In bf16 between -4 and -2 neighbours are 1/64 apart.

    By hand, log-probs new and old, their ratio, and what is left of it: the last two agree.
    """
    log = math.log
    pairs = [
        (-3.0 + log(1.2) + 0.001, -3.0),  # 1.201; log 1.2 = 11.67/64, to 12/64: no change
        (-3.0 + log(1.2) - 0.001, -3.0),  # 1.199; to 12/64: now above
        (-3.0 + log(0.8) + 0.001, -3.0),  # 0.801; log 0.8 = -14.28/64, to -14/64: no change
        (-3.0 + log(0.8) - 0.001, -3.0),  # 0.799; to -14/64: no longer below
        (-3.0, -3.0),
        (-3.0 + 0.5, -3.0),
        (-3.0 - 0.5, -3.0),
        (-3.0 + 0.9 / 64, -3.0 - 1.1 / 64),
    ]
    new, old = (float64(x) for x in zip(*pairs, strict=True))
    assert 2 / 8 == rounding(new, old, "bf16").clip_changed
    assert 0 == rounding(new, old, "fp32").clip_changed
    assert 0 == rounding(new, old, "bf16", clip=0.6).clip_changed


def test_float32_log_probs_lose_nothing_in_float32() -> None:
    new, old = torch.log(torch.rand(2, 100, generator=torch.Generator().manual_seed(0)))
    found = rounding(new, old, "fp32")
    assert (0.0, 0.0) == (found.bias, found.clip_changed)
    assert 0 < found.predicted_bias < 1e-12


def test_rounding_takes_log_probs_with_gradient() -> None:
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert 0.0 == rounding(logp, logp, "bf16").bias


# Advantage and log-prob.
@given(VALUES, st.data())
def test_the_covariance_is_that_of_exact_fractions(
    advantage: list[float], data: st.DataObject
) -> None:
    count = len(advantage)
    logp = data.draw(st.lists(NUMBERS, min_size=count, max_size=count))
    a, x = ([Fraction(v) for v in values] for values in (advantage, logp))
    centres = [sum(v, Fraction()) / count for v in (a, x)]
    pairs = zip(a, x, strict=True)
    expected = sum(((u - centres[0]) * (v - centres[1]) for u, v in pairs), Fraction()) / count
    found = covariance(torch.tensor(advantage), torch.tensor(logp))
    assert pytest.approx(float(expected), rel=1e-9, abs=1e-12) == found


def test_the_correlation_is_numpys() -> None:
    rng = np.random.default_rng(1)
    for count in (2, 3, 50):
        a, x = rng.normal(size=(2, count))
        found = correlation(torch.from_numpy(a), torch.from_numpy(3 - 40 * x))
        assert pytest.approx(np.corrcoef(a, 3 - 40 * x)[0, 1], rel=1e-12) == found
    assert pytest.approx(-1.0) == correlation(torch.tensor([1.0, 2.0]), torch.tensor([0.0, -9.0]))


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_a_correlation_does_not_depend_on_units(scale: float) -> None:
    a, x = float64([1.0, -2.0, 0.5, 4.0]), float64([0.3, -0.1, -0.9, 0.2])
    assert pytest.approx(np.corrcoef(a, x)[0, 1]) == correlation(scale * a, scale * x)


@given(st.floats(-20, 20, width=32), st.integers(1, 100))
@example(0.1, 7)
@example(1 / 3, 3)
def test_a_constant_has_no_correlation(value: float, count: int) -> None:
    constant, varied = torch.full((count,), value), torch.arange(float(count))
    assert correlation(constant, varied) is None
    assert correlation(varied, constant) is None
    assert 0.0 == pytest.approx(covariance(varied, constant), abs=1e-12)


@given(VALUES, st.data())
def test_the_predicted_change_is_the_mean_product(
    advantage: list[float], data: st.DataObject
) -> None:
    count = len(advantage)
    response = data.draw(st.lists(NUMBERS, min_size=count, max_size=count))
    expected = sum(Fraction(a) * Fraction(r) for a, r in zip(advantage, response, strict=True))
    found = predicted_entropy_change(torch.tensor(advantage), torch.tensor(response))
    assert pytest.approx(float(expected / count), rel=1e-12, abs=1e-14) == found


def test_sums_are_in_float64() -> None:
    """A float32 sum of a million small numbers beside a large one would lose them."""
    big, small = torch.tensor([2.0**24]), torch.ones(1001)
    values = torch.cat([big, small, -big])
    assert 1001 / 1003 == predicted_entropy_change(values, torch.ones(1003))


# Ratios.
@given(
    st.lists(st.tuples(st.floats(0, 4), st.integers(-1, 1)), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 2),
)
@example([(1.25, 1), (1.25, -1), (1.25, 0), (0.5, 1), (0.5, -1), (0.5, 0), (1.0, 1)], 0.2, 0.2)
@example([(1.25, 1), (1.25, -1), (0.75, 1), (0.75, -1)], 0.25, 0.25)
@example([(1.25, 1), (0.75, -1)], 0.2, 0.3)
def test_clip_fractions_are_what_a_loop_counts(
    tokens: list[tuple[float, int]], eps_low: float, eps_high: float
) -> None:
    counts = {"clip_high": 0, "kept_high": 0, "clip_low": 0, "kept_low": 0}
    for ratio, advantage in tokens:
        if advantage == 0:
            continue
        if ratio > 1 + eps_high:
            counts["clip_high" if advantage == 1 else "kept_high"] += 1
        elif ratio < 1 - eps_low:
            counts["clip_low" if advantage == -1 else "kept_low"] += 1
    ratio, advantage = (float64(x) for x in zip(*tokens, strict=True))
    found = clip_fractions(ratio, advantage, eps_low=eps_low, eps_high=eps_high)
    assert {name: n / len(tokens) for name, n in counts.items()} == found


@given(VALUES, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_quantiles_lie_on_straight_lines_between_the_sorted_values(
    values: list[float], at: list[float]
) -> None:
    ordered, expected = sorted(values), []
    for q in at:
        place = q * (len(ordered) - 1)
        low = min(math.floor(place), len(ordered) - 1)
        high = min(low + 1, len(ordered) - 1)
        expected.append(ordered[low] + (ordered[high] - ordered[low]) * (place - low))
    assert pytest.approx(expected, rel=1e-9, abs=1e-9) == quantiles(torch.tensor(values), tuple(at))


def test_quantiles_are_the_deciles_ends_and_the_middle_unless_told() -> None:
    values = torch.arange(101.0).flip(0).requires_grad_()
    assert pytest.approx([1, 10, 50, 90, 99]) == quantiles(values)


def test_quantiles_of_seventeen_million_values_are_no_problem() -> None:
    assert [0.0, 0.0] == quantiles(torch.zeros(2**24 + 1, dtype=torch.uint8), (0.0, 1.0))


@given(VALUES, st.data())
def test_the_mismatch_is_numpys_of_the_absolute_differences(
    old: list[float], data: st.DataObject
) -> None:
    engine = data.draw(st.lists(NUMBERS, min_size=len(old), max_size=len(old)))
    differences = np.abs(np.array(old) - np.array(engine))
    expected = {
        "mean": differences.mean(),
        "p99": np.percentile(differences, 99),
        "max": differences.max(),
    }
    found = mismatch(torch.tensor(old), torch.tensor(engine))
    assert {k: pytest.approx(float(v), rel=1e-9) for k, v in expected.items()} == found
