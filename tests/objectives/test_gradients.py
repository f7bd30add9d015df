"""Gradients of whole compositions on a table of logits, by finite differences of plain Python.

The policy is a bigram table in float64; the learner, its aggregation, transforms, objectives and
regularizers are the real ones. The reference shares no code with them: loops over floats, with what
carries no gradient (transformed advantages, an episode's ratio) held at the base point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

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
from isentrope.learner.head import TokenScores
from isentrope.learner.learner import Learner
from isentrope.learner.packing import Inputs, Trajectory, collate
from isentrope_objectives.advantages import LeaveOneOut
from isentrope_objectives.surrogates import Clipped, EntropyBonus, Reinforce, SequenceClipped
from isentrope_objectives.transforms import Decorrelate, RepoD, RepoR

VOCABULARY, NOMINAL, NORM, STEP = 4, 7, 5, 1e-5
Table = list[list[float]]


class Bigram(nn.Module):
    """The token before decides the distribution of the next: one row of logits each."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.device = table.device

    def flops(self, inputs: Inputs) -> float:
        return 0.0 * len(inputs.ids)

    def trainable(self) -> list[nn.Parameter]:
        return [self.table]

    def forward(self, inputs: Inputs, *, needs: frozenset[str] = frozenset()) -> TokenScores:
        state = inputs.ids[inputs.state]
        log_p = torch.log_softmax(self.table, -1)[state]
        logp = log_p.gather(-1, inputs.target[:, None])[:, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        with torch.no_grad():
            pushes = log_p.exp() ** 2 * (log_p + entropy[:, None])
            response = pushes.sum(-1) - logp.exp() * (logp + entropy)
        return TokenScores(logp, entropy, response)


class Token(NamedTuple):
    """A sampled token as the reference sees it."""

    state: int
    action: int
    old: float
    advantage: float
    counts: bool


# Ids of each episode; the first is the prompt, all others are sampled. And which of them count.
EPISODES = (
    ([0, 1, 2, 3, 3, 1], [1, 1, 0, 1, 1]),
    ([2, 0], [1]),
    ([3, 2, 1, 0, 0, 3, 2, 2], [1, 1, 1, 1, 0, 1, 1]),
    ([1, 1, 3], [0, 0]),
    ([0, 3, 0, 2], [0, 1, 1]),
    ([2, 3, 1, 2, 1], [1, 1, 1, 1]),
)


def make_case(seed: int) -> tuple[Tensor, Tensor, list[Trajectory], list[list[Token]]]:
    """Return the table, the old one, trajectories for the learner, and the same for loops."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    old = table + 0.35 * torch.randn(table.shape, generator=generator, dtype=torch.float64)
    trajectories, tokens = [], []
    for i, (ids, counts) in enumerate(EPISODES):
        sampled = np.arange(len(ids)) > 0
        turn = np.where(sampled, 0, -1)
        segment = Segment(np.array(ids), sampled, np.where(sampled, -1.0, 0.0), sampled * 0, turn)
        episode = Episode(
            task=f"task-{i // 2}",
            seed=0,
            rollout=i,
            segments=(segment,),
            messages=(),
            rewards=(0.0,),
            success=False,
            stop_reason=StopReason.TERMINATED,
        )
        advantage = torch.randn(len(counts), generator=generator, dtype=torch.float64)
        advantage[~torch.tensor(counts, dtype=torch.bool)] = 1e3  # nobody must see it
        if i == 2:
            advantage[1] = 0.0
        with torch.no_grad():
            scores = Bigram(old)(collate([episode], torch.device("cpu")))
        trajectories.append(Trajectory(episode, i // 2, scores, advantage))
        rows = zip(ids, ids[1:], scores.logp.tolist(), advantage.tolist(), counts, strict=False)
        tokens.append([Token(s, a, x, b, bool(on)) for s, a, x, b, on in rows])
    return table, old, trajectories, tokens


TABLE, OLD, TRAJECTORIES, TOKENS = make_case(360)
COUNTED = [t for episode in TOKENS for t in episode if t.counts]


def log_p(table: Table, state: int, action: int) -> float:
    return table[state][action] - math.log(sum(math.exp(z) for z in table[state]))


def entropy(table: Table, state: int) -> float:
    logs = [log_p(table, state, a) for a in range(VOCABULARY)]
    return -sum(math.exp(x) * x for x in logs)


def surprise(table: Table, token: Token) -> float:
    return log_p(table, token.state, token.action) + entropy(table, token.state)


# Transforms: the new advantage of a token, given the table that it is held at.
def untransformed(token: Token, base: Table) -> float:
    return token.advantage


def repo_r(zeta: float, floor: float = -math.inf, of: str = "present") -> Callable[..., float]:
    def by_hand(token: Token, base: Table) -> float:
        x = token.old if of == "old" else log_p(base, token.state, token.action)
        scale = 1 - zeta * x if token.advantage > 0 else 1 + zeta * x
        return token.advantage * (scale if scale > floor else floor)

    return by_hand


def repo_d(zeta: float, centred: bool) -> Callable[..., float]:
    def by_hand(token: Token, base: Table) -> float:
        if centred:
            return token.advantage - zeta * surprise(base, token)
        return token.advantage - zeta * log_p(base, token.state, token.action)

    return by_hand


def decorrelated(token: Token, base: Table, aggregation: str = "token-mean") -> float:
    return token.advantage - zeta_star(aggregation) * surprise(base, token)


@cache
def zeta_star(aggregation: str) -> float:
    """As the design has it: E[A (pi L - S)] / E[pi L^2 - L S], S = sum_a pi_a^2 L_a, at the old.

    By the tokens' weights in the loss.
    """
    table, above, below = OLD.tolist(), 0.0, 0.0
    for episode in TOKENS:
        counted = [t for t in episode if t.counts]
        for token in counted:
            p, own = math.exp(token.old), surprise(table, token)
            inner = 0.0
            for a in range(VOCABULARY):
                other = token._replace(action=a)
                inner += math.exp(2 * log_p(table, token.state, a)) * surprise(table, other)
            weight = 1 / len(counted) if aggregation == "seq-mean-token-mean" else 1.0
            above += weight * token.advantage * (p * own - inner)
            below += weight * (p * own**2 - own * inner)
    return above / below


def repo_r_then_d(token: Token, base: Table) -> float:
    return repo_d(0.2, True)(token._replace(advantage=repo_r(0.3)(token, base)), base)


TRANSFORMS: dict[str, tuple[list[AdvantageTransform], Callable[[Token, Table], float]]] = {
    "none": ([], untransformed),
    "repo-r": ([RepoR(zeta=0.3)], repo_r(0.3)),
    "repo-r, negative": ([RepoR(zeta=-0.25)], repo_r(-0.25)),
    "repo-r, floor": ([RepoR(zeta=0.8, floor=0.1)], repo_r(0.8, floor=0.1)),
    "repo-r, negative, floor": ([RepoR(zeta=-0.7, floor=0.0)], repo_r(-0.7, floor=0.0)),
    "repo-r, old": ([RepoR(zeta=0.3, of="old")], repo_r(0.3, of="old")),
    "repo-d, raw": ([RepoD(zeta=0.4, centred=False)], repo_d(0.4, centred=False)),
    "repo-d, centred": ([RepoD(zeta=0.4)], repo_d(0.4, centred=True)),
    "repo-d, negative": ([RepoD(zeta=-0.4)], repo_d(-0.4, centred=True)),
    "decorrelate": ([Decorrelate()], decorrelated),
    "repo-r, repo-d": ([RepoR(zeta=0.3), RepoD(zeta=0.2)], repo_r_then_d),
}


# Surrogates: a token's loss, of its log-prob, that at the base, the episode's ratio, and A'.
def reinforce(x: float, base: float, token: Token, of_episode: float, a: float) -> float:
    return -a * x


def clip_by_cases(ratio: float, a: float, low: float, high: float) -> float:
    if a > 0:
        return -a * (ratio if ratio < 1 + high else 1 + high)
    return -a * (ratio if ratio > 1 - low else 1 - low)


def clipped(low: float, high: float) -> Callable[..., float]:
    def by_hand(x: float, base: float, token: Token, of_episode: float, a: float) -> float:
        return clip_by_cases(math.exp(x - token.old), a, low, high)

    return by_hand


def sequence_clipped(low: float, high: float) -> Callable[..., float]:
    def by_hand(x: float, base: float, token: Token, of_episode: float, a: float) -> float:
        return clip_by_cases(of_episode * math.exp(x - base), a, low, high)

    return by_hand


OBJECTIVES: dict[str, tuple[Objective, Callable[..., float], tuple[float, float] | None]] = {
    "reinforce": (Reinforce(), reinforce, None),
    "clipped": (Clipped(eps_low=0.2, eps_high=0.2), clipped(0.2, 0.2), (0.2, 0.2)),
    "clipped, asymmetric": (Clipped(eps_low=0.1, eps_high=0.3), clipped(0.1, 0.3), (0.1, 0.3)),
    "sequence": (
        SequenceClipped(eps_low=0.05, eps_high=0.04),
        sequence_clipped(0.05, 0.04),
        (0.05, 0.04),
    ),
}
BONUSES = {"alone": (), "bonus": (0.3,), "penalty and bonus": (-0.2, 0.05)}


def ratio_of(episode: Sequence[Token], base: Table) -> float:
    counted = [t for t in episode if t.counts]
    moved = [log_p(base, t.state, t.action) - t.old for t in counted]
    return math.exp(sum(moved) / len(moved)) if moved else 1.0


def aggregated(aggregation: str, losses: Sequence[Sequence[float]]) -> float:
    """Return the loss of episodes, each given by the losses of its tokens that count."""
    match aggregation:
        case "token-mean":
            return sum(sum(x) for x in losses) / len(COUNTED)
        case "seq-mean-token-mean":
            return sum(sum(x) / len(x) for x in losses if x) / NOMINAL
        case "seq-mean-token-sum":
            return sum(sum(x) for x in losses) / NOMINAL
        case _:
            return sum(sum(x) for x in losses) / NORM / NOMINAL


def advantages_at(
    base: Table, transform: Callable[[Token, Table], float]
) -> list[list[tuple[Token, float, float, float]]]:
    """Return of each token that counts what stays as it is: log-prob, episode's ratio, A'."""
    return [
        [
            (t, log_p(base, t.state, t.action), ratio_of(episode, base), transform(t, base))
            for t in episode
            if t.counts
        ]
        for episode in TOKENS
    ]


def losses_by_hand(
    table: Table,
    held: Sequence[Sequence[tuple[Token, float, float, float]]],
    per_token: Callable[..., float],
    coefs: Sequence[float],
) -> list[float]:
    """Return the loss under each aggregation."""
    totals = [math.log(sum(math.exp(z) for z in row)) for row in table]
    logs = [[z - total for z in row] for row, total in zip(table, totals, strict=True)]
    entropies = [-sum(math.exp(x) * x for x in row) for row in logs]
    coef = sum(coefs)
    losses = [
        [
            per_token(logs[t.state][t.action], base, t, of_episode, a) - coef * entropies[t.state]
            for t, base, of_episode, a in episode
        ]
        for episode in held
    ]
    return [aggregated(name, losses) for name in AGGREGATIONS]


def differences(table: Table, losses: Callable[[Table], list[float]]) -> Iterator[list[float]]:
    """Yield the losses' derivatives by each logit: central differences."""
    for s in range(VOCABULARY):
        for a in range(VOCABULARY):
            around = []
            for step in (STEP, -STEP):
                moved = [list(row) for row in table]
                moved[s][a] += step
                around.append(losses(moved))
            yield [(up - down) / (2 * STEP) for up, down in zip(*around, strict=True)]


def learners_step(monkeypatch: pytest.MonkeyPatch, algorithm: Algorithm) -> tuple[float, Tensor]:
    """Return loss and gradient of a real step, in micro-batches of a few episodes."""
    real = learner_module.token_batch

    def masking(trajectories: Sequence[Trajectory], *rest: Any) -> TokenBatch:
        counts = [on for t in trajectories for on in EPISODES[t.episode.rollout][1]]
        return attrs.evolve(real(trajectories, *rest), mask=torch.tensor(counts) == 1)

    policy: Any = Bigram(TABLE)
    learner = Learner(policy, LearnerConfig(max_grad_norm=1e9, micro_batch_tokens=18))
    with monkeypatch.context() as patch:
        patch.setattr(learner_module, "token_batch", masking)
        report = learner.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=1)
    assert len(COUNTED) == report.tokens
    return report.loss, policy.table.grad


