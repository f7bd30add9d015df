"""Aggregation: the one place where losses are normalised."""

from __future__ import annotations

import attrs
from torch import Tensor

from isentrope.algorithms import Algorithm
from isentrope.parts import TokenBatch


def token_weights(
    algorithm: Algorithm, batch: TokenBatch, *, nominal_sequences: int, total_tokens: int
) -> Tensor:
    """Return the weight of each token [T], such that the loss is ``(weights * loss).sum()``.

    Of the log-probs' dtype.
    nominal_sequences: episodes in a full minibatch, whatever filtering left in this one.
    total_tokens: unmasked tokens of the whole minibatch, over all its micro-batches and ranks. Both
    are global, so the sum over any split of a minibatch is the same.
    """
    weight = batch.mask.to(batch.logp.dtype)
    match algorithm.aggregation:
        case "token-mean":
            return weight / max(total_tokens, 1)
        case "seq-mean-token-mean":
            own = weight.new_zeros(batch.num_sequences).index_add(0, batch.sequence, weight)
            return weight / own.clamp(min=1)[batch.sequence] / nominal_sequences
        case "seq-mean-token-sum":
            return weight / nominal_sequences
        case "seq-mean-token-sum-norm":
            assert algorithm.norm_length is not None  # checked when composed
            return weight / (algorithm.norm_length * nominal_sequences)


def weighted(
    algorithm: Algorithm, batch: TokenBatch, *, nominal_sequences: int, total_tokens: int
) -> TokenBatch:
    """Return the batch with its tokens' weights."""
    weight = token_weights(
        algorithm, batch, nominal_sequences=nominal_sequences, total_tokens=total_tokens
    )
    return attrs.evolve(batch, weight=weight)
