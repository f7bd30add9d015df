"""Objectives, against loops in float64, finite differences and verl's published numbers.

Every objective computes in the dtype that it is given, so nothing here is looser than float64.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isentrope import Algorithm, Objective, TokenBatch
from isentrope.learner.aggregation import token_weights
from isentrope_objectives.advantages import LeaveOneOut
from isentrope_objectives.surrogates import Clipped, Reinforce

# verl 0.9.1, core_algos, float64, "vanilla" policy loss; padding at the right of each row. Of
# seq-mean-token-sum-norm: divided by the padded length.
VERL: dict[str, Any] = {
    "eps_low": 0.2,
    "eps_high": 0.2,
    "old_logp": [
        [-2.8450047068226065, -2.1710459990484163, -3.663031006882546, -2.112848347524024, 0.0],
        [-1.077789306546295, -2.781117182113485, -1.8590498213533986, 0.0, 0.0],
        [-2.4888885089133597, -3.2419423423709466, 0.0, 0.0, 0.0],
        [-0.7981973405987406, -3.041736711472747, -0.46569986273271113, -2.9859603443495937,
         -2.8370383603454967],
    ],
    "new_logp": [
        [-2.4074936071375603, -1.985632362350013, -3.9110650047565314, -2.175336454817596, 0.0],
        [-0.8388111678880026, -2.817164099742688, -2.1922152437952533, 0.0, 0.0],
        [-2.3807748598076586, -3.437191571477402, 0.0, 0.0, 0.0],
        [-0.8878317186294153, -2.954036254618705, -0.7079183291341665, -2.438274591669253,
         -2.85137663507539],
    ],
    "advantage": [-1.3967455480569495, 0.8997810790534547, 1.0956127157767022, -0.523124646515618],
    "mask": [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]],
    "expected": {
        "vanilla/token-mean": {
            "loss": 0.3177017213735591,
            "grad": [
                [0.15452470261693635, 0.12009180693411074, 0.0, 0.09372404414529038, 0.0],
                [0.0, -0.061994597304285755, -0.04605925575883778, 0.0, 0.0],
                [-0.08719311427265336, -0.06437739002017685, 0.0, 0.0, 0.0],
                [0.034162483145133066, 0.04079105808331614, 0.0, 0.06461510381148444,
                 0.03683410422224828],
            ],
        },
        "vanilla/seq-mean-token-mean": {
            "loss": 0.05525285323985238,
            "grad": [
                [0.1352091147898193, 0.1050803310673469, 0.0, 0.08200853862712909, 0.0],
                [0.0, -0.07232703018833338, -0.053735798385310736, 0.0, 0.0],
                [-0.1525879499771434, -0.11266043253530948, 0.0, 0.0, 0.0],
                [0.023913738201593152, 0.0285537406583213, 0.0, 0.04523057266803912,
                 0.0257838729555738],
            ],
        },
        "vanilla/seq-mean-token-sum": {
            "loss": 1.111956024807457,
            "grad": [
                [0.5408364591592772, 0.4203213242693876, 0.0, 0.32803415450851636, 0.0],
                [0.0, -0.21698109056500015, -0.16120739515593224, 0.0, 0.0],
                [-0.3051758999542868, -0.22532086507061896, 0.0, 0.0, 0.0],
                [0.11956869100796574, 0.14276870329160649, 0.0, 0.22615286334019558,
                 0.128919364777869],
            ],
        },
        "vanilla/seq-mean-token-sum-norm": {
            "loss": 0.2223912049614914,
            "grad": [
                [0.10816729183185546, 0.08406426485387754, 0.0, 0.06560683090170327, 0.0],
                [0.0, -0.04339621811300003, -0.032241479031186446, 0.0, 0.0],
                [-0.061035179990857356, -0.04506417301412379, 0.0, 0.0, 0.0],
                [0.023913738201593152, 0.0285537406583213, 0.0, 0.04523057266803912,
                 0.0257838729555738],
            ],
        },
    },
}  # fmt: skip


def make_batch(
    logp: list[float],
    old_logp: list[float],
    advantage: list[float],
    sequence: list[int] | None = None,
    mask: list[bool] | None = None,
) -> TokenBatch:
    """Return a batch in float64 whose log-probs take gradient."""
    index = torch.tensor(sequence or [0] * len(logp))
    old = torch.tensor(old_logp, dtype=torch.float64)
    return TokenBatch(
        logp=torch.tensor(logp, dtype=torch.float64, requires_grad=True),
        old_logp=old,
        engine_logp=old,
        advantage=torch.tensor(advantage, dtype=torch.float64),
        mask=torch.tensor(mask or [True] * len(logp)),
        sequence=index,
        group=index,
        turn=torch.zeros_like(index),
        num_sequences=int(index.max()) + 1,
    )


def clipped_by_hand(
    logp: float, old: float, advantage: float, low: float, high: float
) -> tuple[float, float]:
    """Return a token's loss and its derivative by the log-prob, case by case."""
    ratio = math.exp(logp - old)
    if advantage > 0 and ratio > 1 + high:
        return -(1 + high) * advantage, 0.0
    if advantage < 0 and ratio < 1 - low:
        return -(1 - low) * advantage, 0.0
    return -ratio * advantage, -ratio * advantage


