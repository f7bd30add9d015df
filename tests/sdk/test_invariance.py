"""One gradient, whatever the micro-batches, the order, the padding and the number of ranks.

For every recipe, and the transforms that no recipe has. The reference for the value itself is
episode by episode, in float64, over full logits, by formulas written out again here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope import Algorithm, Episode, Segment, recipe
from isentrope.algorithms import AGGREGATIONS
from isentrope.learner import learner as learner_module
from isentrope.learner.aggregation import token_weights, weighted
from isentrope.learner.learner import StepReport, transformed
from isentrope.learner.packing import Inputs, Trajectory, collate, token_batch
from isentrope_objectives.transforms import Decorrelate, RepoD, RepoR
from tests.sdk.test_aggregation import (
    NOMINAL,
    NORM,
    TRAJECTORIES,
    VOCABULARY,
    assert_same_gradient,
    clip_by_hand,
    grads,
    make_learner,
    naive_step,
    reinforce_by_hand,
)


def near_on_policy(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Return the same with every second episode hardly drifted, so that GSPO clips but some."""
    policy = make_learner().scores([t.episode for t in trajectories], frozenset())
    return [
        attrs.evolve(t, old=t.old._replace(logp=new.logp + 1e-3 * (t.old.logp - new.logp)))
        if i % 2
        else t
        for i, (t, new) in enumerate(zip(trajectories, policy, strict=True))
    ]


MINIBATCH = near_on_policy(TRAJECTORIES)

ALGORITHMS: dict[str, Algorithm] = {
    **{
        name: recipe(name)
        for name in ("rloo", "grpo", "dr-grpo", "loop", "dapo", "gspo", "adapo", "grpo-bonus")
    },
    "grpo-bonus": recipe("grpo-bonus", entropy_bonus={"coef": 0.02}),
    "repo-r": recipe("repo-r", repo_r={"zeta": 0.3}, controllers=[]),
    "repo-r, floor": recipe("repo-r", repo_r={"zeta": 0.5, "floor": 0.25}, controllers=[]),
    "repo-r, old": recipe("repo-r", repo_r={"zeta": 0.3, "of": "old"}, controllers=[]),
    "repo-d": recipe("repo-d", repo_d={"zeta": 0.3}, entropy_ladder={"high": 1}),
    "repo-d, raw": recipe(
        "repo-d", repo_d={"zeta": 0.3, "centred": False}, entropy_ladder={"high": 1}
    ),
    "repo-r on gspo": recipe("repo-r", on="gspo", repo_r={"zeta": 0.3}, controllers=[]),
    "decorrelate": recipe("grpo", transforms=[Decorrelate()]),
    "all": recipe(
        "grpo-bonus",
        transforms=[Decorrelate(), RepoR(zeta=0.2, floor=0.0), RepoD(zeta=0.1)],
        entropy_bonus={"coef": 0.02},
    ),
}


def aggregated(case: str, aggregation: str) -> Algorithm:
    norm_length = NORM if aggregation == "seq-mean-token-sum-norm" else None
    return attrs.evolve(ALGORITHMS[case], aggregation=aggregation, norm_length=norm_length)


CASES = [
    case
    if case in ("gspo", "dr-grpo", "decorrelate", "all")
    else pytest.param(case, marks=pytest.mark.slow)
    for case in ALGORITHMS
]


def step(
    algorithm: Algorithm, minibatch: Sequence[Trajectory], budget: int = 10**6
) -> tuple[StepReport, Tensor]:
    """Return a fresh learner's report of a step, and its gradient."""
    learner = make_learner(budget)
    report = learner.step(algorithm, minibatch, nominal_sequences=NOMINAL, step=1)
    return report, grads(learner.policy)


@cache
def whole_step(case: str, aggregation: str) -> tuple[StepReport, Tensor]:
    """Return the same of the whole minibatch at once."""
    return step(aggregated(case, aggregation), MINIBATCH)


