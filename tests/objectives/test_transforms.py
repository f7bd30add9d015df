"""Advantage transforms: against loops, and against the exact entropy of a small softmax.

What REPO-D and the decorrelating coefficient do to entropy: see ``test_theory.py``.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isentrope import ConfigError, TokenBatch
from isentrope_objectives.surrogates import Clipped, Reinforce
from isentrope_objectives.transforms import Decorrelate, RepoD, RepoR, TruncatedImportance


def make_batch(logp: torch.Tensor, advantage: torch.Tensor, old: torch.Tensor) -> TokenBatch:
    """Return a batch of one episode in the dtype of its log-probs."""
    index = torch.zeros(logp.shape, dtype=torch.int64)
    mask = torch.ones(logp.shape, dtype=torch.bool)
    return TokenBatch(logp, old, old, advantage, mask, index, index, index, 1)


def of_lists(logp: list[float], advantage: list[float]) -> TokenBatch:
    x, a = (torch.tensor(v, dtype=torch.float64) for v in (logp, advantage))
    return make_batch(x.requires_grad_(), a, x.detach())


EIGHTHS = st.integers(-32, 32).map(lambda n: n / 8)
ZETAS = st.floats(1e-4, 10).flatmap(lambda z: st.sampled_from([z, -z]))
TOKENS = st.lists(st.tuples(st.floats(-12, -1e-3), EIGHTHS), min_size=1, max_size=12)


def repo_r_by_hand(logp: float, advantage: float, zeta: float) -> float:
    """The paper's two cases."""
    if advantage > 0:
        return advantage * (1 - zeta * logp)
    return advantage * (1 + zeta * logp)


@given(TOKENS, ZETAS)
def test_repo_r_is_the_papers_two_cases(tokens: list[tuple[float, float]], zeta: float) -> None:
    logp, advantage = (list(x) for x in zip(*tokens, strict=True))
    found = RepoR(zeta=zeta)(of_lists(logp, advantage))
    expected = [repo_r_by_hand(x, a, zeta) for x, a in tokens]
    assert pytest.approx(expected, rel=1e-12, abs=1e-12) == found.tolist()
    assert not found.requires_grad


def test_repo_r_reads_the_present_policy_and_not_the_old_one() -> None:
    logp, old = (torch.tensor([x], dtype=torch.float64) for x in (-2.0, -3.0))
    batch = make_batch(logp, torch.ones(1, dtype=torch.float64), old)
    assert [1.2] == RepoR(zeta=0.1)(batch).tolist()


@given(TOKENS, ZETAS)
def test_every_reversed_sign_is_counted(tokens: list[tuple[float, float]], zeta: float) -> None:
    """A < 0 where log pi < -1/zeta, and for a negative zeta A > 0 where log pi < 1/zeta."""
    expected = []
    for logp, advantage in tokens:
        opposed = advantage < 0 if zeta > 0 else advantage > 0
        expected.append(opposed and logp < -1 / abs(zeta))
    found = RepoR(zeta=zeta).diagnostics(of_lists(*(list(x) for x in zip(*tokens, strict=True))))
    assert ["flipped"] == list(found)
    close = [abs(logp * zeta) == pytest.approx(1, rel=1e-12) for logp, _ in tokens]
    pairs = zip(expected, found["flipped"].tolist(), close, strict=True)
    assert all(want == have or edge for want, have, edge in pairs)


def test_a_sign_is_reversed_beyond_one_over_zeta_and_not_at_it() -> None:
    logp = [-1.9, -2.0, -2.1] * 2
    advantage = [-1.0] * 3 + [1.0] * 3
    flipped = [RepoR(zeta=z).diagnostics(of_lists(logp, advantage)) for z in (0.5, -0.5)]
    assert [0, 0, 1, 0, 0, 0] == flipped[0]["flipped"].int().tolist()
    assert [0, 0, 0, 0, 0, 1] == flipped[1]["flipped"].int().tolist()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    logp = torch.log_softmax(logits, -1)
    return -(logp.exp() * logp).sum()


def entropy_slope(
    logits: torch.Tensor, advantage: torch.Tensor, transform: RepoR | None, objective: Reinforce
) -> float:
    """Return dH/d(step size) of one exact policy-gradient step: every action by its probability.

    By a difference of entropies after steps both ways, and so with no formula in common.
    """
    table = logits.clone().requires_grad_()
    logp = torch.log_softmax(table, -1)
    batch = make_batch(logp, advantage, logp.detach())
    if transform is not None:
        batch = make_batch(logp, transform(batch), logp.detach())
    expected_loss = (logp.exp().detach() * objective(batch)).sum()
    (grad,) = torch.autograd.grad(expected_loss, table)
    step = 1e-5 * grad
    return float(entropy(logits - step) - entropy(logits + step)) / 2e-5


POLICIES = st.lists(st.floats(-2, 2), min_size=3, max_size=6)


