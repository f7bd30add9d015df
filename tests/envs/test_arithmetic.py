"""Arithmetic: what earns how much, checked against an oracle that reads equations another way."""

from __future__ import annotations

import re
from fractions import Fraction
from hashlib import sha256
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import isentrope
from isentrope import ConfigError, TextEnv
from isentrope_envs.arithmetic import Arithmetic

TASK = "7x-1=34"  # x = 5
SPLITS = {
    "train": (985, "3c2723d6cc192a09"),
    "dev": (128, "cd0917a2ca11c177"),
    "test": (128, "21e0bf327750a175"),
}


def grade(answer: str, grading: str = "answer", task: str = TASK) -> tuple[float, bool, float]:
    """Return reward, success and the share of true equations."""
    env = isentrope.make("arithmetic", grading=grading)
    env.reset(seed=0, options={"task": task})
    _, reward, terminated, truncated, info = env.step(answer)
    assert (True, False) == (terminated, truncated)
    return float(reward), info["success"], info["metrics"]["true_equations"]


def test_the_observation_asks_for_the_task() -> None:
    env = isentrope.make("arithmetic")
    assert ("Solve 7x-1=34", {"task": TASK}) == env.reset(seed=0, options={"task": TASK})


@pytest.mark.parametrize(
    "answer",
    [
        r"\boxed{5}",
        r"I guess \boxed{5}.",
        r"x=6 \boxed{5}",
        r"\boxed{4} no, \boxed{5}",
        r"\boxed{05}",
        r"\boxed{\boxed{5}}",
    ],
)
def test_the_right_box_is_worth_one(answer: str) -> None:
    reward, success, _ = grade(answer)
    assert (1.0, True) == (reward, success)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "5",
        "x=5",
        r"\boxed{6}",
        r"\boxed{-5}",
        r"\boxed{5.0}",
        r"\boxed{5",
        r"boxed{5}",
        r"\boxed{}",
        r"\boxed{5} then \boxed{6}",
        r"\boxed{5} then \boxed{none}",
        r"\boxed{5} then \boxed{10000000000}",
        r"\boxed{50000000000}",
        r"\boxed{" + "5" * 100_000 + "}",
        "\\boxed{\u0665}",  # an Arabic-Indic five, which int() would take
    ],
)
def test_anything_else_is_worth_nothing(answer: str) -> None:
    reward, success, _ = grade(answer)
    assert (0.0, False) == (reward, success)


@pytest.mark.parametrize(
    "answer",
    [
        r"7x=35 so x=5 so \boxed{5}",
        r"x=5 \boxed{5}",
        r"7x=34+1 => x=35/7 => x=5; \boxed{5}",
        r"7x=34+1=35 \boxed{5}",
        r"\boxed{5} as x=5",
    ],
)
def test_a_derivation_of_true_equations_is_worth_one(answer: str) -> None:
    assert (1.0, True, 1.0) == grade(answer, "derivation")


@pytest.mark.parametrize(
    ("answer", "true_share"),
    [
        (r"\boxed{5}", 0.0),
        (r"7x=36 so x=5 so \boxed{5}", 0.5),
        (r"x=5=6 \boxed{5}", 0.0),
        (r"=x=6 \boxed{5}", 0.0),
        (r"x=5/0 \boxed{5}", 0.0),
        (r"x=--5 \boxed{5}", 0.0),
        ("0" * 41 + "=0 \\boxed{5}", 0.0),
        ("x=5" + "+0" * 30 + " \\boxed{5}", 0.0),
        ("x=" + "5" * 50_000 + " \\boxed{5}", 0.0),
    ],
)
def test_the_right_box_after_no_derivation_or_a_wrong_one_is_worth_half(
    answer: str, true_share: float
) -> None:
    assert (0.5, False, true_share) == grade(answer, "derivation")


@pytest.mark.parametrize("grading", ["answer", "derivation"])
def test_a_true_derivation_of_the_wrong_box_is_worth_nothing(grading: str) -> None:
    assert (0.0, False, 1.0) == grade(r"7x=35 so x=5 so \boxed{6}", grading)


