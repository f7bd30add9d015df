"""Packs: no sequence sees another, a shared prompt is computed once, and nothing is lost."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, MistralConfig

from isentrope import ConfigError, Episode, Segment
from isentrope.episodes import StopReason
from isentrope.learner.packing import ATTENDED, collate, micro_batches, pack
from isentrope.learner.policy import Policy
from isentrope.learner.rehearsal import fullest
from tests.sdk.test_aggregation import VOCABULARY, make_model

CPU = torch.device("cpu")
PLAIN = make_model(1)
POLICY = Policy(copy.deepcopy(PLAIN), 1.0, None)
EXACT = copy.deepcopy(PLAIN).double()
PROMPTS = [np.arange(3, 3 + n) % VOCABULARY for n in (1, 4, 9)]


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """Draw a prompt of three, and turns of the policy's and of the environment's after it."""
    prompt = draw(st.sampled_from(PROMPTS))
    after = draw(st.lists(st.booleans(), min_size=1, max_size=40))
    sampled = np.array([False] * len(prompt) + after)
    seed = draw(st.integers(0, 9))
    ids = np.concatenate([prompt, np.random.default_rng(seed).integers(0, VOCABULARY, len(after))])
    nothing = np.zeros(len(ids))
    return Segment(ids, sampled, nothing, nothing, nothing)


PACKS = st.lists(segments(), min_size=1, max_size=9)


def episode(*of: Segment) -> Episode:
    return Episode("", 0, 0, of, (), (), success=False, stop_reason=StopReason.TERMINATED)


def alone(segment: Segment) -> Tensor:
    """Log-probs of its sampled tokens by the plain model in float64, by itself."""
    ids = torch.from_numpy(segment.ids)[None]
    logp = EXACT(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(-1, ids[0, 1:, None])[:, 0][torch.from_numpy(segment.sampled[1:])]


@settings(max_examples=60)
@given(of=PACKS)
def test_log_probs_are_those_of_each_sequence_by_itself(of: list[Segment]) -> None:
    with torch.no_grad():
        found = POLICY(pack(of, CPU, torch.float32)).logp
        expected = torch.cat([alone(segment) for segment in of])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@settings(max_examples=15)
@given(of=PACKS, data=st.data())
def test_gradients_are_those_of_each_sequence_by_itself(of: list[Segment], data: Any) -> None:
    if not any(segment.sampled.any() for segment in of):
        return
    found = POLICY(pack(of, CPU, torch.float32)).logp
    expected = torch.cat([alone(segment) for segment in of])
    mixture = torch.linspace(-1, 2, len(found))
    ours = torch.autograd.grad((mixture * found).sum(), POLICY.trainable())
    theirs = torch.autograd.grad((mixture * expected).sum(), list(EXACT.parameters()))
    scale = max(float(g.norm()) for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5 * scale)


@given(of=PACKS)
def test_a_prompt_is_there_once_and_what_predicts_nothing_is_left_out(of: list[Segment]) -> None:
    inputs = pack(of, CPU, torch.float32)
    prompts, after = set(), 0
    for segment in of:
        places = segment.sampled.nonzero()[0]
        if len(places):
            prompts.add(tuple(segment.ids[: places[0]]))
            after += places[-1] - places[0]
    assert max(sum(map(len, prompts)) + after, 1) == inputs.ids.numel()
    sampled = [i for s in of for i in s.ids[s.sampled]]
    assert sampled == inputs.target.tolist()


@settings(max_examples=25)
@given(of=PACKS, filler=st.integers(0, VOCABULARY - 1))
def test_what_happens_in_one_sequence_is_nothing_to_the_others(
    of: list[Segment], filler: int
) -> None:
    """To the bit, where the shapes are the same."""
    first, *others = of
    changed = Segment(
        np.where(first.sampled, filler, first.ids),
        first.sampled,
        first.logp,
        first.turn,
        first.version,
    )
    own = int(first.sampled.sum())
    with torch.no_grad():
        before = POLICY(pack([first, *others], CPU, torch.float32)).logp[own:]
        after = POLICY(pack([changed, *others], CPU, torch.float32)).logp[own:]
    torch.testing.assert_close(before, after, rtol=0, atol=0)


EPISODES = st.lists(st.lists(segments(), min_size=1, max_size=3), min_size=0, max_size=20)


@given(of=EPISODES, budget=st.integers(1, 200), ranks=st.integers(1, 5))
def test_micro_batches_hold_every_episode_once_within_the_budget_for_all_ranks(
    of: list[list[Segment]], budget: int, ranks: int
) -> None:
    episodes = [episode(*s) for s in of]
    packs = micro_batches(episodes, budget, ranks)
    assert list(range(len(episodes))) == sorted(i for p in packs for i in p)
    assert packs
    assert 0 == len(packs) % ranks
    if episodes and all(e.sampled_tokens for e in episodes):
        assert sum(not p for p in packs) < ranks
    for of_pack in ([episodes[i] for i in p] for p in packs):
        inputs = collate(of_pack, CPU)
        attended = sum(index.numel() for index in inputs.rows.buckets)
        assert len(of_pack) <= 1 or inputs.ids.numel() <= budget
        rows = sum(
            np.flatnonzero(s.sampled)[-1] for e in of_pack for s in e.segments if s.sampled.any()
        )
        assert len(of_pack) <= 1 or rows <= min(attended, ATTENDED * budget)


def test_packs_are_few_and_even() -> None:
    nothing, lengths = np.zeros(60), np.random.default_rng(0).integers(20, 60, 64)
    of = [
        episode(Segment(np.arange(n) + i, np.arange(n) > 0, *[nothing[:n]] * 3))
        for i, n in enumerate(lengths)
    ]
    total = int((lengths - 1).sum())
    packs = micro_batches(of, 500)
    sizes = [collate([of[i] for i in p], CPU).ids.numel() for p in packs]
    assert -(-total // 500) <= len(packs) <= -(-total // 500) + 1
    assert max(sizes) - min(sizes) <= lengths.max()


def test_a_group_stays_together_and_shares_its_prompt() -> None:
    nothing = np.zeros(30)
    of = [
        episode(
            Segment(np.r_[np.full(20, i % 4), np.arange(10)], np.arange(30) >= 20, *[nothing] * 3)
        )
        for i in range(16)
    ]
    packs = micro_batches(of, 60, 1)
    assert 4 == len(packs)
    assert all(1 == len({i % 4 for i in p}) for p in packs)


@pytest.mark.parametrize(
    ("context", "budget"), [(40, 400), (40, 70), (40, 50), (40, 30), (16, 500), (137, 410)]
)
def test_a_rehearsal_is_of_the_largest_packs(context: int, budget: int) -> None:
    """None that training may meet has more tokens, or more in its rows."""
    sizes = []
    for of in fullest(context, budget):
        (found,) = micro_batches(of, 10**9)
        inputs = collate([of[i] for i in found], CPU)
        rows = sum(index.numel() for index in inputs.rows.buckets)
        sizes.append((inputs.ids.numel(), rows))
        assert inputs.rows.longest <= context
    (tokens, rows), *longer = sizes
    assert 0.85 * budget < tokens <= budget
    assert 0.85 * ATTENDED * budget < rows <= 1.2 * ATTENDED * budget
    assert [context - 1] * (context > budget) == [tokens for tokens, _ in longer]


def test_the_model_of_a_learner_says_so_where_it_is_used_without_rows() -> None:
    with pytest.raises(RuntimeError, match="belongs to a learner, which packs sequences"):
        POLICY.plain(input_ids=torch.ones(1, 4, dtype=torch.int64))


def test_a_model_that_attends_in_a_way_of_its_own_is_refused() -> None:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(ConfigError, match=r"Bloom.* attention in a way of its own"):
        Policy(AutoModelForCausalLM.from_config(config, dtype=torch.float32), 1.0, None)


def test_a_sliding_window_is_refused_where_a_sequence_is_longer() -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=32,
    )  # fmt: skip
    policy = Policy(AutoModelForCausalLM.from_config(config, dtype=torch.float32), 1.0, None)
    nothing = np.zeros(40)
    segment = Segment(np.arange(40) % VOCABULARY, np.arange(40) > 0, *[nothing] * 3)
    with pytest.raises(ConfigError, match=r"attends to the last 32 tokens only, .* 39:"):
        policy(pack([segment], CPU, torch.float32))
