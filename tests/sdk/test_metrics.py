"""What an iteration logs, recomputed: from the run's own episodes, by numpy, by hand."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isentrope
from isentrope import Algorithm, Episode, Run, Segment, Status, recipe
from isentrope.episodes import StopReason
from isentrope.learner.experience import Experience, experience, usable
from isentrope.learner.head import KNOWN, TokenScores
from isentrope.learner.learner import StepReport
from isentrope.learner.metrics import learning_metrics
from isentrope.learner.packing import Trajectory
from isentrope.learner.probe import Probe
from isentrope_objectives.advantages import GroupCentered, LeaveOneOut
from isentrope_objectives.transforms import Decorrelate, RepoD
from tests.conftest import MEASURED, SMALL_MODEL
from tests.sdk.test_aggregation import NOMINAL, TRAJECTORIES, make_learner, naive_logp

OPTIONS: dict[str, Any] = {
    "env": "arithmetic",
    "iterations": 2,
    "model": SMALL_MODEL,
    "rollout": {"tasks": 8, "group": 8, "max_tokens": 24},
    "learner": {"lr": 2e-3, "probe": 64},
}
PASSES = {"epochs": 2, "minibatch": 16}
RUNS: dict[str, Any] = {
    "grpo": recipe("grpo", **PASSES),
    "repo-d": recipe("repo-d", **PASSES),
    "grpo-bonus": recipe("grpo-bonus", **PASSES),
    "exact": recipe("repo-r", **PASSES, entropy_ladder={"target": {"estimator": "exact"}}),
    "rloo": recipe("rloo"),
}
ALWAYS = {
    "iteration",
    "reward",
    "success",
    "entropy",
    "tokens",
    "episodes",
    "episodes_failed",
    "episodes_empty",
    "episodes_learnt",
    "groups_short",
    "groups_zero",
    "steps",
    "steps_skipped",
    "loss",
    "grad_norm",
    "tokens_effective",
    "mismatch_mean",
    "mismatch_p99",
    "mismatch_max",
    "advantage_logp_covariance",
    "advantage_logp_correlation",
    *(f"ratio/{place}" for place in ("min", "p01", "p50", "p99", "max")),
    *(
        f"rounding/{kind}_{what}"
        for kind in ("bf16", "fp16")
        for what in ("bias", "predicted_bias", "clip_changed")
    ),
    *(
        f"probe/{what}"
        for what in (
            "entropy",
            "entropy_p10",
            "entropy_p50",
            "entropy_p90",
            "entropy_change",
            "predicted_change",
            "predicted_change_transformed",
        )
    ),
    *(f"seconds/{phase}" for phase in ("rollout", "recompute", "probe", "learn", "publish")),
}
"""Finite numbers in every iteration that learns something, whatever the algorithm."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """One short run with each algorithm, all from one seed, so that their first episodes agree."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        case: isentrope.train(OPTIONS, algorithm=algorithm, out=folder / case)
        for case, algorithm in RUNS.items()
    }


def rewards_of_groups(run: Run, iteration: int) -> list[list[float]]:
    groups = defaultdict(list)
    for e in run.episodes:
        if e["iteration"] == iteration and e["status"] == "ok" and e["tokens"]:
            groups[e["task"], e["seed"]].append(e["reward"])
    return list(groups.values())


@pytest.mark.parametrize("case", RUNS)
def test_every_iteration_logs_all_there_is_as_finite_numbers(
    runs: Mapping[str, Run], case: str
) -> None:
    for metrics in runs[case].metrics:
        assert metrics["steps"] > 0
        assert ALWAYS - set(metrics) == set()
        assert set(RUNS[case].knobs()) <= set(metrics)
        for name, value in metrics.items():
            if value is None:
                assert name == "stopped" or name.startswith("entropy_")
            else:
                assert math.isfinite(value), name


