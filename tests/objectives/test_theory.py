"""The paper's theory, on policies small enough to enumerate: every action by its probability.

The reference moves logits and compares entropies; what responds to what is never taken from ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope import AdvantageTransform, Algorithm, Objective, TokenBatch
from isentrope.diagnostics import clip_fractions, predicted_entropy_change
from isentrope.learner.head import KNOWN, token_scores
from isentrope_objectives.advantages import LeaveOneOut
from isentrope_objectives.surrogates import Clipped, EntropyBonus, Reinforce, SequenceClipped
from isentrope_objectives.transforms import Decorrelate, RepoD, RepoR

UNBOUNDED = Clipped(eps_low=1.0, eps_high=10.0)
ON_POLICY = [Reinforce(), Clipped(), SequenceClipped()]

# Probabilities as counts: S states by A actions; each token that often, and their mean is exact.
COUNTS = [[5, 3, 2, 10], [14, 1, 1, 4], [6, 6, 4, 4]]
ADVANTAGES = [[0.5, -0.3, 0.2, 0.1], [-0.4, 0.3, 0.25, -0.1], [0.1, -0.2, 0.3, 0.0]]


def table_of(counts: Sequence[Sequence[int]]) -> Tensor:
    return float64([[math.log(c / sum(row)) for c in row] for row in counts])


def float64(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def entropy_of(logits: Sequence[float]) -> float:
    """Return a softmax's entropy, in plain Python."""
    total = math.fsum(math.exp(z) for z in logits)
    p = [math.exp(z) / total for z in logits]
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def mean_entropy(table: Tensor) -> float:
    return sum(entropy_of(row) for row in table.tolist()) / len(table)