@pytest.mark.parametrize("grading", ["answer", "derivation"])
@pytest.mark.parametrize(
    ("answer", "right", "derived"),
    [
        (r"7x=35 so x=5 so \boxed{5}", 1.0, 1.0),
        (r"7x=5 then x=5 then \boxed{5}", 1.0, 0.0),
        (r"\boxed{5}", 1.0, 0.0),
        (r"7x=35 so x=5 so \boxed{6}", 0.0, 0.0),
    ],
)
def test_the_stricter_success_stands_beside_whatever_is_rewarded(
    grading: str, answer: str, right: float, derived: float
) -> None:
    env = isentrope.make("arithmetic", grading=grading)
    env.reset(seed=0, options={"task": TASK})
    metrics = env.step(answer)[4]["metrics"]
    assert (right, derived) == (metrics["right_answer"], metrics["right_derivation"])


def test_small_and_large_coefficients_divide_every_split() -> None:
    whole, small, large = (
        isentrope.make("arithmetic", coefficients=c).tasks for c in ("all", "small", "large")
    )
    for split in SPLITS:
        ids = {c: {t.id for t in tasks[split]} for c, tasks in (("s", small), ("l", large))}
        assert {t.id for t in whole[split]} == ids["s"] | ids["l"]
        assert not ids["s"] & ids["l"]
        assert all(name[0] in "2345" for name in ids["s"])
        assert min(map(len, ids.values())) >= 50


def test_true_equations_are_counted_however_it_is_graded() -> None:
    assert 0.75 == grade(r"7x=35 x=5 1=1 x=4")[2]
    assert 0.75 == grade(r"7x=35 x=5 1=1 x=4", "derivation")[2]


def test_only_two_gradings_exist() -> None:
    with pytest.raises(ConfigError, match="'answer' or 'derivation'; got 'answers'"):
        isentrope.make("arithmetic", grading="answers")


# ---------------------------------------------------------------- equations, against an oracle

FACTOR = r"([0-9]{1,9}x?|x)"
TERM = rf"{FACTOR}([*/]{FACTOR})*"
SUM = re.compile(rf"[+-]?{TERM}([+-]{TERM})*")


def oracle(side: str, x: int) -> Fraction | None:
    """Value of one side by Python's own grammar; None where it has none."""
    if len(side) > 40 or SUM.fullmatch(side) is None:
        return None
    python = re.sub(
        r"([0-9]+)?(x)?",
        lambda m: (f"(F('{m[1] or 1}')" + ("*X)" if m[2] else ")")) if m[0] else "",
        side,
    )
    try:
        return Fraction(eval(python, {"F": Fraction, "X": Fraction(x)}))
    except ZeroDivisionError:
        return None


factors = st.one_of(
    st.integers(0, 60).map(str), st.just("x"), st.integers(0, 12).map(lambda n: f"{n}x")
)
products = st.lists(st.tuples(st.sampled_from("*/"), factors), max_size=3).map(
    lambda pairs: "".join(op + f for op, f in pairs)
)
terms = st.tuples(factors, products).map("".join)
sums = st.tuples(
    st.sampled_from(["", "-", "+"]),
    terms,
    st.lists(st.tuples(st.sampled_from("+-"), terms).map("".join), max_size=3).map("".join),
).map("".join)


def judged(equation: str) -> float:
    return grade(rf"{equation} \boxed{{5}}", "derivation")[2]


@given(left=sums, right=sums)
def test_an_equation_is_true_where_the_oracle_says_so(left: str, right: str) -> None:
    a, b = oracle(left, 5), oracle(right, 5)
    assert float(a is not None and a == b) == judged(f"{left}={right}")


@given(left=sums, error=st.sampled_from([0, 0, 1, -1]))
def test_an_expression_equals_its_value_and_nothing_beside_it(left: str, error: int) -> None:
    value = oracle(left, 5)
    if value is not None and abs(value.numerator) < 10**8 and value.denominator < 10**8:
        shifted = value + error
        assert float(error == 0) == judged(f"{left}={shifted.numerator}/{shifted.denominator}")