EIGHTHS = st.integers(-32, 32).map(lambda n: n / 8)
TOKENS = st.lists(
    st.tuples(st.floats(-9, -0.01), st.floats(-1, 1), EIGHTHS), min_size=1, max_size=12
)


@given(TOKENS)
def test_reinforce_weighs_the_log_prob_by_the_advantage(
    tokens: list[tuple[float, float, float]],
) -> None:
    logp, offset, advantage = (list(x) for x in zip(*tokens, strict=True))
    batch = make_batch(logp, [x - d for x, d in zip(logp, offset, strict=True)], advantage)
    loss = Reinforce()(batch)
    assert [-a * x for a, x in zip(advantage, logp, strict=True)] == loss.tolist()
    (grad,) = torch.autograd.grad(loss.sum(), batch.logp)
    assert [-a for a in advantage] == grad.tolist()


@given(TOKENS, st.floats(0, 0.9), st.floats(0, 3))
def test_clipped_stops_the_gradient_exactly_where_the_ratio_has_left_the_bounds(
    tokens: list[tuple[float, float, float]], low: float, high: float
) -> None:
    logp, offset, advantage = (list(x) for x in zip(*tokens, strict=True))
    old = [x - d for x, d in zip(logp, offset, strict=True)]
    batch = make_batch(logp, old, advantage)
    loss = Clipped(eps_low=low, eps_high=high)(batch)
    (grad,) = torch.autograd.grad(loss.sum(), batch.logp)
    for i, (x, o, a) in enumerate(zip(logp, old, advantage, strict=True)):
        if min(abs(math.exp(x - o) - 1 - high), abs(math.exp(x - o) - 1 + low)) < 1e-12:
            continue  # on the bound itself either derivative is right
        value, slope = clipped_by_hand(x, o, a, low, high)
        assert pytest.approx(value, rel=1e-12, abs=1e-15) == loss[i].item()
        assert pytest.approx(slope, rel=1e-12, abs=1e-15) == grad[i].item()


@given(TOKENS, st.floats(0, 0.9), st.floats(0, 3))
def test_clip_diagnostics_count_the_tokens_that_lost_their_gradient(
    tokens: list[tuple[float, float, float]], low: float, high: float
) -> None:
    logp, offset, advantage = (list(x) for x in zip(*tokens, strict=True))
    batch = make_batch(logp, [x - d for x, d in zip(logp, offset, strict=True)], advantage)
    objective = Clipped(eps_low=low, eps_high=high)
    found = objective.diagnostics(batch)
    ratios = batch.ratio.tolist()
    pairs = list(zip(ratios, advantage, strict=True))
    assert {"clip_high", "clip_low", "kept_high", "kept_low"} == set(found)
    assert [a > 0 and r > 1 + high for r, a in pairs] == found["clip_high"].tolist()
    assert [a < 0 and r < 1 - low for r, a in pairs] == found["clip_low"].tolist()
    assert [a < 0 and r > 1 + high for r, a in pairs] == found["kept_high"].tolist()
    assert [a > 0 and r < 1 - low for r, a in pairs] == found["kept_low"].tolist()
    (grad,) = torch.autograd.grad(objective(batch).sum(), batch.logp)
    lost = (grad == 0) & (batch.advantage != 0)
    assert lost.tolist() == (found["clip_high"] | found["clip_low"]).tolist()


def test_a_token_without_advantage_is_never_counted_as_clipped() -> None:
    batch = make_batch([-0.1, -5.0], [-5.0, -0.1], [0.0, 0.0])
    assert not any(bool(x.any()) for x in Clipped().diagnostics(batch).values())


def test_on_policy_clipped_has_reinforces_gradient() -> None:
    logp, advantage = [-0.1, -2.0, -7.5], [1.5, -0.5, 2.0]
    batch = make_batch(logp, logp, advantage)
    grads = [
        torch.autograd.grad(objective(batch).sum(), batch.logp)[0].tolist()
        for objective in (Reinforce(), Clipped(eps_low=0.2, eps_high=0.28))
    ]
    assert grads[0] == grads[1] == [-1.5, 0.5, -2.0]