def repeated(counts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return state and action of every token of a batch that holds each action `count` times."""
    pairs = [(s, a) for s, row in enumerate(counts) for a, n in enumerate(row) for _ in range(n)]
    states, actions = (torch.tensor(x) for x in zip(*pairs, strict=True))
    return states, actions


def batch_of(
    table: Tensor,
    states: Tensor,
    actions: Tensor,
    advantage: Tensor,
    old: Tensor | None = None,
) -> TokenBatch:
    """Return those tokens, each an episode of its own; log-probs and entropies with gradient.

    The entropy response is the slope of the entropy along what a token pushes the logits by.
    """
    log_p = torch.log_softmax(table, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    free = table.detach().clone().requires_grad_()
    free_p = torch.log_softmax(free, -1)
    (slope,) = torch.autograd.grad(-(free_p.exp() * free_p).sum(), free)
    push = torch.nn.functional.one_hot(actions, table.shape[1]) - free_p.detach().exp()[states]
    logp, index = log_p[states, actions], torch.arange(len(states))
    old_logp = logp.detach() if old is None else torch.log_softmax(old, -1)[states, actions]
    return TokenBatch(
        logp,
        old_logp,
        old_logp,
        advantage[states, actions],
        torch.ones(len(states), dtype=torch.bool),
        index,
        index,
        torch.zeros_like(index),
        len(states),
        entropy=entropy[states],
        entropy_response=(push * slope[states]).sum(-1),
    )


def enumerated(table: Tensor, advantage: Tensor, old: Tensor | None = None) -> TokenBatch:
    """Return every action of every state once."""
    states = torch.arange(table.shape[0]).repeat_interleave(table.shape[1])
    return batch_of(table, states, torch.arange(table.numel()) % table.shape[1], advantage, old)


def expected_gradient(
    objective: Objective,
    transform: AdvantageTransform | None,
    table: Tensor,
    advantage: Tensor,
    old: Tensor | None = None,
    seen: Callable[[TokenBatch], TokenBatch] = lambda batch: batch,
) -> Tensor:
    """Return the loss's gradient over every action, by its probability when it was sampled.

    seen: what the transform is shown for the batch.
    """
    free = table.clone().requires_grad_()
    batch = enumerated(free, advantage, old)
    if transform is not None:
        batch = attrs.evolve(batch, advantage=transform(seen(batch)).detach())
    loss = (batch.old_logp.exp() * objective(batch)).sum()
    (gradient,) = torch.autograd.grad(loss, free)
    return gradient


def entropy_slope(table: Tensor) -> Tensor:
    """Return the derivative of the states' summed entropies by each logit: differences."""
    slope = torch.zeros_like(table)
    for s in range(table.shape[0]):
        for a in range(table.shape[1]):
            around = []
            for step in (1e-5, -1e-5):
                row = table[s].tolist()
                row[a] += step
                around.append(entropy_of(row))
            slope[s, a] = (around[0] - around[1]) / 2e-5
    return slope


# REPO-D is an entropy bonus.
TABLES = st.lists(
    st.lists(st.floats(-2.5, 2.5), min_size=4, max_size=4), min_size=1, max_size=3
).map(float64)
GAINS = st.lists(st.floats(-2, 2), min_size=12, max_size=12).map(
    lambda x: torch.tensor(x, dtype=torch.float64).reshape(3, 4)
)
ZETAS = st.floats(0.01, 2).flatmap(lambda z: st.sampled_from([z, -z]))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("objective", ON_POLICY)
@settings(deadline=None, max_examples=40)  # a first call of torch takes half a second
@given(table=TABLES, advantage=GAINS, zeta=ZETAS, none=st.booleans())
def test_on_policy_repo_d_is_an_entropy_bonus_of_weight_zeta(
    objective: Objective, centred: bool, table: Tensor, advantage: Tensor, zeta: float, none: bool
) -> None:
    """Of the gradient in expectation; whatever the advantages, none among them."""
    advantage = advantage[: len(table)] * (not none)
    transform = RepoD(zeta=zeta, centred=centred)
    plain = expected_gradient(objective, None, table, advantage)
    added = expected_gradient(objective, transform, table, advantage) - plain
    torch.testing.assert_close(added, -zeta * entropy_slope(table), rtol=1e-7, atol=1e-8)
    bonus = expected_gradient(EntropyBonus(coef=zeta), None, table, advantage)
    torch.testing.assert_close(added, bonus, rtol=1e-9, atol=1e-12)


def drifted() -> tuple[Tensor, Tensor]:
    old = table_of([[4, 3, 2, 1], [1, 1, 5, 3]])
    drift = float64([[-0.8, 0.4, 0.3, 0.5], [0.2, 0.9, -0.6, 0.1]])
    return old + drift, old


@pytest.mark.parametrize("centred", [True, False])
def test_repo_d_is_that_bonus_after_drift_too_as_it_reads_the_present_policy(
    centred: bool,
) -> None:
    """Off-policy, with importance ratios that no clip touches: the bonus of the present policy."""
    present, old = drifted()
    advantage = float64([[0.3, -1.0, 0.5, 0.2], [0.0, 0.0, 0.0, 0.0]])
    transform = RepoD(zeta=0.4, centred=centred)
    plain = expected_gradient(UNBOUNDED, None, present, advantage, old)
    added = expected_gradient(UNBOUNDED, transform, present, advantage, old) - plain
    torch.testing.assert_close(added, -0.4 * entropy_slope(present), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_with_the_old_policys_log_probs_it_would_not_be(centred: bool) -> None:
    """Half of it would be off here, by what the policy has drifted."""
    present, old = drifted()
    expected = -entropy_slope(present)

    def old_one(batch: TokenBatch) -> TokenBatch:
        before = enumerated(old, torch.zeros_like(old))
        return attrs.evolve(batch, logp=before.logp, entropy=before.entropy)

    transform = RepoD(zeta=1.0, centred=centred)
    nothing = torch.zeros_like(old)
    found = expected_gradient(UNBOUNDED, transform, present, nothing, old, old_one)
    assert float((found - expected).norm()) > 0.5 * float(expected.norm())


def test_under_a_clip_raw_and_centred_are_two_things_and_neither_is_the_bonus() -> None:
    present, old = drifted()
    advantage = float64([[0.3, -1.0, 0.5, 0.2], [0.4, 0.1, -0.2, -0.3]])
    plain = expected_gradient(Clipped(), None, present, advantage, old)
    raw, centred = (
        expected_gradient(Clipped(), RepoD(zeta=0.4, centred=c), present, advantage, old) - plain
        for c in (False, True)
    )
    bonus = -0.4 * entropy_slope(present)
    for one, other in ((raw, centred), (raw, bonus), (centred, bonus)):
        assert float((one - other).norm()) > 0.2 * float(bonus.norm())


# Cor. 2: what a step will do to entropy.
def stepped(table: Tensor, push: Tensor, size: float) -> Tensor:
    """Return the table after a step of the expected policy gradient, by probabilities and A."""
    p = torch.softmax(table, -1)
    return table + size * p * (push - (p * push).sum(-1, keepdim=True))


def pushed(batch: TokenBatch, shape: torch.Size) -> Tensor:
    """Return a repeated batch's advantages as the table that they came from."""
    states, actions = repeated(COUNTS)
    push = torch.zeros(shape, dtype=torch.float64)
    push[states, actions] = batch.advantage
    return push


def scored_by_the_head(table: Tensor, batch: TokenBatch) -> TokenBatch:
    """Return the batch with the real head's scores, in float32."""
    states, actions = repeated(COUNTS)
    hidden = torch.eye(len(table))[states]
    scores = token_scores(hidden, table.T.float().contiguous(), None, actions, needs=KNOWN)
    return attrs.evolve(batch, **scores._asdict())


TRANSFORMS: dict[str, AdvantageTransform | None] = {
    "none": None,
    "repo-r": RepoR(zeta=0.3),
    "repo-r, negative": RepoR(zeta=-0.3),
    "repo-d, raw": RepoD(zeta=0.1, centred=False),
    "repo-d": RepoD(zeta=0.1),
    "decorrelate": Decorrelate(),
}


def transformed(batch: TokenBatch, transform: AdvantageTransform | None) -> TokenBatch:
    if transform is None:
        return batch
    prepared = transform.prepare(attrs.evolve(batch, logp=batch.old_logp))
    return attrs.evolve(batch, advantage=prepared(batch))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_predicted_entropy_change_is_the_true_one_to_first_order(name: str) -> None:
    """Its error is of second order: over eta^2 it is one number, whatever eta."""
    table = table_of(COUNTS)
    batch = batch_of(table, *repeated(COUNTS), float64(ADVANTAGES))
    batch = transformed(batch, TRANSFORMS[name])
    predicted = predicted_entropy_change(batch.advantage, batch.entropy_response)
    push, before = pushed(batch, table.shape), mean_entropy(table)
    errors = []
    for eta in (1e-1, 1e-2, 1e-3, 1e-4):
        change = mean_entropy(stepped(table, push, eta)) - before
        errors.append((change - eta * predicted) / eta**2)
    assert abs(errors[0]) > 1e-4
    assert [pytest.approx(errors[0], rel=0.05)] * 3 == errors[1:]
    both_ways = [mean_entropy(stepped(table, push, eta)) for eta in (1e-5, -1e-5)]
    slope = (both_ways[0] - both_ways[1]) / 2e-5
    assert pytest.approx(slope, rel=1e-6, abs=1e-9) == predicted
    scored = scored_by_the_head(table, batch)
    found = predicted_entropy_change(batch.advantage, scored.entropy_response)
    assert pytest.approx(slope, rel=1e-5, abs=1e-7) == found


def test_a_states_own_value_is_no_part_of_the_prediction() -> None:
    """An offset of all of a state's advantages moves nothing, and predicts nothing.

    With the batch's mean of A taken off, in place of each state's, it would predict a lot.
    """
    table, offset = table_of(COUNTS), float64([[5.0], [-3.0], [1.0]])
    for advantage in (float64(ADVANTAGES), float64(ADVANTAGES) + offset):
        batch = batch_of(table, *repeated(COUNTS), advantage)
        step = stepped(table, advantage, 1e-6)
        slope = (mean_entropy(step) - mean_entropy(table)) / 1e-6
        found = predicted_entropy_change(batch.advantage, batch.entropy_response)
        assert pytest.approx(slope, rel=1e-4, abs=1e-8) == found
    a, own = batch.advantage, batch.logp + batch.entropy
    by_the_batch = -float((batch.logp.exp() * (a - a.mean()) * own).mean())
    assert abs(by_the_batch) > 10 * abs(slope)


@settings(deadline=None)
@given(data=st.data(), size=st.floats(0.1, 2), zeta=st.floats(0.01, 0.5))
def test_repo_r_of_positive_zeta_raises_the_prediction_and_of_negative_lowers_it(
    data: st.DataObject, size: float, zeta: float
) -> None:
    """By ``zeta |A| sum_a pi^2 L^2``, where advantages differ in sign only."""
    signs = data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=12, max_size=12))
    advantage = size * torch.tensor(signs, dtype=torch.float64).reshape(3, 4)
    table = table_of(COUNTS)
    batch = batch_of(table, *repeated(COUNTS), advantage)
    response = batch.entropy_response
    plain = predicted_entropy_change(batch.advantage, response)
    p = torch.softmax(table, -1)
    own = p.log() - (p * p.log()).sum(-1, keepdim=True)
    expected = zeta * size * float((p * own).square().sum(-1).mean())
    for sign in (1, -1):
        found = predicted_entropy_change(RepoR(zeta=sign * zeta)(batch), response)
        assert pytest.approx(sign * expected, rel=1e-9, abs=1e-12) == found - plain