@pytest.mark.parametrize("case", RUNS)
def test_the_exact_entropy_is_measured_where_it_is_needed_and_nowhere_else(
    runs: Mapping[str, Run], case: str
) -> None:
    for metrics in runs[case].metrics:
        if case in ("grpo", "rloo"):
            assert metrics["entropy_exact"] is None
        else:
            assert 0.5 * metrics["entropy"] < metrics["entropy_exact"] < 2 * metrics["entropy"]
    first, second = runs[case].metrics
    held = {"grpo": None, "rloo": None, "exact": None}.get(case, first["entropy"])
    assert held == second["entropy_target"]
    held_exactly = first["entropy_exact"] if case == "exact" else None
    assert held_exactly == second["entropy_exact_target"]


@pytest.mark.parametrize("case", ["repo-d", "grpo-bonus"])
def test_a_probe_of_all_that_was_collected_measures_the_same_exact_entropy(
    runs: Mapping[str, Run], case: str
) -> None:
    for metrics in runs[case].metrics:
        assert 64 == metrics["episodes_learnt"]
        assert pytest.approx(metrics["entropy_exact"], rel=1e-5) == metrics["probe/entropy"]
        assert metrics["probe/entropy_p10"] < metrics["probe/entropy_p50"]
        assert metrics["probe/entropy_p50"] < metrics["probe/entropy_p90"]


@pytest.mark.parametrize("case", RUNS)
def test_groups_of_equal_rewards_are_dropped_or_kept_as_the_algorithm_says(
    runs: Mapping[str, Run], case: str
) -> None:
    equal = learnt = 0
    for i, metrics in enumerate(runs[case].metrics):
        groups = rewards_of_groups(runs[case], i)
        kept = [g for g in groups if min(g) < max(g) or case in ("repo-d", "grpo-bonus")]
        assert sum(map(len, kept)) == metrics["episodes_learnt"]
        assert len(groups) - len(kept) == metrics["groups_zero"]
        assert 0 == metrics["groups_short"] == metrics["episodes_failed"]
        equal += sum(min(g) == max(g) for g in groups)
        learnt += len(kept)
    assert equal > 0
    assert learnt > 0


def test_one_seed_collects_the_same_first_episodes_whatever_learns_from_them(
    runs: Mapping[str, Run],
) -> None:
    firsts = [run.metrics[0] for run in runs.values()]
    for name in ("reward", "entropy", "tokens", "mismatch_mean"):
        assert 1 == len({first[name] for first in firsts})
    for run in runs.values():
        assert runs["grpo"].episodes[:64] == run.episodes[:64]


@pytest.mark.parametrize("case", ["grpo", "exact", "repo-d"])
def test_tokens_are_effective_unless_the_clip_took_their_gradient(
    runs: Mapping[str, Run], case: str
) -> None:
    """REPO-D's advantages are never 0, not even where all rewards are equal."""
    for metrics in runs[case].metrics:
        clipped = metrics["objective/clip_high"] + metrics["objective/clip_low"]
        assert clipped > 0
        assert pytest.approx(1 - clipped, abs=1e-6) == metrics["tokens_effective"]


def test_where_rewards_are_equal_a_bonus_leaves_log_probs_without_gradient(
    runs: Mapping[str, Run],
) -> None:
    """Only the entropy has one there, and a token is counted by its log-prob's."""
    for i, metrics in enumerate(runs["grpo-bonus"].metrics):
        tokens: dict[bool, int] = {True: 0, False: 0}
        rewards = defaultdict(set)
        episodes = [e for e in runs["grpo-bonus"].episodes if e["iteration"] == i]
        for e in episodes:
            rewards[e["task"], e["seed"]].add(e["reward"])
        for e in episodes:
            tokens[len(rewards[e["task"], e["seed"]]) == 1] += e["tokens"]
        clipped = metrics["objective/clip_high"] + metrics["objective/clip_low"]
        silent = tokens[True] / (tokens[True] + tokens[False])
        assert silent > 0
        assert pytest.approx(1 - clipped - silent, abs=1e-6) == metrics["tokens_effective"]