def rank_step(
    algorithm: Algorithm, whole: Sequence[Trajectory], own: Sequence[Trajectory]
) -> tuple[float, Tensor]:
    """Return one rank's share of loss and gradient: statistics and denominators are global."""
    learner = make_learner()
    everything = token_batch(whole, learner.device, step=1)
    tokens = int(everything.mask.sum())
    sizes: Any = {"nominal_sequences": NOMINAL, "total_tokens": tokens}
    prepared = algorithm.prepare(weighted(algorithm, everything, **sizes))
    batch = token_batch(own, learner.device, step=1)
    inputs = collate([t.episode for t in own], learner.device)
    scores = learner.policy(inputs, needs=prepared.needs)
    batch = transformed(prepared, attrs.evolve(batch, **scores._asdict()))
    losses = [part(batch) for part in (prepared.objective, *prepared.regularizers)]
    weights = token_weights(prepared, batch, **sizes)
    loss = (weights * sum(losses)).sum()
    loss.backward()
    return loss.item(), grads(learner.policy)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_micro_batches_and_order_change_neither_gradient_nor_report(
    case: str, data: st.DataObject
) -> None:
    aggregation = data.draw(st.sampled_from(AGGREGATIONS))
    algorithm = aggregated(case, aggregation)
    report, expected = whole_step(case, aggregation)
    order = data.draw(st.permutations(MINIBATCH))
    again, found = step(algorithm, order, data.draw(st.integers(1, 150)))
    assert float(expected.norm()) > 1e-4
    assert_same_gradient(found, expected)
    assert pytest.approx(report.loss, rel=1e-5, abs=1e-6) == again.loss
    assert pytest.approx(report.grad_norm, rel=1e-5) == again.grad_norm
    assert (report.tokens, report.effective) == (again.tokens, again.effective)
    assert {k: pytest.approx(v, rel=1e-5, abs=1e-6) for k, v in report.diagnostics.items()} == (
        again.diagnostics
    )
    for name in ("logp", "old_logp"):
        sorted_first, sorted_again = (getattr(r, name).sort().values for r in (report, again))
        torch.testing.assert_close(sorted_first, sorted_again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_ranks_add_up_to_the_gradient_of_one(case: str, data: st.DataObject) -> None:
    """Each has some of the minibatch; statistics and denominators are the whole's."""
    aggregation = data.draw(st.sampled_from(AGGREGATIONS))
    algorithm = aggregated(case, aggregation)
    ranks = data.draw(st.integers(1, 4))
    of = data.draw(
        st.lists(st.integers(0, ranks - 1), min_size=len(MINIBATCH), max_size=len(MINIBATCH))
    )
    shares = [[t for t, r in zip(MINIBATCH, of, strict=True) if r == rank] for rank in range(ranks)]
    report, expected = whole_step(case, aggregation)
    found = [rank_step(algorithm, MINIBATCH, share) for share in shares if share]
    assert pytest.approx(report.loss, rel=1e-5, abs=1e-6) == sum(loss for loss, _ in found)
    assert_same_gradient(sum(gradient for _, gradient in found), expected)


@pytest.mark.parametrize("case", CASES)
def test_a_pack_has_the_gradient_of_its_episodes_one_by_one(case: str) -> None:
    """No sequence sees another, whatever the lengths and whoever shares a prompt."""
    algorithm = aggregated(case, "seq-mean-token-mean")
    report, expected = whole_step(case, "seq-mean-token-mean")
    again, found = step(algorithm, MINIBATCH, budget=1)
    assert_same_gradient(found, expected)
    assert pytest.approx(report.loss, rel=1e-5, abs=1e-6) == again.loss


def test_an_episode_beside_longer_ones_has_the_gradient_that_it_has_alone() -> None:
    """The others, without advantage, have no gradient of their own."""
    for i in range(len(MINIBATCH)):
        silenced = [
            t if j == i else attrs.evolve(t, advantage=torch.zeros_like(t.advantage))
            for j, t in enumerate(MINIBATCH)
        ]
        _, alone = step(ALGORITHMS["grpo"], [MINIBATCH[i]])
        _, beside = step(ALGORITHMS["grpo"], silenced)
        assert_same_gradient(beside, alone)


def test_what_comes_after_the_last_sampled_token_does_not_matter() -> None:
    rng = np.random.default_rng(0)

    def longer(segment: Segment) -> Segment:
        more = int(rng.integers(1, 9))
        tail = rng.integers(0, VOCABULARY, more)
        values = {
            "ids": tail,
            "sampled": np.zeros(more, bool),
            "logp": np.zeros(more),
            "turn": np.full(more, segment.turn[-1]),
            "version": np.full(more, -1),
        }
        return Segment(**{k: np.concatenate([getattr(segment, k), v]) for k, v in values.items()})

    tailed = [
        attrs.evolve(
            t, episode=attrs.evolve(t.episode, segments=tuple(map(longer, t.episode.segments)))
        )
        for t in MINIBATCH
    ]
    for case in ("gspo", "all"):
        report, expected = step(ALGORITHMS[case], MINIBATCH)
        again, found = step(ALGORITHMS[case], tailed, 60)
        assert_same_gradient(found, expected)
        assert pytest.approx(report.loss, rel=1e-5, abs=1e-6) == again.loss


# ---------------------------------------------------------------- the value itself

ByHand = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def clipped_at(low: float, high: float) -> ByHand:
    def by_hand(logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor) -> Tensor:
        """By cases: no gradient beyond a bound that the advantage pushes further out of."""
        ratio = (logp - old).exp()
        lost = ((a > 0) & (ratio > 1 + high)) | ((a < 0) & (ratio < 1 - low))
        bound = torch.where(a > 0, 1 + high, 1 - low).to(a)
        return -a * torch.where(lost, bound, ratio)

    return by_hand


def gspo_by_hand(logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor) -> Tensor:
    """With one ratio for the episode: its gradient is each token's own, times that ratio."""
    s = float((logp.detach() - old).mean().exp())
    low, high = 1 - 3e-4, 1 + 4e-4
    losses = []
    for x, advantage in zip(logp, a.tolist(), strict=True):
        if (advantage > 0 and s > high) or (advantage < 0 and s < low):
            losses.append(-advantage * min(max(s, low), high) + 0 * x)
        else:
            losses.append(-advantage * s * (1 + x - x.detach()))
    return torch.stack(losses)


def repo_r_with_floor(logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor) -> Tensor:
    factor = torch.where(a > 0, 1 - 0.5 * logp.detach(), 1 + 0.5 * logp.detach())
    return clip_by_hand(logp, old, a * torch.where(factor < 0.25, 0.25, factor), entropy)


def repo_r_of_the_old_policy(logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor) -> Tensor:
    return clip_by_hand(logp, old, a - 0.3 * a.abs() * old, entropy)


def repo_d_centred(logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor) -> Tensor:
    return clip_by_hand(logp, old, a - 0.3 * (logp + entropy).detach(), entropy)


def repo_d_raw(logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor) -> Tensor:
    return clip_by_hand(logp, old, a - 0.3 * logp.detach(), entropy)


def decorrelated(
    logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor, aggregation: str = "token-mean"
) -> Tensor:
    """Zeta by sums over the whole minibatch, of the policy that it was collected with.

    A token counts by its weight in the loss.
    """
    above = below = 0.0
    for t in MINIBATCH:
        weight = 1 / len(t) if aggregation == "seq-mean-token-mean" else 1.0
        assert t.old.entropy is not None
        assert t.old.entropy_response is not None
        for advantage, response, x, h in zip(
            t.advantage.tolist(),
            t.old.entropy_response.tolist(),
            t.old.logp.tolist(),
            t.old.entropy.tolist(),
            strict=True,
        ):
            above += weight * advantage * response
            below += weight * (x + h) * response
    assert below < 0
    return clip_by_hand(logp, old, a - above / below * (logp + entropy).detach(), entropy)


def with_bonus(logp: Tensor, old: Tensor, a: Tensor, entropy: Tensor) -> Tensor:
    return clip_by_hand(logp, old, a, entropy) - 0.02 * entropy


BY_HAND: dict[str, ByHand] = {
    "rloo": reinforce_by_hand,
    "grpo": clipped_at(0.2, 0.2),
    "dr-grpo": clipped_at(0.2, 0.2),
    "loop": clip_by_hand,
    "dapo": clipped_at(0.2, 0.28),
    "adapo": clipped_at(0.2, 0.28),
    "gspo": gspo_by_hand,
    "grpo-bonus": with_bonus,
    "repo-r, floor": repo_r_with_floor,
    "repo-r, old": repo_r_of_the_old_policy,
    "repo-d": repo_d_centred,
    "repo-d, raw": repo_d_raw,
    "decorrelate": decorrelated,
}


@pytest.mark.parametrize(
    ("case", "aggregation"),
    [
        pytest.param(case, aggregation, marks=[pytest.mark.slow] if (i + j) % 4 else [])
        for i, case in enumerate(BY_HAND)
        for j, aggregation in enumerate(AGGREGATIONS)
    ],
)
def test_a_step_is_its_formula_episode_by_episode(case: str, aggregation: str) -> None:
    by_hand = BY_HAND[case]
    if case == "decorrelate":
        by_hand = partial(decorrelated, aggregation=aggregation)
    loss, expected = naive_step(aggregation, MINIBATCH, by_hand)
    report, found = step(aggregated(case, aggregation), MINIBATCH, 40)
    assert pytest.approx(loss, rel=1e-5, abs=1e-6) == report.loss
    assert_same_gradient(found, expected)


def test_the_minibatch_is_clipped_above_and_below_and_not_everywhere_for_tokens_and_episodes() -> (
    None
):
    """Or the tests above would not see a clip."""
    for case in ("grpo", "gspo"):
        report, _ = step(ALGORITHMS[case], MINIBATCH)
        assert report.diagnostics["objective/clip_high"] > 0
        assert report.diagnostics["objective/clip_low"] > 0
        assert 0.2 < report.effective < 0.95
    report, _ = step(ALGORITHMS["repo-r, floor"], MINIBATCH)
    assert 0 < report.diagnostics["repo_r/floored"] < 1


@pytest.mark.parametrize("budget", [1, 20, 40, 75, 200])
def test_a_steps_forward_passes_keep_to_the_budget_or_hold_one_episode(
    monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    passes = []

    def watched(episodes: Sequence[Episode], *rest: Any) -> Inputs:
        inputs = collate(episodes, *rest)
        passes.append((inputs.ids.numel(), len(episodes)))
        return inputs

    monkeypatch.setattr(learner_module, "collate", watched)
    step(ALGORITHMS["grpo"], MINIBATCH, budget)
    assert len(MINIBATCH) == sum(count for _, count in passes)
    assert all(size <= budget or count == 1 for size, count in passes)
