"""The probe, against full logits in float64, and against the same run without it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

import isentrope
from isentrope import (
    AdvantageTransform,
    Algorithm,
    Episode,
    LearnerConfig,
    Segment,
)
from isentrope.episodes import StopReason
from isentrope.learner.head import KNOWN, TokenScores
from isentrope.learner.learner import Learner
from isentrope.learner.packing import Trajectory
from isentrope.learner.policy import Policy
from isentrope.learner.probe import Probe
from isentrope_objectives.advantages import LeaveOneOut
from isentrope_objectives.surrogates import Clipped
from isentrope_objectives.transforms import Decorrelate, RepoD, RepoR

VOCABULARY, TEMPERATURE = 19, 0.7
PATTERNS = (
    ("..xxxxx",),
    (".x",),
    ("....xxx..xx.x",),
    ("...xx..xxx", "..xxxx"),
    (".xxxxxxxxxxxx",),
    ("..x.x.x",),
    (".xxx", "...x..xx"),
)
"""Segments of each episode; ``x`` is a sampled token."""


def make_model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


MODEL = make_model()


def make_learner() -> Learner:
    config = LearnerConfig(lr=1e-2, max_grad_norm=1.0, micro_batch_tokens=40)
    return Learner(Policy(copy.deepcopy(MODEL), TEMPERATURE, lora=None), config)


def make_segment(rng: np.random.Generator, pattern: str) -> Segment:
    sampled = np.array([c == "x" for c in pattern])
    turn = (np.cumsum(np.diff(sampled, prepend=False) & sampled) - 1).clip(0)
    ids = rng.integers(0, VOCABULARY, len(pattern))
    return Segment(ids, sampled, np.where(sampled, -1.0, 0.0), turn, np.where(sampled, 0, -1))


def make_trajectories() -> list[Trajectory]:
    """Return trajectories whose old log-probs are what a run has: the policy's, and no more."""
    rng = np.random.default_rng(2)
    generator = torch.Generator().manual_seed(2)
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
    scores = make_learner().scores(episodes, KNOWN)
    return [
        Trajectory(episode, i // 2, old, torch.randn(old.logp.shape, generator=generator))
        for i, (episode, old) in enumerate(zip(episodes, scores, strict=True))
    ]


TRAJECTORIES = make_trajectories()


def algorithm_with(*transforms: AdvantageTransform) -> Algorithm:
    return Algorithm(
        advantage=LeaveOneOut(),
        transforms=transforms,
        objective=Clipped(eps_low=0.2, eps_high=0.28),
        minibatch=3,
        epochs=2,
    )


def measured(learner: Learner, trajectories: Sequence[Trajectory]) -> tuple[Tensor, ...]:
    """Return log-prob, entropy and response of every token, from all logits in float64."""
    model = copy.deepcopy(learner.policy.plain).double()
    model.set_attn_implementation("sdpa")
    rows = []
    for segment in (s for t in trajectories for s in t.episode.segments):
        ids = torch.from_numpy(segment.ids)
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0] / TEMPERATURE
        for i in segment.sampled.nonzero()[0].tolist():
            free = logits[i - 1].clone().requires_grad_()
            p = torch.softmax(free, -1)
            entropy = -(p * p.log()).sum()
            (slope,) = torch.autograd.grad(entropy, free)
            push = torch.nn.functional.one_hot(ids[i], VOCABULARY) - p.detach()
            rows.append((p[ids[i]].log().detach(), entropy.detach(), (slope * push).sum()))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def update(learner: Learner, algorithm: Algorithm) -> None:
    """Take the steps of an iteration."""
    for _ in range(algorithm.epochs):
        for start in range(0, len(TRAJECTORIES), 3):
            minibatch = TRAJECTORIES[start : start + 3]
            learner.step(algorithm, minibatch, nominal_sequences=3, step=start // 3)


def take(learner: Learner, algorithm: Algorithm, size: int = 100) -> Probe:
    probe = Probe.take(learner, algorithm, TRAJECTORIES, size)
    assert probe is not None
    return probe


def test_entropy_before_is_that_of_the_full_logits_in_float64() -> None:
    learner = make_learner()
    probe = take(learner, algorithm_with())
    _, expected, _ = measured(learner, TRAJECTORIES)
    assert sum(len(t) for t in TRAJECTORIES) == len(probe.entropy)
    torch.testing.assert_close(probe.entropy.double(), expected, rtol=1e-5, atol=1e-6)
    found = probe.metrics(learner)
    assert pytest.approx(float(expected.mean()), rel=1e-6) == found["probe/entropy"]
    for name, q in (("p10", 10), ("p50", 50), ("p90", 90)):
        value = np.percentile(expected.numpy(), q)
        assert pytest.approx(value, rel=1e-5) == found[f"probe/entropy_{name}"]
    assert pytest.approx(0, abs=1e-7) == found["probe/entropy_change"]  # nothing was learnt yet


def test_the_change_is_of_the_same_tokens_by_the_steps_between() -> None:
    learner, algorithm = make_learner(), algorithm_with()
    probe = take(learner, algorithm)
    _, before, _ = measured(learner, TRAJECTORIES)
    first = probe.metrics(learner)
    update(learner, algorithm)
    _, after, _ = measured(learner, TRAJECTORIES)
    change = float((after - before).mean())
    found = probe.metrics(learner)
    assert 0.01 < abs(change) == pytest.approx(abs(found["probe/entropy_change"]), rel=1e-4)
    assert math.copysign(1, change) == math.copysign(1, found["probe/entropy_change"])
    # All else is of before the update.
    both = [{**m, "probe/entropy_change": 0} for m in (first, found)]
    assert both[0] == both[1]


def by_episode(values: Tensor, trajectories: Sequence[Trajectory]) -> float:
    """Return the mean of the episodes' means, as the default aggregation weighs tokens."""
    parts = values.split([len(t) for t in trajectories])
    return float(torch.stack([part.mean() for part in parts]).mean())


@pytest.mark.parametrize(
    ("size", "indices"),
    [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (5, [0, 1, 2, 4, 5]), (7, range(7)), (99, range(7))],
)
def test_it_measures_so_many_trajectories_evenly_spread(size: int, indices: Sequence[int]) -> None:
    learner, algorithm = make_learner(), algorithm_with()
    probe = take(learner, algorithm, size)
    chosen = [TRAJECTORIES[i] for i in indices]
    assert [t.episode for t in chosen] == [t.episode for t in probe.trajectories]
    _, before, response = measured(learner, chosen)
    torch.testing.assert_close(probe.entropy.double(), before, rtol=1e-5, atol=1e-6)
    advantage = torch.cat([t.advantage for t in chosen]).double()
    expected = by_episode(advantage * response, chosen)
    assert pytest.approx(expected, rel=1e-4) == probe.predicted
    update(learner, algorithm)
    _, after, _ = measured(learner, chosen)
    found = probe.metrics(learner)["probe/entropy_change"]
    assert pytest.approx(float((after - before).mean()), rel=1e-3, abs=1e-6) == found


def test_without_a_transform_both_predictions_are_one() -> None:
    probe = take(make_learner(), algorithm_with())
    assert probe.predicted == probe.predicted_transformed


@pytest.mark.parametrize(
    "transforms",
    [
        (RepoR(zeta=0.3),),
        (RepoR(zeta=-0.3, of="old"),),
        (RepoD(zeta=0.2),),
        (RepoD(zeta=-0.1, centred=False),),
        (RepoR(zeta=0.3), RepoD(zeta=0.2)),
    ],
)
def test_the_predictions_differ_by_what_the_transforms_change(
    transforms: tuple[AdvantageTransform, ...],
) -> None:
    learner = make_learner()
    probe = take(learner, algorithm_with(*transforms))
    logp, entropy, response = measured(learner, TRAJECTORIES)
    advantage = torch.cat([t.advantage for t in TRAJECTORIES]).double()
    changed = advantage
    for part in transforms:
        if isinstance(part, RepoR):
            changed = changed - part.zeta * changed.abs() * logp
        elif isinstance(part, RepoD):
            changed = changed - part.zeta * (logp + entropy * part.centred)
    plain, other = (by_episode(a * response, TRAJECTORIES) for a in (advantage, changed))
    assert abs(other - plain) > 1e-3
    assert pytest.approx(plain, rel=1e-4, abs=1e-7) == probe.predicted
    assert pytest.approx(other, rel=1e-4, abs=1e-7) == probe.predicted_transformed
    found = probe.metrics(learner)
    assert probe.predicted == found["probe/predicted_change"]
    assert probe.predicted_transformed == found["probe/predicted_change_transformed"]


def test_decorrelated_advantages_are_foretold_to_change_nothing_of_the_whole() -> None:
    """The coefficient is of all that is learnt from, not fitted to the probe."""
    whole, some = (take(make_learner(), algorithm_with(Decorrelate()), n) for n in (99, 2))
    assert abs(whole.predicted) > 1e-3
    assert pytest.approx(0, abs=1e-7) == whole.predicted_transformed
    assert abs(some.predicted_transformed) > 1e-3


@pytest.mark.parametrize(("size", "count"), [(0, 7), (0, 0), (5, 0)])
def test_of_no_trajectories_there_is_no_probe(size: int, count: int) -> None:
    learner = make_learner()
    assert Probe.take(learner, algorithm_with(), TRAJECTORIES[:count], size) is None


def test_a_probe_takes_the_present_policys_scores_and_leaves_the_trajectories_theirs() -> None:
    """What they carry as the old policy's may lack what the prediction needs, or be older."""
    learner = make_learner()
    stale = [attrs.evolve(t, old=TokenScores(t.old.logp - 0.5, None, None)) for t in TRAJECTORIES]
    before = [t.old for t in stale]
    algorithm = algorithm_with(RepoR(zeta=0.3, of="old"))
    probe = Probe.take(learner, algorithm, stale, 7)
    assert probe is not None
    assert take(learner, algorithm).predicted_transformed == probe.predicted_transformed
    assert all(t.old is old for t, old in zip(stale, before, strict=True))


def bits(learner: Learner) -> list[bytes]:
    """Return weights, gradients, optimizer state and the global generator's, as they are stored."""
    tensors: list[Any] = [*learner.policy.state_dict().values()]
    tensors += [p.grad for p in learner.policy.parameters()]
    for state in learner.optimizer.state_dict()["state"].values():
        tensors += [state[name] for name in sorted(state)]
    tensors.append(torch.get_rng_state())
    return [b"" if t is None else t.detach().numpy().tobytes() for t in tensors]


def test_a_probe_moves_no_bit_of_the_learner() -> None:
    algorithm = algorithm_with(RepoD(zeta=0.2), RepoR(zeta=0.1))
    plain, probed = make_learner(), make_learner()
    assert bits(plain) == bits(probed)
    for _ in range(3):
        update(plain, algorithm)
        probe = take(probed, algorithm, 4)
        assert not probe.entropy.requires_grad
        update(probed, algorithm)
        probe.metrics(probed)
        assert bits(plain) == bits(probed)


def test_a_run_with_a_probe_is_the_run_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To the bit: all metrics but the probe's and the clock's, and the policy at the end."""
    monkeypatch.setattr("isentrope_plugins.tiny.model.DEMONSTRATIONS", 64)  # for its tokenizer only
    model = {"id": "tiny-qwen3", "hidden_size": 32, "layers": 1, "warmup_steps": 0, "seed": 97}
    runs = {
        size: isentrope.train(
            env="arithmetic",
            algorithm={"recipe": "repo-d", "epochs": 1, "minibatch": 4},  # learns without rewards
            model=model,
            rollout={"tasks": 2, "group": 4, "max_tokens": 8},
            learner={"probe": size},
            iterations=2,
            out=tmp_path / str(size),
        )
        for size in (0, 5)
    }
    assert not any(name.startswith("probe/") for name in runs[0].metrics[-1])
    assert 0 != runs[5].metrics[-1]["probe/entropy_change"]
    plain, probed = (
        [
            {k: v for k, v in m.items() if not k.startswith(("probe/", "seconds/", "performance/"))}
            for m in run.metrics
        ]
        for run in runs.values()
    )
    assert plain == probed
    files = [sorted((tmp_path / str(size) / "policy").rglob("*.safetensors")) for size in runs]
    assert files[0]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
