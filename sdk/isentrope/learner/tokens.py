"""What an iteration knew of its tokens, kept for people to look at; nothing is learnt from it.

Shape legend: E episodes kept, N tokens of theirs, T sampled ones of these, P different pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import define, field, frozen
from numpy.typing import NDArray

from isentrope.episodes import Episode
from isentrope.learner.head import TokenScores
from isentrope.learner.packing import Trajectory
from isentrope.learner.pieces import pieces
from isentrope.parts import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Columns = dict[str, NDArray[Any]]

MOST = 1 << 17
"""Tokens kept of an iteration, prompts included: about a megabyte on disk, whatever is trained."""
UNSEEN = 255
"""In the column ``gradient``: no step has seen the token."""


@frozen
class Seen:
    """What the last step that saw an episode made of its t sampled tokens."""

    step: int
    log_ratio: NDArray[np.float32]
    """[t] of the policy that the step began with, to the one that the iteration began with."""
    transformed: NDArray[np.float32]
    """[t] advantage after the transforms."""
    gradient: NDArray[np.bool_]
    """[t] whether the token's log-prob had a gradient."""


@define
class TokenLog:
    """Watches some of an iteration's episodes; on each rank, the steps that it computes."""

    rows: dict[int, int]
    """Row among the iteration's episodes, by the identity of each episode that is watched."""
    seen: dict[int, Seen] = field(factory=dict, repr=False)
    """By row."""

    @classmethod
    def of(
        cls, episodes: Sequence[Episode], learnt: Iterable[Trajectory], good: Sequence[Episode]
    ) -> TokenLog:
        """Watch as many usable episodes as `MOST` allows: those learnt from before the others.

        An iteration draws its tasks at random, so the first of them are as good as any. The first
        episode is kept, however long it is.
        """
        row = {id(episode): i for i, episode in enumerate(episodes)}
        wanted = {id(e): e for e in (*(t.episode for t in learnt), *good)}
        chosen: dict[int, int] = {}
        left = MOST
        for key, episode in wanted.items():
            left -= sum(len(segment.ids) for segment in episode.segments)
            if left < 0 and chosen:
                break
            chosen[key] = row[key]
        return cls(chosen)

    def see(self, trajectories: Sequence[Trajectory], batch: TokenBatch) -> None:
        """Note what a step makes of a micro-batch, once its gradient is known."""
        rows = [self.rows.get(id(t.episode)) for t in trajectories]
        if all(row is None for row in rows):
            return
        lengths = [len(t) for t in trajectories]
        gradient = batch.logp.grad  # none where the loss is of the entropy alone
        pulled = torch.zeros_like(batch.mask) if gradient is None else gradient != 0
        ratio = batch.logp.detach() - batch.old_logp
        columns = [x.cpu().split(lengths) for x in (ratio, batch.advantage, pulled)]
        for row, *own in zip(rows, *columns, strict=True):
            if row is not None:
                self.seen[row] = Seen(batch.step, *(x.numpy() for x in own))

    def columns(
        self,
        episodes: Sequence[Episode],
        known: Mapping[int, TokenScores],
        learnt: Iterable[Trajectory],
        seen: Iterable[Mapping[int, Seen]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> Columns:
        """Return what is written of the iteration, as `Run.tokens` says.

        known: what the policy that the iteration began with said, by the identity of an episode.
        seen: what every rank saw.
        """
        last: dict[int, Seen] = {}
        for own in seen:
            for row, one in own.items():
                if row not in last or last[row].step < one.step:
                    last[row] = one
        advantages = {id(t.episode): t.advantage for t in learnt}
        kept = sorted((row, key) for key, row in self.rows.items())
        segments = [(n, s) for row, _ in kept for n, s in enumerate(episodes[row].segments)]
        ids, piece = np.unique(np.concatenate([s.ids for _, s in segments]), return_inverse=True)
        texts = pieces(tokenizer, ids)
        sampled = np.concatenate([s.sampled for _, s in segments])
        rows = [_row(known[key], advantages.get(key), last.get(row)) for row, key in kept]
        of_token = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        engine = np.concatenate([s.logp for _, s in segments])[sampled]
        of_token["mismatch"] = engine - of_token["logp"]
        with np.errstate(over="ignore"):  # what float16 cannot hold is infinite
            halves = {n: x.astype(np.float16) for n, x in of_token.items() if n != "gradient"}
        return {
            "episode": np.array([row for row, _ in kept], np.int32),
            "length": np.array(
                [sum(len(s.ids) for s in episodes[row].segments) for row, _ in kept], np.int32
            ),
            "step": np.array([last[r].step if r in last else -1 for r, _ in kept], np.int32),
            "piece": piece.astype(np.int32),
            "segment": np.concatenate([np.full(len(s.ids), n, np.int32) for n, s in segments]),
            "turn": np.concatenate([s.turn for _, s in segments]).astype(np.int32),
            "sampled": sampled,
            "version": np.concatenate([s.version for _, s in segments])[sampled].astype(np.int32),
            **halves,
            "gradient": of_token["gradient"],
            "piece_id": ids.astype(np.int32),
            "piece_end": np.cumsum([len(text) for text in texts], dtype=np.int32),
            "piece_text": np.frombuffer(b"".join(texts), np.uint8),
        }


def _row(scores: TokenScores, advantage: Any, seen: Seen | None) -> dict[str, NDArray[Any]]:
    """Return the columns of one episode's t sampled tokens; NaN is what is not known."""
    logp = scores.logp.numpy()
    nothing = np.full(logp.shape, np.nan, np.float32)
    return {
        "logp": logp,
        "entropy": nothing if scores.entropy is None else scores.entropy.numpy(),
        "advantage": nothing if advantage is None else advantage.numpy(),
        "transformed": nothing if seen is None else seen.transformed,
        "log_ratio": nothing if seen is None else seen.log_ratio,
        "gradient": (
            np.full(logp.shape, UNSEEN, np.uint8)
            if seen is None
            else seen.gradient.astype(np.uint8)
        ),
    }