# The decorrelating coefficient.
def zeta_star(batch: TokenBatch) -> float:
    prepared = Decorrelate().prepare(attrs.evolve(batch, logp=batch.old_logp))
    return float(prepared.diagnostics(batch)["zeta"][0])


@pytest.mark.parametrize("offset", [[[0.0], [0.0], [0.0]], [[5.0], [-3.0], [1.0]]])
def test_decorrelated_advantages_leave_entropy_as_it_is_to_first_order(
    offset: list[list[float]],
) -> None:
    """Whatever each state is worth, which a batch's mean of A would leave in."""
    table, advantage = table_of(COUNTS), float64(ADVANTAGES) + float64(offset)
    batch = batch_of(table, *repeated(COUNTS), advantage)
    pushes = {
        "plain": pushed(batch, table.shape),
        "decorrelated": pushed(transformed(batch, Decorrelate()), table.shape),
    }
    before = mean_entropy(table)
    change = {
        name: [mean_entropy(stepped(table, push, eta)) - before for eta in (1e-2, 1e-3, 1e-4)]
        for name, push in pushes.items()
    }
    assert 0 < abs(zeta_star(batch))
    slope = {
        name: (mean_entropy(stepped(table, push, 1e-5)) - mean_entropy(stepped(table, push, -1e-5)))
        / 2e-5
        for name, push in pushes.items()
    }
    assert abs(slope["plain"]) > 0.01
    assert pytest.approx(0, abs=1e-10) == slope["decorrelated"]
    first, second = (
        [x / eta**k for x, eta in zip(change[name], (1e-2, 1e-3, 1e-4), strict=True)]
        for name, k in (("plain", 1), ("decorrelated", 2))
    )
    assert [pytest.approx(slope["plain"], rel=0.02)] * 2 == first[1:]
    assert [pytest.approx(second[1], rel=0.05)] * 3 == second