def test_strictly_on_policy_ratios_are_one_and_every_token_is_effective(
    runs: Mapping[str, Run],
) -> None:
    for metrics in runs["rloo"].metrics:
        assert 1 == metrics["steps"]
        for place in ("min", "p01", "p50", "p99", "max"):
            assert pytest.approx(1.0, abs=1e-3) == metrics[f"ratio/{place}"]
        assert 1.0 == metrics["tokens_effective"]
        assert 0.0 == metrics["rounding/bf16_clip_changed"]


def test_off_policy_ratios_spread_about_one(runs: Mapping[str, Run]) -> None:
    for metrics in runs["grpo"].metrics:
        places = [metrics[f"ratio/{place}"] for place in ("min", "p01", "p50", "p99", "max")]
        assert sorted(places) == places
        assert 0 < places[0] < 0.8
        assert places[-1] > 1.2
        assert pytest.approx(1.0, abs=0.2) == places[2]


def test_a_moved_knob_does_what_one_does_that_is_configured_so(
    runs: Mapping[str, Run], tmp_path: Any
) -> None:
    bounds = {"eps_low": 0.01, "eps_high": 0.02}
    schedules = [
        {"id": "schedule", "knob": f"objective.{name}", "schedule": value}
        for name, value in bounds.items()
    ]
    moved, configured = (
        isentrope.train(OPTIONS, algorithm=algorithm, iterations=1, out=tmp_path / str(i))
        for i, algorithm in enumerate(
            [
                recipe("grpo", **PASSES, controllers=schedules),
                recipe("grpo", **PASSES, objective=bounds),
            ]
        )
    )
    first, second = (
        {k: v for k, v in run.metrics[0].items() if not k.startswith(MEASURED)}
        for run in (moved, configured)
    )
    assert first == second
    assert first["objective/clip_low"] > runs["grpo"].metrics[0]["objective/clip_low"]


def test_no_probe_logs_nothing_of_it_and_changes_nothing(
    runs: Mapping[str, Run], tmp_path: Any
) -> None:
    options = {**OPTIONS, "learner": {"lr": 2e-3, "probe": 0}}
    run = isentrope.train(options, algorithm=RUNS["grpo"], out=tmp_path / "run")
    for with_probe, without in zip(runs["grpo"].metrics, run.metrics, strict=True):
        expected = {k: v for k, v in with_probe.items() if not k.startswith(("probe/", *MEASURED))}
        assert expected == {k: v for k, v in without.items() if not k.startswith(MEASURED)}


# ---------------------------------------------------------------- what is learnt from


def episode(task: str, reward: float, seed: int = 0, tokens: int = 2, **changes: Any) -> Episode:
    sampled = np.arange(tokens + 1) > 0
    segment = Segment(np.arange(tokens + 1), sampled, -1.0 * sampled, 0 * sampled, 0 * sampled)
    return Episode(
        task, seed, 0, (segment,), (), (reward,), False, StopReason.TERMINATED, **changes
    )


def scores_of(episodes: Sequence[Episode]) -> list[TokenScores]:
    rng = torch.Generator().manual_seed(0)
    return [TokenScores(-torch.rand(e.sampled_tokens, generator=rng), None, None) for e in episodes]


def learnt_from(episodes: Sequence[Episode], keep: bool = False) -> Experience:
    return experience(episodes, scores_of(episodes), GroupCentered(), keep_zero_groups=keep)


rollouts = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.sampled_from([0.0, 0.1, 1.0])),
    max_size=14,
)


