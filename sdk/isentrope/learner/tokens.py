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
    values: NDArray[np.float32]
    """[3, t]: log of the ratio between the policy that the step began with and the one that the
    iteration began with; the advantage after the transforms; whether the log-prob had a gradient.
    """


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
        gradient = batch.logp.grad  # none where the loss is of the entropy alone
        pulled = torch.zeros_like(batch.mask) if gradient is None else gradient != 0
        ratio = batch.logp.detach() - batch.old_logp
        values = torch.stack((ratio, batch.advantage, pulled.to(ratio.dtype))).cpu().numpy()
        end = 0
        for row, trajectory in zip(rows, trajectories, strict=True):
            start, end = end, end + len(trajectory)
            if row is not None:
                self.seen[row] = Seen(batch.step, values[:, start:end])

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
        kept = sorted((row, key) for key, row in self.rows.items())
        of = [episodes[row].segments for row, _ in kept]
        segments = [segment for one in of for segment in one]
        ids, piece = np.unique(np.concatenate([s.ids for s in segments]), return_inverse=True)
        texts = pieces(tokenizer, ids)
        sampled = np.concatenate([s.sampled for s in segments])
        numbers = [n for one in of for n, _ in enumerate(one)]
        logp = torch.cat([known[key].logp for _, key in kept]).numpy()
        ends = np.cumsum([known[key].logp.numel() for _, key in kept])
        spans = {key: slice(a, b) for (_, key), a, b in zip(kept, [0, *ends], ends, strict=False)}
        unknown = np.full((5, len(logp)), np.nan, np.float32)
        entropy, advantage, *steps = unknown
        for row, key in kept:
            span = spans[key]
            if (exact := known[key].entropy) is not None:
                entropy[span] = exact.numpy()
            if row in last:
                unknown[2:, span] = last[row].values
        for trajectory in learnt:
            if (key := id(trajectory.episode)) in spans:
                advantage[spans[key]] = trajectory.advantage.numpy()
        log_ratio, transformed, gradient = steps
        numbered = {
            "logp": logp,
            "mismatch": np.concatenate([s.logp for s in segments])[sampled] - logp,
            "entropy": entropy,
            "advantage": advantage,
            "transformed": transformed,
            "log_ratio": log_ratio,
        }
        with np.errstate(over="ignore"):  # what float16 cannot hold is infinite
            halves = {name: x.astype(np.float16) for name, x in numbered.items()}
        return {
            "episode": np.array([row for row, _ in kept], np.int32),
            "length": np.array([sum(len(s.ids) for s in one) for one in of], np.int32),
            "step": np.array([last[r].step if r in last else -1 for r, _ in kept], np.int32),
            "piece": piece.astype(np.int32),
            "segment": np.repeat(numbers, [len(s.ids) for s in segments]).astype(np.int32),
            "turn": np.concatenate([s.turn for s in segments]).astype(np.int32),
            "sampled": sampled,
            "version": np.concatenate([s.version for s in segments])[sampled].astype(np.int32),
            **halves,
            "gradient": np.where(np.isnan(gradient), UNSEEN, gradient).astype(np.uint8),
            "piece_id": ids.astype(np.int32),
            "piece_end": np.cumsum([len(text) for text in texts], dtype=np.int32),
            "piece_text": np.frombuffer(b"".join(texts), np.uint8),
        }