def test_the_coefficient_does_not_depend_on_what_states_are_worth() -> None:
    table = table_of(COUNTS)
    plain, worth = (
        zeta_star(batch_of(table, *repeated(COUNTS), float64(ADVANTAGES) + float64(offset)))
        for offset in ([[0.0]] * 3, [[50.0], [-30.0], [10.0]])
    )
    assert pytest.approx(plain, rel=1e-10) == worth


def test_the_batchs_mean_of_advantages_in_its_place_would_not_hold_entropy() -> None:
    """The trap: what states are worth would be taken for what actions are."""
    table, advantage = table_of(COUNTS), float64(ADVANTAGES) + float64([[5.0], [-3.0], [1.0]])
    batch = batch_of(table, *repeated(COUNTS), advantage)
    pi, own = batch.logp.exp(), batch.logp + batch.entropy
    centred = batch.advantage - batch.advantage.mean()
    naive = float((centred * pi * own).mean() / (pi * own**2).mean())
    assert abs(naive) > 5 * abs(zeta_star(batch))
    push = pushed(attrs.evolve(batch, advantage=batch.advantage - naive * own), table.shape)
    assert abs(mean_entropy(stepped(table, push, 1e-3)) - mean_entropy(table)) > 1e-4


@settings(deadline=None)
@given(table=TABLES, advantage=GAINS)
@example(float64([[0.0, 0.0, 0.0, 0.0]]), torch.ones(3, 4, dtype=torch.float64))
def test_of_any_policy_and_advantages_decorrelate_predicts_no_change(
    table: Tensor, advantage: Tensor
) -> None:
    """By a weighing trick: a token's response and surprise times its probability, as if repeated.

    Of uniform policies nothing responds, and the coefficient is 0.
    """
    batch = enumerated(table, advantage[: len(table)])
    response, entropy = batch.entropy_response, batch.entropy
    weighed = attrs.evolve(batch, entropy_response=response * batch.logp.exp())
    found = zeta_star(weighed)
    assert math.isfinite(found)
    left = (batch.advantage - found * (batch.logp + entropy)) * response * batch.logp.exp()
    assume(found != 0)
    assert pytest.approx(0, abs=1e-9 * (1 + abs(found))) == float(left.sum())


