"""Aggregation and the step: against loops over episodes, however a minibatch is split.

The reference for a whole step runs one segment at a time, unpadded, over full logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope import (
    AdvantageTransform,
    Algorithm,
    Episode,
    LearnerConfig,
    Objective,
    Segment,
    TokenBatch,
)
from isentrope.algorithms import AGGREGATIONS
from isentrope.episodes import StopReason
from isentrope.learner import learner as learner_module
from isentrope.learner.aggregation import token_weights
from isentrope.learner.head import KNOWN
from isentrope.learner.learner import Learner, StepReport
from isentrope.learner.packing import Trajectory, collate, micro_batches
from isentrope.learner.policy import Policy
from isentrope_objectives.advantages import LeaveOneOut
from isentrope_objectives.surrogates import Clipped, Reinforce
from isentrope_objectives.transforms import RepoR

VOCABULARY, TEMPERATURE, NORM, NOMINAL = 23, 0.8, 9, 10


@frozen(kw_only=True)
class Centred(AdvantageTransform):
    """Needs a statistic of the whole minibatch, and another of each episode."""

    mean: float | None = None

    def prepare(self, minibatch: TokenBatch) -> Centred:
        return attrs.evolve(self, mean=float(minibatch.logp.mean()))

    def __call__(self, batch: TokenBatch) -> Tensor:
        assert self.mean is not None
        own = batch.sequence_mean(batch.old_logp)
        return batch.advantage + (batch.old_logp - self.mean) - 0.5 * own


@frozen(kw_only=True)
class Leaky(AdvantageTransform):
    """REPO-R whose author forgot that the log-prob has gradient."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        return batch.advantage - 0.3 * batch.advantage.abs() * batch.logp


@frozen(kw_only=True)
class Bonus(Objective):
    """The clip, with a little entropy."""

    needs = frozenset({"entropy"})

    def __call__(self, batch: TokenBatch) -> Tensor:
        return Clipped()(batch) - 0.1 * batch.entropy


def compose(aggregation: str, objective: Objective | None = None, *transforms: Any) -> Algorithm:
    return Algorithm(
        advantage=LeaveOneOut(),
        objective=objective or Clipped(),
        transforms=transforms,
        aggregation=aggregation,  # type: ignore[arg-type]  # a parameter of the test
        norm_length=NORM if aggregation == "seq-mean-token-sum-norm" else None,
    )


def batch_of(masks: Sequence[Sequence[bool]]) -> TokenBatch:
    """Return a float64 batch of episodes, each by its tokens' masks."""
    sequence = torch.tensor([i for i, m in enumerate(masks) for _ in m], dtype=torch.int64)
    logp = torch.zeros(len(sequence), dtype=torch.float64)
    mask = torch.tensor([x for m in masks for x in m], dtype=torch.bool)
    return TokenBatch(logp, logp, logp, logp, mask, sequence, sequence, sequence, len(masks))


def aggregated_by_hand(
    aggregation: str, losses: Sequence[Sequence[float]], nominal: int, tokens: int
) -> float:
    """Return the loss of episodes, each given by its unmasked tokens' losses."""
    match aggregation:
        case "token-mean":
            return sum(sum(x) for x in losses) / tokens
        case "seq-mean-token-mean":
            return sum(sum(x) / len(x) for x in losses if x) / nominal
        case "seq-mean-token-sum":
            return sum(sum(x) for x in losses) / nominal
        case _:
            return sum(sum(x) / NORM for x in losses) / nominal


EPISODES = st.lists(st.lists(st.booleans(), min_size=1, max_size=7), min_size=1, max_size=8)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(masks=EPISODES, nominal=st.integers(1, 20), others=st.integers(0, 50), data=st.data())
def test_a_loss_is_added_up_as_its_name_says(
    aggregation: str, masks: list[list[bool]], nominal: int, others: int, data: st.DataObject
) -> None:
    numbers = iter(data.draw(st.lists(st.integers(-9, 9), min_size=56)))
    losses = [[(next(numbers), on) for on in mask] for mask in masks]
    tokens = sum(sum(m) for m in masks) + others
    batch = batch_of(masks)
    weights = token_weights(
        compose(aggregation), batch, nominal_sequences=nominal, total_tokens=tokens
    )
    kept = [[float(x) for x, on in episode if on] for episode in losses]
    flat = torch.tensor([float(x) for episode in losses for x, _ in episode])
    expected = aggregated_by_hand(aggregation, kept, nominal, max(tokens, 1))
    assert pytest.approx(expected, rel=1e-12, abs=1e-12) == float((weights * flat).sum())
    assert not weights[~batch.mask].any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(masks=EPISODES, data=st.data())