def test_no_token_is_near_a_kink_and_every_case_of_the_clip_occurs() -> None:
    """What makes the differences below derivatives, and worth taking."""
    base = TABLE.tolist()
    for name, (_, _, bounds) in OBJECTIVES.items():
        if bounds is None:
            continue
        for transform, (_, by_hand) in TRANSFORMS.items():
            seen = set()
            for episode in advantages_at(base, by_hand):
                for token, x, of_episode, a in episode:
                    ratio = of_episode if name == "sequence" else math.exp(x - token.old)
                    assert all(abs(ratio - b) > 1e-3 for b in (1 - bounds[0], 1 + bounds[1]))
                    side = (ratio > 1 + bounds[1]) - (ratio < 1 - bounds[0])
                    seen.add((side, a > 0))
            assert {(1, True), (-1, False)} <= seen, (name, transform)  # clipped, above and below
            assert transform != "none" or len(seen) == 6


def test_the_floor_holds_some_tokens_and_leaves_others() -> None:
    base = TABLE.tolist()
    for zeta, floor in ((0.8, 0.1), (-0.7, 0.0)):
        pairs = [(repo_r(zeta)(t, base), repo_r(zeta, floor)(t, base)) for t in COUNTED]
        assert {True, False} == {free == held for free, held in pairs}