@pytest.mark.parametrize("objective", [Reinforce(), Clipped()])
@given(policy=POLICIES, zeta=st.floats(0.01, 0.5), data=st.data())
def test_positive_zeta_raises_entropy_and_negative_zeta_lowers_it(
    objective: Reinforce, policy: list[float], zeta: float, data: st.DataObject
) -> None:
    """Against the plain gradient, for advantages of one magnitude and any signs.

    By exactly ``zeta * |A| * sum_a pi^2 L^2``, with L = log pi + H.
    """
    size = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    signs = data.draw(st.lists(st.sampled_from([-size, size]), min_size=len(policy)))
    logits = torch.tensor(policy, dtype=torch.float64)
    advantage = torch.tensor(signs[: len(policy)], dtype=torch.float64)
    plain = entropy_slope(logits, advantage, None, objective)
    raised = entropy_slope(logits, advantage, RepoR(zeta=zeta), objective) - plain
    lowered = entropy_slope(logits, advantage, RepoR(zeta=-zeta), objective) - plain
    logp = torch.log_softmax(logits, -1)
    surprise = logp + entropy(logits)
    expected = zeta * size * float((logp.exp() ** 2 * surprise**2).sum())
    assert pytest.approx(expected, rel=1e-5, abs=1e-9) == raised
    assert pytest.approx(-expected, rel=1e-5, abs=1e-9) == lowered


def test_zeta_may_lower_entropy_where_only_a_likely_token_has_an_advantage() -> None:
    """The limit of the claim, as the docstring tells it."""
    logits = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    advantage = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    plain = entropy_slope(logits, advantage, None, Reinforce())
    assert entropy_slope(logits, advantage, RepoR(zeta=0.1), Reinforce()) < plain


def test_zeta_zero_changes_nothing() -> None:
    advantage = [1.5, -0.25, 0.0]
    assert advantage == RepoR(zeta=0.0)(of_lists([-1.0, -2.0, -3.0], advantage)).tolist()


@pytest.mark.parametrize("zeta", [float("nan"), float("inf"), 11.0, -11.0])
def test_a_zeta_out_of_bounds_is_refused(zeta: float) -> None:
    with pytest.raises(ConfigError, match=r"zeta must be within \[-10, 10\]"):
        RepoR(zeta=zeta)


@given(TOKENS, ZETAS, st.floats(-3, 0.99))
def test_a_floor_is_the_least_that_is_left_of_an_advantage(
    tokens: list[tuple[float, float]], zeta: float, floor: float
) -> None:
    logp, advantage = (list(x) for x in zip(*tokens, strict=True))
    scale = [1 - zeta * x * ((a > 0) - (a < 0)) for x, a in tokens]
    expected = [a * max(f, floor) for a, f in zip(advantage, scale, strict=True)]
    part, batch = RepoR(zeta=zeta, floor=floor), of_lists(logp, advantage)
    assert pytest.approx(expected, rel=1e-12, abs=1e-12) == part(batch).tolist()
    found = part.diagnostics(batch)
    assert {"flipped", "floored"} == set(found)
    assert [f < floor for f in scale] == found["floored"].tolist()
    turned = [a != 0 and max(f, floor) < 0 for a, f in zip(advantage, scale, strict=True)]
    assert turned == found["flipped"].tolist()


def test_with_a_floor_of_zero_no_sign_is_reversed_and_what_would_have_been_is_counted() -> None:
    batch = of_lists([-1.9, -2.1] * 2, [-1.0, -1.0, 1.0, 1.0])
    part = RepoR(zeta=0.5, floor=0.0)
    assert pytest.approx([-0.05, 0, 1.95, 2.05]) == part(batch).tolist()
    found = {name: x.int().tolist() for name, x in part.diagnostics(batch).items()}
    assert {"flipped": [0] * 4, "floored": [0, 1, 0, 0]} == found


def test_repo_r_may_read_the_old_policy_in_advantages_and_diagnostics_alike() -> None:
    logp, old = (torch.tensor([x], dtype=torch.float64) for x in (-1.0, -4.0))
    batch = make_batch(logp, -torch.ones(1, dtype=torch.float64), old)
    assert [-0.5] == RepoR(zeta=0.5, of="present")(batch).tolist()
    assert [1.0] == RepoR(zeta=0.5, of="old")(batch).tolist()
    flipped = {
        of: bool(RepoR(zeta=0.5, of=of).diagnostics(batch)["flipped"]) for of in ("present", "old")
    }
    assert {"present": False, "old": True} == flipped