@given(drawn=rollouts, keep=st.booleans())
def test_episodes_are_grouped_by_task_and_seed_and_each_is_learnt_from_or_counted_out(
    drawn: list[tuple[str, int, float]], keep: bool
) -> None:
    episodes = [episode(task, reward, seed, tokens=i % 3 + 1) for i, (task, seed, reward) in
                enumerate(drawn)]  # fmt: skip
    groups = defaultdict(list)
    for task, seed, reward in drawn:
        groups[task, seed].append(reward)
    found = learnt_from(episodes, keep)
    assert sum(len(g) == 1 for g in groups.values()) == found.groups_short
    equal = {key for key, g in groups.items() if len(g) > 1 and len(set(g)) == 1}
    assert (0 if keep else len(equal)) == found.groups_zero
    dropped = {key for key, g in groups.items() if len(g) == 1} | (set() if keep else equal)
    expected = [e for e in episodes if (e.task, e.seed) not in dropped]
    assert len(expected) == len(found.trajectories)
    assert {id(e) for e in expected} == {id(t.episode) for t in found.trajectories}
    numbers = {(t.episode.task, t.episode.seed): t.group for t in found.trajectories}
    assert len(numbers) == len(set(numbers.values()))
    for t in found.trajectories:
        own = groups[t.episode.task, t.episode.seed]
        advantage = t.episode.reward - sum(own) / len(own)
        assert numbers[t.episode.task, t.episode.seed] == t.group
        assert [pytest.approx(advantage, abs=1e-6)] * t.episode.sampled_tokens == (
            t.advantage.tolist()
        )
        assert len(t) == t.episode.sampled_tokens


def test_equal_rewards_that_arithmetic_would_tell_apart_are_equal() -> None:
    """0.1's mean over three is not 0.1, so the advantages are not 0."""
    episodes = [episode("a", 0.1) for _ in range(3)]
    assert LeaveOneOut()(torch.full((3,), 0.1, dtype=torch.float64), episodes).any()
    assert (1, ()) == (learnt_from(episodes).groups_zero, learnt_from(episodes).trajectories)
    assert (0, 3) == (
        learnt_from(episodes, keep=True).groups_zero,
        len(learnt_from(episodes, keep=True).trajectories),
    )


def test_what_failed_or_said_nothing_is_not_learnt_from_and_may_leave_a_singleton() -> None:
    episodes = [
        episode("a", 0.0),
        episode("a", 1.0, status=Status.ENV_ERROR),
        episode("a", 1.0, tokens=0),
        episode("b", 0.0),
        episode("b", 1.0),
    ]
    good = usable(episodes)
    assert [episodes[0], episodes[3], episodes[4]] == good
    found = learnt_from(good)
    assert (1, 0) == (found.groups_short, found.groups_zero)
    assert ["b", "b"] == [t.episode.task for t in found.trajectories]


def test_a_singleton_is_dropped_even_where_zero_groups_are_kept() -> None:
    found = learnt_from([episode("a", 1.0)], keep=True)
    assert (1, 0, ()) == (found.groups_short, found.groups_zero, found.trajectories)


# ---------------------------------------------------------------- what the steps did


def report(tokens: int, **changes: Any) -> StepReport:
    values = {
        "loss": 0.5,
        "grad_norm": 2.0,
        "skipped": False,
        "effective": 1.0,
        "diagnostics": {},
        "logp": torch.zeros(tokens),
        "old_logp": torch.zeros(tokens),
    }
    return StepReport(tokens=tokens, **{**values, **changes})


def learnt(tokens: int = 6) -> Experience:
    rng = torch.Generator().manual_seed(1)
    logp, advantage = -torch.rand(2, tokens, generator=rng)
    old = TokenScores(logp, None, None)
    half = tokens // 2
    parts = [TokenScores(old.logp[s], None, None) for s in (slice(half), slice(half, None))]
    return Experience(
        tuple(
            Trajectory(episode("a", 0.0, tokens=len(p.logp)), 0, p, a)
            for p, a in zip(parts, advantage.split(half), strict=True)
        ),
        1, 5, 2, 3, 4,
    )  # fmt: skip


def test_shares_of_tokens_are_weighed_by_tokens_and_losses_by_steps() -> None:
    metrics = learning_metrics(
        learnt(),
        [
            report(1, loss=1.0, effective=1.0, diagnostics={"objective/clip_high": 1.0}),
            report(
                3, loss=3.0, effective=0.2, diagnostics={"objective/clip_high": 0.0, "x/y": 1.0}
            ),
            report(4, loss=5.0, skipped=True, grad_norm=8.0, effective=0.5),
        ],
    )
    assert (3, 1, 3.0, 4.0) == tuple(
        metrics[k] for k in ("steps", "steps_skipped", "loss", "grad_norm")
    )
    assert pytest.approx((1 + 0.6 + 2) / 8) == metrics["tokens_effective"]
    assert pytest.approx(1 / 8) == metrics["objective/clip_high"]
    assert pytest.approx(3 / 8) == metrics["x/y"]
    left_out = {"episodes_failed": 1, "episodes_cancelled": 5, "episodes_empty": 2}
    assert metrics.items() >= {**left_out, "groups_short": 3, "groups_zero": 4}.items()
    assert 2 == metrics["episodes_learnt"]