def test_a_tokens_weight_is_the_same_in_any_micro_batch(
    aggregation: str, masks: list[list[bool]], data: st.DataObject
) -> None:
    """Exactly, for any order and any split of a minibatch."""
    algorithm = compose(aggregation)
    tokens = sum(sum(m) for m in masks)

    def weights_of(indices: Sequence[int]) -> list[list[float]]:
        batch = batch_of([masks[i] for i in indices])
        found = token_weights(algorithm, batch, nominal_sequences=NOMINAL, total_tokens=tokens)
        return [x.tolist() for x in found.split([len(masks[i]) for i in indices])]

    whole = weights_of(range(len(masks)))
    order = data.draw(st.permutations(range(len(masks))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(masks)))) | {0, len(masks)})
    for start, end in pairwise(cuts):
        part = order[start:end]
        assert [whole[i] for i in part] == weights_of(part)


def test_weights_are_of_the_log_probs_dtype() -> None:
    batch = batch_of([[True] * 3])
    single = attrs.evolve(batch, logp=batch.logp.float())
    for b in (batch, single):
        weights = token_weights(
            compose("seq-mean-token-mean"), b, nominal_sequences=3, total_tokens=3
        )
        assert b.logp.dtype == weights.dtype


def make_model(seed: int = 0, *, tied: bool = True) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return Qwen3ForCausalLM(config).eval()


MODEL = make_model()


def make_learner(budget: int = 10**6, max_grad_norm: float = 1e9) -> Learner:
    config = LearnerConfig(lr=1e-2, max_grad_norm=max_grad_norm, micro_batch_tokens=budget)
    return Learner(Policy(copy.deepcopy(MODEL), TEMPERATURE, lora=None), config)


def make_segment(rng: np.random.Generator, pattern: str) -> Segment:
    """Return a segment of random tokens; ``x`` in the pattern is a sampled one."""
    sampled = np.array([c == "x" for c in pattern])
    logp = np.where(sampled, -1.0, 0.0)
    turn = np.cumsum(np.diff(sampled, prepend=False) & sampled) - 1
    ids = rng.integers(0, VOCABULARY, len(pattern))
    return Segment(ids, sampled, logp, turn.clip(0), np.where(sampled, 0, -1))


# One turn; several with the environment's tokens between; and histories that were rewritten.
PATTERNS = (
    ("..xxxxx",),
    (".x",),
    ("....xxx..xx.x",),
    (".xxxxxxxxxxxxxxxxx",),
    ("...xx..xxx", "..xxxx"),
    ("..x.x.x.x.x.",),
    (".xxx", "...x....xx", ".......x"),
)


def make_trajectories(seed: int = 0) -> list[Trajectory]:
    """Return episodes of every pattern, with log-probs beside the policy's and any advantages."""
    rng = np.random.default_rng(seed)
    episodes = [
        Episode(
            task=f"task-{i // 2}",
            seed=0,
            rollout=i % 2,
            segments=tuple(make_segment(rng, pattern) for pattern in patterns),
            messages=(),
            rewards=(0.0,),
            success=False,
            stop_reason=StopReason.TERMINATED,
        )
        for i, patterns in enumerate(PATTERNS)
    ]
    generator = torch.Generator().manual_seed(seed)
    return [
        Trajectory(
            episode,
            i // 2,
            old._replace(logp=old.logp + 0.2 * torch.randn(old.logp.shape, generator=generator)),
            torch.randn(old.logp.shape, generator=generator),
        )
        for i, (episode, old) in enumerate(
            zip(episodes, make_learner().scores(episodes, KNOWN), strict=True)
        )
    ]


TRAJECTORIES = make_trajectories()