def written_out(
    new_advantage: Callable[[Token, Table], float],
    per_token: Callable[..., float],
    coefs: Sequence[float],
) -> tuple[list[float], list[tuple[float, ...]]]:
    """Return loss and slopes under each aggregation."""
    base = TABLE.tolist()
    held = advantages_at(base, new_advantage)

    def losses(table: Table) -> list[float]:
        return losses_by_hand(table, held, per_token, coefs)

    return losses(base), list(zip(*differences(base, losses), strict=True))


@pytest.mark.parametrize("bonus", BONUSES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_gradient_is_that_of_the_loss_written_out(
    monkeypatch: pytest.MonkeyPatch, transform: str, objective: str, bonus: str
) -> None:
    """Under every aggregation."""
    parts, new_advantage = TRANSFORMS[transform]
    surrogate, per_token, _ = OBJECTIVES[objective]
    by_weight = transform == "decorrelate"
    written = [
        written_out(
            partial(new_advantage, aggregation=name) if by_weight else new_advantage,
            per_token,
            BONUSES[bonus],
        )
        for name in (AGGREGATIONS if by_weight else AGGREGATIONS[:1])
    ]
    for i, aggregation in enumerate(AGGREGATIONS):
        losses, slopes = written[i if by_weight else 0]
        loss, slope = losses[i], slopes[i]
        algorithm = Algorithm(
            advantage=LeaveOneOut(),
            transforms=parts,
            objective=surrogate,
            regularizers=[EntropyBonus(coef=c) for c in BONUSES[bonus]],
            aggregation=aggregation,  # type: ignore[arg-type]  # one of them
            norm_length=NORM if aggregation == "seq-mean-token-sum-norm" else None,
        )
        found, gradient = learners_step(monkeypatch, algorithm)
        assert pytest.approx(loss, rel=1e-5, abs=1e-6) == found  # logged in float32
        scale = max(abs(x) for x in slope)
        assert pytest.approx(list(slope), rel=1e-7, abs=1e-8 * scale) == gradient.flatten().tolist()