@given(TOKENS, ZETAS, st.floats(0, 5))
def test_repo_d_takes_away_surprise_raw_or_centred(
    tokens: list[tuple[float, float]], zeta: float, entropy: float
) -> None:
    logp, advantage = (list(x) for x in zip(*tokens, strict=True))
    batch = of_lists(logp, advantage)
    with_entropy = attrs.evolve(
        batch, entropy=(batch.logp * 0 + entropy), old_logp=batch.old_logp - 1
    )
    for centred, had in ((False, batch), (True, with_entropy)):
        found = RepoD(zeta=zeta, centred=centred)(had)
        expected = [a - zeta * (x + entropy * centred) for x, a in tokens]
        assert pytest.approx(expected, rel=1e-12, abs=1e-12) == found.tolist()
        assert not found.requires_grad


def test_what_a_transform_needs_is_declared_and_no_more() -> None:
    """Raw, REPO-D needs no pass over the vocabulary."""
    assert frozenset() == RepoR().needs == RepoD(centred=False).needs
    assert {"entropy"} == RepoD().needs
    assert {"entropy", "entropy_response"} == Decorrelate().needs
    kept = [x.keeps_zero_groups for x in (RepoR(), RepoD(), Decorrelate())]
    assert [False, True, False] == kept


def test_a_coefficient_is_of_one_minibatch_and_leaves_the_part_as_it_was() -> None:
    part = Decorrelate()
    x, a, h, r = (
        torch.tensor(v, dtype=torch.float64)
        for v in ([-0.5, -2.0], [1.0, 2.0], [1.0, 1.0], [-0.4, 0.2])
    )
    batch = attrs.evolve(make_batch(x, a, x), entropy=h, entropy_response=r)
    prepared = part.prepare(batch)
    # sum A r = 0; with A = (1, 3), 0.2. sum L r = 0.5 * -0.4 - 1 * 0.2 = -0.4.
    assert [1.0, 2.0] == prepared(batch).tolist()
    other = part.prepare(attrs.evolve(batch, advantage=torch.tensor([1.0, 3.0])))
    assert pytest.approx([1.25, 1.5]) == other(batch).tolist()
    assert pytest.approx([-0.5, -0.5]) == other.diagnostics(batch)["zeta"].tolist()
    assert [1.0, 2.0] == part(batch).tolist()
    assert part == Decorrelate()


def test_a_coefficient_is_not_taken_where_surprise_would_raise_entropy() -> None:
    """In expectation it never does; in a few tokens it may, and the quotient means nothing."""
    x, a, h, r = (torch.tensor(v, dtype=torch.float64) for v in ([-0.5], [1.0], [1.0], [0.4]))
    batch = attrs.evolve(make_batch(x, a, x), entropy=h, entropy_response=r)
    assert [1.0] == Decorrelate().prepare(batch)(batch).tolist()


@pytest.mark.parametrize(
    ("name", "value"), [("floor", 1.5), ("floor", float("nan")), ("of", "engine"), ("zeta", "much")]
)
def test_a_repo_r_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        RepoR(**{name: value})


@pytest.mark.parametrize("zeta", [101.0, -101.0, float("nan")])
def test_a_zeta_of_repo_d_out_of_bounds_is_refused(zeta: float) -> None:
    with pytest.raises(ConfigError, match=r"zeta must be within \[-100, 100\]"):
        RepoD(zeta=zeta)


# ---------------------------------------------------------------- TruncatedImportance


@given(
    st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0), st.floats(-3, 3)), min_size=1),
    st.floats(1, 5),
)
def test_a_token_counts_as_much_as_the_policy_would_sample_it_up_to_the_cap(
    tokens: list[tuple[float, float, float]], cap: float
) -> None:
    old, engine, advantage = (torch.tensor(column) for column in zip(*tokens, strict=True))
    part = TruncatedImportance(cap=cap)
    given_batch = attrs.evolve(make_batch(old, advantage, old), engine_logp=engine)
    weights = [min(math.exp(o - e), cap) for o, e, _ in tokens]
    expected = [w * a for w, (_, _, a) in zip(weights, tokens, strict=True)]
    assert expected == pytest.approx(part(given_batch).tolist(), rel=1e-4, abs=1e-6)
    found = part.diagnostics(given_batch)
    assert weights == pytest.approx(found["weight"].tolist(), rel=1e-4)
    cut = [math.exp(o - e) > cap for o, e, _ in tokens]
    sure = [abs(math.exp(o - e) / cap - 1) > 1e-4 for o, e, _ in tokens]
    assert [c for c, s in zip(cut, sure, strict=True) if s] == [
        c for c, s in zip(found["truncated"].tolist(), sure, strict=True) if s
    ]


def test_what_the_policy_itself_sampled_counts_as_it_is() -> None:
    logp = torch.tensor([-1.0, -2.0])
    given_batch = make_batch(logp, torch.tensor([0.5, -0.25]), logp)
    assert torch.equal(given_batch.advantage, TruncatedImportance()(given_batch))


@pytest.mark.parametrize("cap", [0.5, float("nan"), float("inf"), "2"])
def test_a_cap_below_one_would_shrink_what_is_right(cap: Any) -> None:
    with pytest.raises(ConfigError, match="cap"):
        TruncatedImportance(cap=cap)