def test_clipping_is_no_bound_against_the_advantage() -> None:
    """A token that moved the wrong way keeps its gradient, however far it went."""
    batch = make_batch([-5.0, -0.1], [-0.1, -5.0], [1.0, -1.0])
    (grad,) = torch.autograd.grad(Clipped()(batch).sum(), batch.logp)
    assert pytest.approx([-math.exp(-4.9), math.exp(4.9)]) == grad.tolist()
    found = {name: x.tolist() for name, x in Clipped().diagnostics(batch).items()}
    nowhere = {"clip_high": [False, False], "clip_low": [False, False]}
    assert {**nowhere, "kept_high": [False, True], "kept_low": [True, False]} == found


def test_the_bounds_are_below_one_and_above_one_and_not_the_other_way_round() -> None:
    batch = make_batch([math.log(1.25)] * 2 + [math.log(0.75)] * 2, [0.0] * 4, [1.0, -1.0] * 2)
    objective = Clipped(eps_low=0.3, eps_high=0.2)
    assert pytest.approx([-1.2, 1.25, -0.75, 0.75]) == objective(batch).tolist()
    objective = Clipped(eps_low=0.2, eps_high=0.3)
    assert pytest.approx([-1.25, 1.25, -0.75, 0.8]) == objective(batch).tolist()


@pytest.mark.parametrize("objective", [Reinforce(), Clipped(eps_low=0.2, eps_high=0.28)])
def test_gradients_agree_with_finite_differences_on_a_tabular_softmax(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(0)
    shape, states, actions = (
        (3, 5),
        torch.tensor([0, 0, 1, 2, 2, 1]),
        torch.tensor([0, 4, 2, 1, 3, 2]),
    )
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    old = logits + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    old_logp = torch.log_softmax(old, -1)[states, actions]
    advantage = torch.tensor([1.0, -0.7, 0.3, -2.0, 1.2, 0.9]).tolist()

    def loss(table: torch.Tensor) -> torch.Tensor:
        logp = torch.log_softmax(table, -1)[states, actions]
        batch = make_batch([0.0] * 6, old_logp.tolist(), advantage)
        object.__setattr__(batch, "logp", logp)
        return objective(batch).sum()

    table = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(table), table)
    expected = torch.zeros(shape, dtype=torch.float64)
    for i in range(shape[0]):
        for j in range(shape[1]):
            step = torch.zeros(shape, dtype=torch.float64)
            step[i, j] = 1e-6
            expected[i, j] = (loss(logits + step) - loss(logits - step)) / 2e-6
    torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-8)


def published() -> list[dict[str, Any]]:
    """Return the case above, and the data folder's own where there is one."""
    folder = os.environ.get("ISENTROPE_TEST_DATA")
    if not folder:
        return [VERL]
    cases = json.loads((Path(folder) / "oracle" / "policy_losses.json").read_text())["losses"]
    return [VERL, *cases]


def test_losses_and_gradients_are_verls_under_every_aggregation() -> None:
    compared = 0
    for case in published():
        places = [(i, j) for i, row in enumerate(case["mask"]) for j, on in enumerate(row) if on]
        objective = Clipped(eps_low=case["eps_low"], eps_high=case["eps_high"])
        for name, expected in case["expected"].items():
            kind, aggregation = name.split("/")
            if kind != "vanilla":
                continue
            norm = len(case["mask"][0]) if aggregation == "seq-mean-token-sum-norm" else None
            algorithm = Algorithm(
                advantage=LeaveOneOut(),
                objective=objective,
                aggregation=aggregation,
                norm_length=norm,
            )
            batch = make_batch(
                [case["new_logp"][i][j] for i, j in places],
                [case["old_logp"][i][j] for i, j in places],
                [case["advantage"][i] for i, _ in places],
                [i for i, _ in places],
            )
            weights = token_weights(
                algorithm,
                batch,
                nominal_sequences=len(case["mask"]),
                total_tokens=len(places),
            )
            loss = (weights * objective(batch)).sum()
            (grad,) = torch.autograd.grad(loss, batch.logp)
            assert pytest.approx(expected["loss"], rel=1e-12) == loss.item(), name
            of_tokens = [expected["grad"][i][j] for i, j in places]
            assert pytest.approx(of_tokens, rel=1e-12, abs=1e-16) == grad.tolist(), name
            compared += 1
    assert 4 * len(published()) == compared


def test_what_an_objective_assumes_is_declared_for_the_learner() -> None:
    assert (True, False) == (Reinforce.on_policy, Reinforce.uses_ratio)
    assert (False, True) == (Clipped.on_policy, Clipped.uses_ratio)