@given(left=st.text("0129x+-*/", min_size=1), right=st.text("0129x+-*/", min_size=1))
def test_what_is_no_sum_of_products_is_never_true(left: str, right: str) -> None:
    a, b = oracle(left, 5), oracle(right, 5)
    assert float(a is not None and a == b) == judged(f"{left}={right}")


@given(answer=st.text(st.one_of(st.sampled_from("x=0159+-*/ \\boxed{}"), st.characters())))
def test_no_answer_raises(answer: str) -> None:
    reward, success, _ = grade(answer, "derivation")
    assert reward in (0.0, 0.5, 1.0)
    assert success == (reward == 1.0)


# ---------------------------------------------------------------- tasks


def test_the_splits_are_those_that_results_were_published_on() -> None:
    tasks = isentrope.make("arithmetic").tasks
    found = {
        split: (len(members), sha256("\n".join(t.id for t in members).encode()).hexdigest()[:16])
        for split, members in tasks.items()
    }
    assert SPLITS == found


def test_the_splits_are_disjoint() -> None:
    ids = [task.id for members in isentrope.make("arithmetic").tasks.values() for task in members]
    assert len(ids) == len(set(ids))


def test_every_task_is_solved_by_its_solution() -> None:
    for members in isentrope.make("arithmetic").tasks.values():
        for task in members:
            a, b, c, x = (task.data[k] for k in "abcx")
            assert c == a * x + b > 0
            assert f"{a}x{b:+d}={c}" == task.id


# ---------------------------------------------------------------- demonstrations


def demonstrations(env: TextEnv, noise: float, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    infos = []
    for seed in range(count):
        env.reset(seed=seed)
        action = env.demonstrate(rng, noise)
        assert action is not None
        infos.append(env.step(action)[4])
    return infos


@pytest.mark.parametrize("grading", ["answer", "derivation"])
def test_a_demonstration_without_noise_always_wins(grading: str) -> None:
    infos = demonstrations(isentrope.make("arithmetic", grading=grading), 0.0, 400)
    assert all(info["success"] for info in infos)


@pytest.mark.parametrize("grading", ["answer", "derivation"])
def test_a_demonstration_with_noise_wins_and_loses(grading: str) -> None:
    infos = demonstrations(isentrope.make("arithmetic", grading=grading), 0.3, 400)
    assert 0.2 < np.mean([info["success"] for info in infos]) < 0.8


def test_noise_of_one_always_loses() -> None:
    infos = demonstrations(isentrope.make("arithmetic", grading="derivation"), 1.0, 400)
    assert np.mean([info["success"] for info in infos]) < 0.05


def test_demonstrations_of_one_task_differ() -> None:
    env = isentrope.make("arithmetic")
    env.reset(seed=0, options={"task": TASK})
    rng = np.random.default_rng(0)
    assert 50 < len({env.demonstrate(rng, 0.0) for _ in range(100)})


# ---------------------------------------------------------------- Gymnasium


@pytest.mark.filterwarnings("ignore::UserWarning")  # of render modes and specs, which it has not
def test_gymnasiums_checker_passes() -> None:
    check_env(Arithmetic(), skip_render_check=True)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_it_works_in_a_gymnasium_vector(mode: str) -> None:
    name = "isentrope-tests/Arithmetic-v0"
    gymnasium.register(
        name, entry_point="isentrope_envs.arithmetic:Arithmetic", disable_env_checker=True
    )
    try:
        # Text has no fixed size, so that it cannot go through shared memory.
        kwargs = {"shared_memory": False} if mode == "async" else {}
        envs = gymnasium.make_vec(name, num_envs=2, vectorization_mode=mode, vector_kwargs=kwargs)
        observations, infos = envs.reset(seed=3, options={"task": TASK})
        assert ["Solve 7x-1=34"] * 2 == list(observations)
        assert [TASK] * 2 == list(infos["task"])
        _, rewards, terminated, _, infos = envs.step((r"\boxed{5}", r"\boxed{6}"))
        assert [1.0, 0.0] == rewards.tolist()
        assert [True, True] == terminated.tolist()
        assert [True, False] == infos["success"].tolist()
        envs.close()
    finally:
        del gymnasium.registry[name]