@pytest.mark.parametrize("logits", [[[200.0, 0.0, -3.0, 0.0]], [[0.0] * 4], [[7.0]]])
def test_where_no_token_responds_the_coefficient_is_zero_and_not_nan(
    logits: list[list[float]],
) -> None:
    """Certain of one token; all alike, to the bit; or with no choice."""
    table = float64(logits)
    states, actions = torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    batch = batch_of(table, states, actions, torch.ones_like(table))
    hidden, weight = torch.ones(6, 1), table.T.float().contiguous()
    scores = token_scores(hidden, weight, None, actions, needs=KNOWN)
    batch = attrs.evolve(batch, **scores._asdict(), old_logp=scores.logp)
    assert 0.0 == zeta_star(batch)
    assert [1.0] * 6 == transformed(batch, Decorrelate()).advantage.tolist()


def test_no_tokens_that_count_are_no_coefficient() -> None:
    batch = batch_of(table_of(COUNTS), *repeated(COUNTS), float64(ADVANTAGES))
    nobody = attrs.evolve(batch, mask=torch.zeros_like(batch.mask))
    assert 0.0 == zeta_star(nobody)


def test_a_masked_token_has_no_part_in_the_coefficient() -> None:
    batch = batch_of(table_of(COUNTS), *repeated(COUNTS), float64(ADVANTAGES))
    expected = zeta_star(batch)
    states, actions = (torch.cat([x, x[:7]]) for x in repeated(COUNTS))
    more = batch_of(table_of(COUNTS), states, actions, float64(ADVANTAGES))
    mask = torch.arange(len(states)) < len(batch.mask)
    loud = attrs.evolve(more, mask=mask, advantage=more.advantage.where(mask, 1e6))
    assert pytest.approx(expected, rel=1e-12) == zeta_star(loud)


# Thm. 2: with every action's ratio bounded, so is the entropy.
@st.composite
def bounded_ratios(draw: st.DrawFn) -> tuple[list[float], list[float], float, float]:
    """Return p, q, eps_low and eps_high with ``1 - eps_low <= q / p <= 1 + eps_high``.

    Probability is moved from some actions to others, as much as the bounds let or a part of it.
    """
    weights = draw(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=7))
    p = [w / sum(weights) for w in weights]
    low, high = draw(st.floats(0.01, 1.0)), draw(st.floats(0.01, 5.0))
    part = st.one_of(st.just(-1.0), st.just(1.0), st.floats(-1, 1))
    wanted = [draw(part) for _ in p]
    change = [x * w * (high if w > 0 else low) for x, w in zip(p, wanted, strict=True)]
    more, less = sum(c for c in change if c > 0), -sum(c for c in change if c < 0)
    moved = min(more, less)
    scale = {True: moved / more if more else 0.0, False: moved / less if less else 0.0}
    return p, [x + c * scale[c > 0] for x, c in zip(p, change, strict=True)], low, high