def test_without_a_step_there_is_no_mean_of_any() -> None:
    nothing = Experience((), 0, 0, 0, 1, 2)
    metrics = learning_metrics(nothing, [])
    assert (0, 0, None, None) == tuple(
        metrics[k] for k in ("steps", "episodes_learnt", "loss", "grad_norm")
    )
    assert (1, 2) == (metrics["groups_short"], metrics["groups_zero"])
    assert "tokens_effective" not in metrics


def test_advantage_and_log_prob_are_compared_as_numpy_does() -> None:
    made = learnt(20)
    advantage = torch.cat([t.advantage for t in made.trajectories]).double().numpy()
    logp = torch.cat([t.old.logp for t in made.trajectories]).double().numpy()
    metrics = learning_metrics(made, [report(1)])
    expected = np.cov(advantage, logp, bias=True)[0, 1], np.corrcoef(advantage, logp)[0, 1]
    assert pytest.approx(expected) == (
        metrics["advantage_logp_covariance"],
        metrics["advantage_logp_correlation"],
    )


def test_where_all_advantages_are_equal_there_is_no_correlation() -> None:
    made = learnt()
    flat = tuple(attrs.evolve(t, advantage=torch.ones(len(t))) for t in made.trajectories)
    metrics = learning_metrics(attrs.evolve(made, trajectories=flat), [report(1)])
    assert metrics["advantage_logp_correlation"] is None
    assert pytest.approx(0.0) == metrics["advantage_logp_covariance"]


def test_ratios_are_those_of_all_steps_together() -> None:
    rng = np.random.default_rng(0)
    logps, olds = (
        [torch.tensor(-rng.exponential(size=n), dtype=torch.float32) for n in (5, 50, 200)]
        for _ in range(2)
    )
    reports = [report(len(x), logp=x, old_logp=y) for x, y in zip(logps, olds, strict=True)]
    metrics = learning_metrics(learnt(), reports)
    ratio = np.exp(torch.cat(logps).double().numpy() - torch.cat(olds).double().numpy())
    for place, q in {"min": 0, "p01": 1, "p50": 50, "p99": 99, "max": 100}.items():
        assert pytest.approx(np.percentile(ratio, q)) == metrics[f"ratio/{place}"]
    in_bf16 = (torch.cat(logps).bfloat16().double() - torch.cat(olds).bfloat16().double()).exp()
    expected = np.mean(in_bf16.numpy() / ratio - 1)
    assert pytest.approx(expected, rel=1e-6, abs=1e-12) == metrics["rounding/bf16_bias"]
    changed = np.mean(
        (np.abs(in_bf16.numpy() - 1) > 0.2) != (np.abs(ratio - 1) > 0.2)  # one clip, both bounds
    )
    assert pytest.approx(changed, abs=1 / 255) == metrics["rounding/bf16_clip_changed"]


# ---------------------------------------------------------------- the probe


