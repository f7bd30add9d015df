"""What is kept of tokens: the numbers that learning had, of episodes that can be told apart."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import isentrope
from isentrope import Episode, Run, Segment, StopReason, recipe
from isentrope.learner.head import TokenScores
from isentrope.learner.learner import Learner
from isentrope.learner.packing import Trajectory
from isentrope.learner.pieces import _alphabet, pieces
from isentrope.learner.policy import Policy
from isentrope.learner.tokens import MOST, UNSEEN, TokenLog

TEXTS = [
    "Solve 3x+5=8",
    "naïve \u4f60\u597d \U0001f600\U0001f468\u200d\U0001f469",
    "שלום\r\n\t\x00",
]


def byte_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for every byte, and one that is more than a byte."""
    vocabulary = {**_alphabet(), "\u0120x": 256}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u0120", "x")]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer as Llama's: spaces are U+2581, and unknown characters are bytes."""
    words = {"<unk>": 0, "\u2581": 1, "Solve": 2, "\u2581Solve": 3, "x": 4}
    singles = {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    plain = Tokenizer(
        models.BPE(vocab={**words, **singles}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    plain.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_end_to_end_are_the_text(make: Any, text: str) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert text == tokenizer.decode(ids)  # or it would be no oracle
    assert text.encode() == b"".join(pieces(tokenizer, ids))


@given(st.binary(max_size=12))
def test_pieces_need_not_be_characters(data: bytes) -> None:
    names = {byte: character for character, byte in _alphabet().items()}
    tokenizer = byte_level()
    ids = [tokenizer.convert_tokens_to_ids(names[byte]) for byte in data]
    assert data == b"".join(pieces(tokenizer, ids))
    assert data.decode("utf-8", "replace") == tokenizer.decode(ids)


def test_tokens_that_were_added_are_their_text_and_unknown_ids_are_named() -> None:
    assert [b"<|end|>", b"<999>"] == pieces(byte_level(), [257, 999])


# ---------------------------------------------------------------- a run's


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose steps move the policy far, with clips that act."""
    from tests.conftest import SMALL_MODEL

    return isentrope.train(
        env="arithmetic",
        algorithm=recipe("repo-r", epochs=2, minibatch=16, objective={"eps_high": 0.01}),
        model=SMALL_MODEL,
        rollout={"tasks": 4, "group": 8, "max_tokens": 24},
        learner={"lr": 3e-3, "probe": 3},
        iterations=2,
        checkpoint_every=1,
        out=tmp_path_factory.mktemp("tokens") / "run",
    )


def of_iteration(run: Run, iteration: int) -> dict[str, Any]:
    found = run.tokens(iteration)
    assert found is not None
    return found


def test_every_token_of_a_small_run_is_kept_and_says_what_the_episode_said(run: Run) -> None:
    kept = of_iteration(run, 1)
    episodes = [e for e in run.episodes if e["iteration"] == 1]
    assert list(range(len(episodes))) == kept["episode"].tolist()
    edges = np.cumsum([0, *kept["length"]])
    starts = [0, *kept["piece_end"]]
    for e, (low, high) in zip(episodes, pairwise(edges), strict=True):
        sampled = kept["sampled"][low:high]
        assert e["tokens"] == sampled.sum()
        said = b"".join(
            kept["piece_text"][starts[p] : starts[p + 1]].tobytes()
            for p in kept["piece"][low:high][sampled]
        )
        assert e["messages"][-1]["content"] == said.decode("utf-8", "replace").removesuffix(
            "<|end|>"
        )


def test_what_is_kept_adds_up_to_what_was_logged(run: Run) -> None:
    for iteration, metrics in enumerate(run.metrics):
        kept = of_iteration(run, iteration)
        assert metrics["tokens"] == len(kept["logp"])
        assert metrics["entropy"] == pytest.approx(-kept["logp"].astype(float).mean(), rel=1e-3)
        assert metrics["mismatch_max"] == pytest.approx(np.abs(kept["mismatch"]).max(), rel=1e-2)
        assert {iteration} == set(kept["version"].tolist())  # a step was taken in each
        learnt = kept["gradient"] != UNSEEN
        assert metrics["episodes_learnt"] == (kept["step"] >= 0).sum()
        assert learnt.tolist() == np.isfinite(kept["advantage"]).tolist()
        assert learnt.tolist() == np.isfinite(kept["log_ratio"]).tolist()
    probed = of_iteration(run, 0)["entropy"]
    entropy = probed[np.isfinite(probed)].astype(float).mean()
    assert run.metrics[0]["probe/entropy"] == pytest.approx(entropy, rel=1e-3)


def test_transformed_advantages_follow_repo_rs_equation(run: Run) -> None:
    kept = {name: x.astype(float) for name, x in of_iteration(run, 1).items()}
    zeta = run.metrics[1]["repo_r.zeta"]
    present = kept["logp"] + kept["log_ratio"]
    expected = kept["advantage"] - zeta * np.abs(kept["advantage"]) * present
    learnt = np.isfinite(kept["advantage"])
    assert learnt.any()
    np.testing.assert_allclose(kept["transformed"][learnt], expected[learnt], atol=5e-3)


def test_a_token_has_no_gradient_exactly_where_the_clip_acts(run: Run) -> None:
    kept = of_iteration(run, 1)
    learnt = kept["gradient"] != UNSEEN
    ratio = np.exp(kept["log_ratio"].astype(float)[learnt])
    advantage = kept["transformed"].astype(float)[learnt]
    clipped = ((ratio > 1.01) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
    certain = (np.abs(ratio - 1.01) > 2e-3) & (np.abs(ratio - 0.8) > 2e-3)  # in float16
    assert 0 < clipped.sum() < learnt.sum()
    assert (~clipped[certain]).tolist() == (kept["gradient"][learnt][certain] == 1).tolist()


def test_what_a_run_forgets_it_forgets_of_tokens_too_and_finds_again_to_the_bit(run: Run) -> None:
    before = {path.name: path.read_bytes() for path in (run.path / "tokens").iterdir()}
    assert {"000000.npz", "000001.npz"} == before.keys()
    run.rewind(1)
    assert run.tokens(1) is None
    assert run.tokens(0) is not None
    newest = max((run.path / "checkpoints").iterdir())
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    isentrope.train(resume=run)
    assert before == {path.name: path.read_bytes() for path in (run.path / "tokens").iterdir()}


# ---------------------------------------------------------------- what is watched, by hand


def made(task: str, tokens: int) -> Episode:
    sampled = np.arange(tokens) > 0
    nothing = np.zeros(tokens)
    return Episode(
        task=task, seed=0, rollout=0, messages=(), rewards=(1.0,), success=True,
        segments=(Segment(nothing, sampled, nothing, nothing, nothing),),
        stop_reason=StopReason.TERMINATED,
    )  # fmt: skip


def as_trajectory(episode: Episode) -> Trajectory:
    zeros = torch.zeros(episode.sampled_tokens)
    return Trajectory(episode, 0, TokenScores(zeros, None, None), zeros)


def test_what_is_learnt_from_is_kept_first_and_no_more_than_there_is_room_for() -> None:
    episodes = [made(str(i), MOST // 4) for i in range(7)]
    learnt = [as_trajectory(e) for e in episodes[4:]]
    assert [4, 5, 6, 0] == list(TokenLog.of(episodes, learnt, episodes).rows.values())


def test_one_episode_is_kept_however_long() -> None:
    episodes = [made("long", MOST + 1), made("short", 2)]
    assert [0] == list(TokenLog.of(episodes, [], episodes).rows.values())


def test_the_last_step_of_any_rank_is_what_is_kept() -> None:
    from tests.sdk.test_aggregation import MODEL, TEMPERATURE, TRAJECTORIES

    episodes = [t.episode for t in TRAJECTORIES]
    ranks = [TokenLog.of(episodes, TRAJECTORIES, episodes) for _ in range(2)]
    config = isentrope.LearnerConfig(lr=1e-2, micro_batch_tokens=1)
    learner = Learner(Policy(MODEL, TEMPERATURE, None), config)
    algorithm = recipe("grpo")
    for step, rank in enumerate(ranks):  # the second step is the other rank's
        learner.step(
            algorithm, TRAJECTORIES, nominal_sequences=len(TRAJECTORIES), step=step, watch=rank.see
        )
    known = {id(t.episode): attrs.evolve(t).old for t in TRAJECTORIES}
    kept = ranks[0].columns(
        episodes, known, TRAJECTORIES, [rank.seen for rank in ranks], byte_level()
    )
    assert {1} == set(kept["step"].tolist())
    expected = np.concatenate([ranks[1].seen[i].values[0] for i in range(len(episodes))])
    assert expected.astype(np.float16).tolist() == kept["log_ratio"].tolist()
    assert np.abs(expected).max() > 0