def grads(module: torch.nn.Module) -> Tensor:
    """Return all gradients as one vector in float64."""
    parts = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(parts).double()


def step(
    algorithm: Algorithm, trajectories: Sequence[Trajectory], budget: int = 10**6
) -> tuple[StepReport, Tensor]:
    """Return a fresh learner's report of a step, and its gradient."""
    learner = make_learner(budget)
    report = learner.step(algorithm, trajectories, nominal_sequences=NOMINAL, step=1)
    return report, grads(learner.policy)


def naive_logp(model: Any, segment: Segment) -> tuple[Tensor, Tensor]:
    """Return log-probs and entropies of a segment's sampled tokens: no batch, no padding."""
    ids = torch.from_numpy(segment.ids)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1] / TEMPERATURE
    log_p = torch.log_softmax(logits, -1)
    places = [i - 1 for i, sampled in enumerate(segment.sampled) if sampled]
    own = torch.stack([log_p[i, ids[i + 1]] for i in places])
    return own, torch.stack([-(log_p[i].exp() * log_p[i]).sum() for i in places])


def naive_step(
    aggregation: str,
    trajectories: Sequence[Trajectory],
    per_token: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    every: int = 1,
) -> tuple[float, Tensor]:
    """Return the loss and the gradient, episode by episode, in float64.

    every: of an episode's tokens, how many count once.
    """
    model = copy.deepcopy(MODEL).double()
    tokens = sum(len(range(0, len(t), every)) for t in trajectories)
    total = torch.zeros((), dtype=torch.float64)
    for t in trajectories:
        results = [naive_logp(model, s) for s in t.episode.segments]
        logp, entropy = (torch.cat(x) for x in zip(*results, strict=True))
        losses = list(per_token(logp, t.old.logp.double(), t.advantage.double(), entropy))
        total = total + aggregated_by_hand(aggregation, [losses], NOMINAL, tokens)  # type: ignore[list-item]  # numbers with gradient
    total.backward()
    return total.item(), grads(model)


def clip_by_hand(logp: Tensor, old: Tensor, advantage: Tensor, entropy: Tensor) -> Tensor:
    ratio = (logp - old).exp()
    return torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)


def centred_by_hand(logp: Tensor, old: Tensor, advantage: Tensor, entropy: Tensor) -> Tensor:
    every = torch.cat([t.old.logp for t in TRAJECTORIES]).double().mean()
    return clip_by_hand(logp, old, advantage + (old - every) - 0.5 * old.mean(), entropy)


def repo_r_by_hand(logp: Tensor, old: Tensor, advantage: Tensor, entropy: Tensor) -> Tensor:
    rescaled = advantage - 0.3 * advantage.abs() * logp.detach()
    return clip_by_hand(logp, old, rescaled, entropy)


def bonus_by_hand(logp: Tensor, old: Tensor, advantage: Tensor, entropy: Tensor) -> Tensor:
    return clip_by_hand(logp, old, advantage, entropy) - 0.1 * entropy


def reinforce_by_hand(logp: Tensor, old: Tensor, advantage: Tensor, entropy: Tensor) -> Tensor:
    return -advantage * logp


CASES = {
    "clip": ((Clipped(),), clip_by_hand),
    "reinforce": ((Reinforce(),), reinforce_by_hand),
    "repo-r": ((Clipped(), RepoR(zeta=0.3)), repo_r_by_hand),
    "undetached": ((Clipped(), Leaky()), repo_r_by_hand),
    "statistic": ((Clipped(), Centred()), centred_by_hand),
    "bonus": ((Bonus(),), bonus_by_hand),
}