def naive_entropies(model: Any, trajectories: Sequence[Trajectory]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(
            [naive_logp(model, s)[1] for t in trajectories for s in t.episode.segments]
        )


@pytest.mark.parametrize(
    ("size", "chosen"), [(1, [0]), (3, [0, 2, 4]), (7, list(range(7))), (99, list(range(7)))]
)
def test_a_probe_measures_entropy_of_the_same_tokens_before_and_after(
    size: int, chosen: list[int]
) -> None:
    learner = make_learner()
    algorithm = recipe("grpo")
    probe = Probe.take(learner, algorithm, TRAJECTORIES, size)
    assert probe is not None
    trajectories = [TRAJECTORIES[i] for i in chosen]
    assert [t.episode for t in trajectories] == [t.episode for t in probe.trajectories]
    model: Any = copy.deepcopy(learner.policy.model).double()
    model.set_attn_implementation("sdpa")
    before = naive_entropies(model, trajectories)
    learner.step(algorithm, TRAJECTORIES, nominal_sequences=NOMINAL, step=0)
    model = copy.deepcopy(learner.policy.model).double()
    model.set_attn_implementation("sdpa")
    after = naive_entropies(model, trajectories)
    metrics = probe.metrics(learner)
    assert pytest.approx(float(before.mean()), rel=1e-5) == metrics["probe/entropy"]
    change = float((after - before).mean())
    assert abs(change) > 1e-3
    assert pytest.approx(change, rel=1e-3) == metrics["probe/entropy_change"]
    for name, q in {"p10": 10, "p50": 50, "p90": 90}.items():
        expected = np.percentile(before.numpy(), q)
        assert pytest.approx(expected, rel=1e-5) == metrics[f"probe/entropy_{name}"]


def test_a_probe_of_none_is_none() -> None:
    learner = make_learner()
    assert Probe.take(learner, recipe("grpo"), TRAJECTORIES, 0) is None
    assert Probe.take(learner, recipe("grpo"), [], 5) is None


def responses(model: Any, t: Trajectory) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Cor. 2's response and ``L`` of each sampled token, from full distributions."""
    found = []
    for s in t.episode.segments:
        ids = torch.from_numpy(s.ids)
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1] / 0.8
        log_p = torch.log_softmax(logits, -1)
        p = log_p.exp()
        L = log_p - (p * log_p).sum(-1, keepdim=True)
        for i in np.flatnonzero(s.sampled):
            a, row = ids[i], i - 1
            response = (p[row] ** 2 * L[row]).sum() - p[row, a] * L[row, a]
            found.append((response, L[row, a]))
    first, second = zip(*found, strict=True)
    return torch.stack(first), torch.stack(second)


@pytest.mark.parametrize(
    "algorithm",
    [
        recipe("grpo"),
        recipe("repo-d", repo_d={"zeta": 0.3}, entropy_ladder={"high": 1}),
        recipe("grpo", transforms=[Decorrelate()]),
        recipe("grpo", transforms=[RepoD(zeta=0.5), Decorrelate()]),
        recipe("grpo", transforms=[Decorrelate(), RepoD(zeta=0.5)]),
    ],
    ids=["grpo", "repo-d", "decorrelate", "decorrelate last", "decorrelate first"],
)
def test_the_predicted_change_is_the_corollarys_before_and_after_the_transforms(
    algorithm: Algorithm,
) -> None:
    learner = make_learner()
    scores = learner.scores([t.episode for t in TRAJECTORIES], KNOWN)
    fresh = [attrs.evolve(t, old=old) for t, old in zip(TRAJECTORIES, scores, strict=True)]
    probe = Probe.take(learner, algorithm, fresh, 99)
    assert probe is not None
    model: Any = copy.deepcopy(learner.policy.model).double()
    model.set_attn_implementation("sdpa")
    pairs = [responses(model, t) for t in TRAJECTORIES]
    response, L = (torch.cat(column) for column in zip(*pairs, strict=True))
    advantage = torch.cat([t.advantage for t in TRAJECTORIES]).double()
    weight = torch.cat([torch.full((len(t),), 1 / len(t)) for t in TRAJECTORIES]).double()
    weight = weight / weight.sum()  # every episode alike, as the default aggregation has it
    plain = float((weight * advantage * response).sum())
    per_zeta = float((weight * L * response).sum())
    assert pytest.approx(plain, rel=1e-4, abs=1e-7) == probe.predicted
    expected = plain
    for part in algorithm.transforms:  # Decorrelate takes away what those before it leave
        expected = 0.0 if isinstance(part, Decorrelate) else expected - part.zeta * per_zeta
    assert pytest.approx(expected, rel=1e-4, abs=1e-6) == probe.predicted_transformed
    same = probe.predicted == probe.predicted_transformed
    assert same == (not algorithm.transforms)
