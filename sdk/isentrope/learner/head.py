"""The policy head: log-probs of tokens from hidden states, without keeping the logits.

Logits exist for one chunk of tokens at a time, in float32, forwards and backwards, so that peak
memory does not grow with tokens x vocabulary; where there is but one chunk, it is kept. A 16-bit
weight is read in blocks of the vocabulary, so that there is never a float32 copy of it either.
Shape legend: t tokens of a chunk, T of all, D hidden size, V vocabulary, r rank of an adapter.

With d_j = (z_j - max z) / temperature <= 0, and sums S and K over all tokens but the top one,
nothing that matters for a confident distribution is a difference of numbers near one another:

    log p_j = d_j - log1p(S),  S = sum exp(d_j)           right down to S ~ 1e-38, where log(1 + S)
                                                          is 0 from 6e-8 on
    1 - p_a = the sum of the other probabilities          the gradient of log p_a (paper, B.4)
    H       = log1p(S) + K,    K = sum p_j (-d_j)         both terms positive
    L_j     = log p_j + H = d_j + K                       of the top token: K itself

The entropy response of a sampled token a is the first-order change of its own state's entropy, per
unit of advantage, as a tabular softmax takes the policy-gradient step on it, dz_j = [j = a] - p_j:

    dH = -sum_j p_j L_j dz_j = sum_j p_j^2 L_j - p_a L_a

where the top token is the sampled one, its p^2 L - p L is taken as -p K (1 - p).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from attrs import frozen
from torch import Tensor

KNOWN = frozenset({"entropy", "entropy_response"})
"""What the head can compute beside log-probs, of `parts.NEEDS`."""

CHUNK_ELEMENTS = 1 << 24
"""Logits held at a time: 64 MiB of float32."""

BLOCK_ELEMENTS = 1 << 20
"""Elements of a 16-bit weight converted at a time: 4 MiB of float32."""


class TokenScores(NamedTuple):
    """What the policy says of T tokens, in nats, of the distribution at the temperature."""

    logp: Tensor
    """[T] float32, with gradient."""
    entropy: Tensor | None
    """[T] float32 if asked for: exact, of the distribution that each was drawn from; with
    gradient."""
    entropy_response: Tensor | None
    """[T] float32 if asked for: change of that entropy to first order, per unit of advantage, as
    a tabular softmax learns from the token; without gradient."""


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float = 1.0,
    *,
    needs: frozenset[str] = frozenset(),
    adapter: tuple[Tensor, Tensor] | None = None,
) -> TokenScores:
    """Return log-probs of the targets, and what `needs` names of `KNOWN`.

    hidden: [T, D], the states that predict the targets, any float dtype. weight: [V, D].
    bias: [V]. target: [T] int64. adapter: low [T, r] and up [V, r], which add ``low @ up.T`` to
    the logits. Log-probs and entropies carry gradient to every float input; each gradient has its
    input's dtype.
    """
    assert needs <= KNOWN, needs
    low, up = adapter or (None, None)
    logp, entropy, response = _TokenScores.apply(
        hidden, weight, bias, low, up, target, temperature, needs
    )
    return TokenScores(
        logp,
        entropy if "entropy" in needs else None,
        response if "entropy_response" in needs else None,
    )


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low: Tensor | None,
        up: Tensor | None,
        target: Tensor,
        temperature: float,
        needs: frozenset[str],
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer = _Layer(hidden, weight, bias, low, up)
        # Made once: small tensors that outlive their chunk would leave holes in the C heap, into
        # which the next chunk's large ones do not fit (measured: half a gigabyte of them).
        columns = hidden.new_empty((6, len(hidden), 1), dtype=torch.float32)
        ctx.exps = None
        chunks = _chunks(hidden.shape[0], weight.shape[0])
        for rows in chunks:
            logits = layer.logits(rows)
            found = _evaluate(logits, target[rows, None], temperature, needs)
            columns[:, rows] = torch.stack(found)
            if len(chunks) == 1 and not needs:  # this layer's gradient comes first: no peak rises
                ctx.exps = logits
            del logits  # or they would live on beside the next chunk's
        ctx.save_for_backward(hidden, weight, bias, low, up, target, columns[3:])
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        # Not views: FSDP2 would lose its hook if somebody changed one in place.
        logp, entropy, response = (column.flatten().clone() for column in columns[:3])
        ctx.mark_non_differentiable(response)
        return logp, entropy, response

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, low, up, target, columns = ctx.saved_tensors
        top, log_total, mean_gap = columns
        layer = _Layer(hidden, weight, bias, low, up)
        need_hidden, need_weight, need_bias, need_low, need_up = ctx.needs_input_grad[:5]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_low = torch.empty_like(low) if need_low else None
        d_weight, d_bias, d_up = (
            torch.zeros_like(x, dtype=torch.float32) if needed else None
            for x, needed in ((weight, need_weight), (bias, need_bias), (up, need_up))
        )
        grad_logp, grad_entropy = (None if g is None else g / ctx.temperature for g in grads[:2])
        exps, ctx.exps = ctx.exps, None  # overwritten here: a second time, it is computed again
        for rows in _chunks(hidden.shape[0], weight.shape[0]):
            of_logp, of_entropy = (
                None if grad is None else grad[rows, None] for grad in (grad_logp, grad_entropy)
            )
            if exps is not None:
                p = exps.mul_(torch.exp(-log_total))
                d_logits = _d_logits_of_logp(p, target[rows, None], of_logp)
            else:
                d_logits = _d_logits(
                    _below(layer.logits(rows), top[rows], ctx.temperature),
                    log_total[rows],
                    mean_gap[rows],
                    target[rows, None],
                    of_logp,
                    of_entropy,
                )
            if d_hidden is not None:
                d_hidden[rows] = _product(d_logits, weight)
            if d_low is not None:
                d_low[rows] = _product(d_logits, up)
            if d_weight is not None:
                d_weight.addmm_(d_logits.T, hidden[rows].float())
            if d_up is not None:
                d_up.addmm_(d_logits.T, low[rows].float())
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            del d_logits  # or they would live on beside the next chunk's
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            d_low,
            None if d_up is None else d_up.to(up.dtype),
            None,
            None,
            None,
        )


@frozen(eq=False)
class _Layer:
    """The output layer and what goes into it, as `token_scores` gets them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    low: Tensor | None
    up: Tensor | None

    def logits(self, rows: slice) -> Tensor:
        """Return the logits [t, V] of one chunk, in float32, in which products accumulate too.

        Autocast leaves products with an ``out`` alone, and those in place.
        """
        hidden = self.hidden[rows].float()
        logits = hidden.new_empty((len(hidden), len(self.weight)))
        for block, part in _blocks(self.weight):
            torch.mm(hidden, part.T, out=logits[:, block])
        if self.low is not None and self.up is not None:
            low = self.low[rows].float()
            for block, part in _blocks(self.up):
                logits[:, block].addmm_(low, part.T)
        return logits if self.bias is None else logits.add_(self.bias)