def assert_same_gradient(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm()) < 3e-6 * float(expected.norm())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("case", CASES)
def test_a_packed_step_is_the_naive_one_episode_by_episode(aggregation: str, case: str) -> None:
    """To float32's round-off: the reference is in float64."""
    parts, by_hand = CASES[case]
    loss, expected = naive_step(aggregation, TRAJECTORIES, by_hand)
    for budget in (1, 30, 10**6):
        report, found = step(compose(aggregation, *parts), TRAJECTORIES, budget)
        assert pytest.approx(loss, rel=1e-5, abs=1e-6) == report.loss
        assert pytest.approx(float(expected.norm()), rel=1e-5) == report.grad_norm
        assert_same_gradient(found, expected)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_gradient_is_the_same_however_a_minibatch_is_split_and_ordered(
    case: str, data: st.DataObject
) -> None:
    aggregation = data.draw(st.sampled_from(AGGREGATIONS))
    budget = data.draw(st.integers(1, 150))
    order = data.draw(st.permutations(TRAJECTORIES))
    algorithm = compose(aggregation, *CASES[case][0])
    report, expected = step(algorithm, TRAJECTORIES)
    again, found = step(algorithm, order, budget)
    assert_same_gradient(found, expected)
    assert pytest.approx(report.loss, rel=1e-5, abs=1e-6) == again.loss
    assert report.tokens == again.tokens
    assert set(report.diagnostics) == set(again.diagnostics)
    for name, value in report.diagnostics.items():
        assert pytest.approx(value, rel=1e-5) == again.diagnostics[name]


@given(order=st.permutations(TRAJECTORIES), budget=st.integers(1, 200))
def test_micro_batches_hold_every_episode_once_and_keep_to_the_budget(
    order: list[Trajectory], budget: int
) -> None:
    episodes = [t.episode for t in order]
    batches = micro_batches(episodes, budget)
    assert list(range(len(episodes))) == sorted(i for batch in batches for i in batch)
    for batch in batches:
        tokens = collate([episodes[i] for i in batch], torch.device("cpu")).ids.numel()
        assert len(batch) == 1 or tokens <= budget


def test_log_probs_come_back_in_the_order_of_the_episodes_whatever_the_budget() -> None:
    episodes = [t.episode for t in TRAJECTORIES]
    model = copy.deepcopy(MODEL).double()
    with torch.no_grad():
        naive = [torch.cat([naive_logp(model, s)[0] for s in e.segments]) for e in episodes]
    for budget in (1, 20, 40, 10**6):
        scores = make_learner(budget).scores(episodes, frozenset())
        for found, expected in zip(scores, naive, strict=True):
            assert torch.float32 == found.logp.dtype
            torch.testing.assert_close(found.logp.double(), expected, rtol=1e-5, atol=1e-5)


def test_diagnostics_are_means_over_the_minibatchs_tokens() -> None:
    report, _ = step(compose("token-mean", Clipped(), RepoR(zeta=5.0)), TRAJECTORIES, 40)
    model = copy.deepcopy(MODEL)
    high = low = kept_high = kept_low = flipped = 0
    for t in TRAJECTORIES:
        with torch.no_grad():
            logp = torch.cat([naive_logp(model, s)[0] for s in t.episode.segments])
        for new, old, a in zip(
            logp.tolist(), t.old.logp.tolist(), t.advantage.tolist(), strict=True
        ):
            turned = a - 5.0 * abs(a) * new  # what the objective sees
            high += turned > 0 and np.exp(new - old) > 1.2
            low += turned < 0 and np.exp(new - old) < 0.8
            kept_high += turned < 0 and np.exp(new - old) > 1.2
            kept_low += turned > 0 and np.exp(new - old) < 0.8
            flipped += a < 0 and new < -0.2
    tokens = sum(len(t) for t in TRAJECTORIES)
    assert tokens == report.tokens
    expected = {
        "objective/clip_high": high,
        "objective/clip_low": low,
        "objective/kept_high": kept_high,
        "objective/kept_low": kept_low,
        "repo_r/flipped": flipped,
    }
    assert pytest.approx(1 - (high + low) / tokens) == report.effective
    assert high * flipped > 0
    assert {k: pytest.approx(v / tokens) for k, v in expected.items()} == report.diagnostics


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_token_without_advantage_contributes_nothing(aggregation: str) -> None:
    """But is counted: the others' weights are what they were."""
    silenced = [
        attrs.evolve(t, advantage=t.advantage * (torch.arange(len(t)) % 2)) for t in TRAJECTORIES
    ]
    odd_only = naive_step(
        aggregation,
        TRAJECTORIES,
        lambda logp, old, a, h: clip_by_hand(logp, old, a, h) * (torch.arange(len(logp)) % 2),
    )
    _, found = step(compose(aggregation), silenced)
    assert_same_gradient(found, odd_only[1])
    nothing = [attrs.evolve(t, advantage=t.advantage * 0) for t in TRAJECTORIES]
    report, found = step(compose(aggregation), nothing)
    assert (0.0, 0.0, False) == (report.loss, report.grad_norm, report.skipped)
    assert not found.any()