def plain_entropy(p: Sequence[float]) -> float:
    return -math.fsum(x * math.log(x) for x in p if x > 0)


@settings(deadline=None)
@given(bounded_ratios())
@example(([0.5, 0.5], [1.0, 0.0], 1.0, 1.0))
@example(([0.9, 0.1], [0.92, 0.08], 0.2, 0.28))
def test_bounded_ratios_bound_the_entropy(
    case: tuple[list[float], list[float], float, float],
) -> None:
    """Thm. 2, of any distributions; and by how much more: divergences both ways.

    ``H(q) = sum r p (-log p) - KL(q, p) <= (1 + eps_high) H(p) - KL(q, p)``, and the same with p
    and q exchanged, whose ratio is at most ``1 / (1 - eps_low)``.
    """
    p, q, low, high = case
    table = [float64([[math.log(max(x, 1e-300)) for x in values]]) for values in (p, q)]
    old, new = (enumerated(t, torch.ones_like(t)) for t in table)
    outside = clip_fractions(
        new.logp.exp() / old.logp.exp(), old.advantage, eps_low=low + 1e-9, eps_high=high + 1e-9
    )
    assert {0.0} == set(outside.values())
    before, after = plain_entropy(p), plain_entropy(q)
    for batch, entropy in ((old, before), (new, after)):
        assert pytest.approx(entropy, rel=1e-9, abs=1e-12) == batch.entropy[0].item()
    pairs = [(x, y) for x, y in zip(p, q, strict=True) if y > 0]
    divergence = math.fsum(y * math.log(y / x) for x, y in pairs)
    assert after <= (1 + high) * before - divergence + 1e-9
    if len(pairs) == len(p):
        back = math.fsum(x * math.log(x / y) for x, y in pairs)
        assert after >= (1 - low) * (before + back) - 1e-9
    assert after >= (1 - low) * before - 1e-9


def test_sampled_tokens_inside_the_bounds_are_not_enough_for_that() -> None:
    """What the clip sees: the actions that were drawn. The rest may take entropy anywhere."""
    p, q = [0.9, 0.1 - 1e-6, 1e-6 / 2, 1e-6 / 2], [0.85, 0.09, 0.03, 0.03]
    ratio = float64([[y / x for x, y in zip(p, q, strict=True)]])[0]
    drawn = clip_fractions(ratio[:2], torch.ones(2), eps_low=0.2, eps_high=0.28)
    every = clip_fractions(ratio, torch.ones(4), eps_low=0.2, eps_high=0.28)
    assert (0.0, 0.5) == (drawn["clip_high"], every["clip_high"])
    assert plain_entropy(q) > 1.28 * plain_entropy(p)


def test_the_coefficient_takes_no_notice_of_what_a_masked_token_holds() -> None:
    table = table_of(COUNTS)
    batch = batch_of(table, *repeated(COUNTS), float64(ADVANTAGES))
    first = torch.arange(len(batch.mask)) == 0
    masked = attrs.evolve(batch, mask=~first)
    strange = attrs.evolve(
        masked,
        advantage=batch.advantage.masked_fill(first, float("nan")),
        entropy=batch.entropy.masked_fill(first, float("nan")),
    )
    assert zeta_star(masked) == zeta_star(strange) != zeta_star(batch)


def test_after_another_transform_it_decorrelates_what_that_one_made() -> None:
    table = table_of(COUNTS)
    batch = batch_of(table, *repeated(COUNTS), float64(ADVANTAGES))
    algorithm = Algorithm(
        advantage=LeaveOneOut(),
        transforms=[RepoR(zeta=0.7), Decorrelate()],
        objective=Reinforce(),
    )
    prepared = algorithm.prepare(batch)
    for transform in prepared.transforms:
        batch = attrs.evolve(batch, advantage=transform(batch))
    expected = float(batch.advantage.abs().mean())
    assert expected > 0.1
    predicted = predicted_entropy_change(batch.advantage, batch.entropy_response)
    assert pytest.approx(0, abs=1e-12) == predicted