def _below(logits: Tensor, top: Tensor, temperature: float) -> Tensor:
    """Turn logits [t, V] into d_j; in this order, since the difference is often exact."""
    below = logits.sub_(top)
    return below if temperature == 1.0 else below.div_(temperature)


def _evaluate(
    logits: Tensor, target: Tensor, temperature: float, needs: frozenset[str]
) -> tuple[Tensor, ...]:
    """Return log-prob, entropy, response, top logit, log1p(S) and K of one chunk, [t, 1] each.

    Entropy and K are 0 where nothing is needed, the response where it is not. target: [t, 1].
    Overwrites `logits` [t, V]: where nothing is needed, by exp(d_j).
    """
    top, top_index = logits.max(-1, keepdim=True)
    below = _below(logits, top, temperature)
    own = below.gather(-1, target)
    exps = (below.exp() if needs else below.exp_()).scatter_(-1, top_index, 0.0)
    others = exps.sum(-1, keepdim=True)  # S
    log_total = torch.log1p(others)
    logp = own - log_total
    nothing = torch.zeros_like(own)
    if not needs:
        exps.scatter_(-1, top_index, 1.0)
        return logp, nothing, nothing, top, log_total, nothing
    total = 1 + others
    weighted = below.mul_(exps)
    mean_gap = -weighted.sum(-1, keepdim=True) / total  # K
    response = nothing
    if "entropy_response" in needs:
        squares = weighted.mul_(exps).sum(-1, keepdim=True)
        squares = squares + mean_gap * exps.mul_(exps).sum(-1, keepdim=True)
        p_top, p_own = 1 / total, logp.exp()
        response = squares / total**2 - torch.where(
            target == top_index,
            p_top * mean_gap * (others / total),
            p_own * (own + mean_gap) - p_top**2 * mean_gap,
        )
    return logp, log_total + mean_gap, response, top, log_total, mean_gap


def _d_logits(
    below: Tensor,
    log_total: Tensor,
    mean_gap: Tensor,
    target: Tensor,
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Gradient of one chunk's logits [t, V]; columns [t, 1] broadcast.

    Overwrites `below`, d_j. Logits less logsumexp would be a step shorter, but max z + log1p(S) as
    one number rounds a confident token's S away.
    """
    if grad_entropy is None:
        return _d_logits_of_logp(below.sub_(log_total).exp_(), target, grad_logp)
    p = below.sub(log_total).exp_()
    gradient = below.add_(mean_gap).mul_(p).mul_(-grad_entropy)  # dH/dz_j = -p_j L_j
    return gradient if grad_logp is None else gradient.add_(_d_logits_of_logp(p, target, grad_logp))


def _d_logits_of_logp(p: Tensor, target: Tensor, grad_logp: Tensor | None) -> Tensor:
    """Turn probabilities [t, V] into the gradient that comes through the log-prob."""
    assert grad_logp is not None  # autograd calls only where some gradient is wanted
    # d log p_a/dz_j = [j = a] - p_j, and 1 - p_a is the others' sum
    others = p.scatter_(-1, target, 0.0).sum(-1, keepdim=True)
    return p.mul_(-grad_logp).scatter_(-1, target, others * grad_logp)


def _product(d_logits: Tensor, matrix: Tensor) -> Tensor:
    """``d_logits @ matrix`` [t, D] in float32, of a matrix [V, D] of any float dtype."""
    product = d_logits.new_zeros((len(d_logits), matrix.shape[1]))
    for block, part in _blocks(matrix):
        product.addmm_(d_logits[:, block], part)
    return product


def _blocks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a matrix [V, D] as float32: whole where it is that already, or else in parts of V."""
    if matrix.dtype == torch.float32:
        yield slice(None), matrix
        return
    step = max(1, BLOCK_ELEMENTS // matrix.shape[1])
    for i in range(0, len(matrix), step):
        yield slice(i, i + step), matrix[i : i + step].float()


def _chunks(size: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(i, i + step) for i in range(0, max(size, 1), step)]  # of no tokens: one, empty