@frozen(kw_only=True)
class NanWhereMasked(Objective):
    """What an objective may return for masked tokens: anything."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        fine = Clipped()(batch)
        return fine + torch.zeros_like(fine).masked_fill(~batch.mask, float("nan"))

    def diagnostics(self, batch: TokenBatch) -> dict[str, Tensor]:
        fine = torch.ones_like(batch.advantage)
        return {"loss": fine.masked_fill(~batch.mask, float("nan"))}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_masked_token_contributes_nothing_whatever_its_loss(
    monkeypatch: pytest.MonkeyPatch, aggregation: str
) -> None:
    """Nor is it counted."""
    real = learner_module.token_batch

    def masking(trajectories: Sequence[Trajectory], *rest: Any) -> TokenBatch:
        mask = torch.cat([torch.arange(len(t)) % 2 == 0 for t in trajectories])
        return attrs.evolve(real(trajectories, *rest), mask=mask)

    monkeypatch.setattr(learner_module, "token_batch", masking)
    loss, expected = naive_step(
        aggregation, TRAJECTORIES, lambda *values: clip_by_hand(*values)[::2], every=2
    )
    report, found = step(compose(aggregation, NanWhereMasked()), TRAJECTORIES, 40)
    assert pytest.approx(loss, rel=1e-5, abs=1e-6) == report.loss
    assert {
        "objective/loss": 1.0
    } == report.diagnostics  # a name of its own, whatever else is called so
    assert_same_gradient(found, expected)


@frozen(kw_only=True)
class Broken(Objective):
    """A loss whose gradient is not finite where the advantage is above a bound."""

    factor: float

    def __call__(self, batch: TokenBatch) -> Tensor:
        return Clipped()(batch) * torch.where(batch.turn == 2, self.factor, 1.0)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("budget", [1, 10**6])
def test_a_step_without_a_finite_gradient_is_skipped_and_changes_nothing(
    factor: float, budget: int
) -> None:
    learner, twin = (make_learner(budget, max_grad_norm=1.0) for _ in range(2))
    good = compose("token-mean")

    def take(who: Learner, algorithm: Algorithm) -> StepReport:
        return who.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=0)

    take(learner, good)
    take(twin, good)
    before = [p.detach().clone() for p in learner.policy.parameters()]
    report = take(learner, compose("token-mean", Broken(factor=factor)))
    assert report.skipped
    assert not np.isfinite(report.grad_norm)
    for old, new in zip(before, learner.policy.parameters(), strict=True):
        assert torch.equal(old, new)
    # Nor is anything left behind, in the optimizer or in gradients, that a next step would meet.
    assert take(twin, good) == take(learner, good)
    for a, b in zip(learner.policy.parameters(), twin.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_scaled_down_to_the_norm_and_reported_as_they_were() -> None:
    algorithm = compose("seq-mean-token-sum")
    unclipped, gradient = step(algorithm, TRAJECTORIES)
    learner = make_learner(max_grad_norm=0.01)
    report = learner.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=0)
    assert 0.01 < unclipped.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert unclipped.grad_norm == report.grad_norm
    assert pytest.approx(0.01, rel=1e-3) == float(grads(learner.policy).norm())
    assert not report.skipped


def test_a_step_changes_the_policy_towards_its_advantages() -> None:
    learner = make_learner(max_grad_norm=1.0)
    algorithm = compose("token-mean", Reinforce())

    def gain() -> float:
        scores = learner.scores([t.episode for t in TRAJECTORIES], frozenset())
        pairs = zip(scores, TRAJECTORIES, strict=True)
        return sum(float((x.logp * t.advantage).sum()) for x, t in pairs)

    gains = [gain()]
    for _ in range(3):
        learner.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=0)
        gains.append(gain())
    assert gains == sorted(gains)
    assert gains[-1] > gains[0] + 1
