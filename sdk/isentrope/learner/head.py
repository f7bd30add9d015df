"""The policy head: log-probs of tokens from hidden states, without keeping the logits.

Logits exist for one chunk of tokens at a time, in float32, forwards and backwards, so that peak
memory does not grow with tokens x vocabulary. Shape legend: T tokens, D hidden size, V vocabulary.

Two places where float32 would lose what matters are computed from the *other* tokens instead:

- log p of a confident token. With m the top logit and S the sum of exp(z_j - m) over all others,
  ``logsumexp = m + log1p(S)``: right down to S ~ 1e-38, where ``log(1 + S)`` is 0 from 6e-8 on.
- its gradient ``1 - p`` (paper, B.4): the sum of the other probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24
"""Logits held at a time: 64 MiB of float32."""


def token_logp(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probs [T] of the targets, and the exact entropy [T] of each distribution if asked.

    hidden: [T, D], the states that predict the targets, any float dtype. weight: [V, D].
    bias: [V]. target: [T] int64. Results are float32, in nats, of the distribution at
    `temperature`; both carry gradient to hidden, weight and bias.
    """
    logp, exact = _TokenLogp.apply(hidden, weight, bias, target, temperature, entropy)
    return logp, exact if entropy else None


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        temperature: float,
        want_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        matrix = weight.float()
        chunks = [
            _evaluate(
                _logits(hidden[rows], matrix, bias, temperature), target[rows, None], want_entropy
            )
            for rows in _chunks(hidden.shape[0], weight.shape[0])
        ]
        logp, top, log_total, entropy = (torch.cat(x) for x in zip(*chunks, strict=True))
        ctx.save_for_backward(hidden, weight, bias, target, top, log_total, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        # Not views: FSDP2 would lose its hook if somebody changed one in place.
        return logp.squeeze(-1).clone(), entropy.flatten().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, top, log_total, entropy = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        grad_logp, grad_entropy = (None if g is None else g / ctx.temperature for g in grads)
        matrix = weight.float()
        for rows in _chunks(hidden.shape[0], weight.shape[0]):
            logits = _logits(hidden[rows], matrix, bias, ctx.temperature)
            # One after the other: their sum, logsumexp, would round a confident token's share away.
            log_p = logits.sub_(top[rows]).sub_(log_total[rows])
            d_logits = _d_logits(
                log_p,
                target[rows, None],
                None if grad_logp is None else grad_logp[rows, None],
                None if grad_entropy is None else grad_entropy[rows, None],
                entropy[rows],
            )
            if d_hidden is not None:
                d_hidden[rows] = (d_logits @ matrix).to(hidden.dtype)
            if d_weight is not None:
                d_weight.addmm_(d_logits.T, hidden[rows].float())
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            del logits, log_p, d_logits  # or they would live on beside the next chunk's
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _evaluate(
    logits: Tensor, target: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-prob, top logit, logsumexp above the top, and entropy of one chunk, [t, 1] each.

    Entropy is [t, 0] unless wanted. Overwrites `logits` [t, V].
    """
    top, top_index = logits.max(-1, keepdim=True)
    own = logits.gather(-1, target) - top
    shifted = logits.sub_(top)
    exps = shifted.exp() if want_entropy else shifted.exp_()
    weighted = shifted.mul_(exps).sum(-1, keepdim=True) if want_entropy else None
    others = exps.scatter_(-1, top_index, 0.0).sum(-1, keepdim=True)
    log_total = torch.log1p(others)
    entropy = own[:, :0] if weighted is None else log_total - weighted / (1 + others)
    return own - log_total, top, log_total, entropy


def _d_logits(
    log_p: Tensor,
    target: Tensor,
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    entropy: Tensor,
) -> Tensor:
    """Gradient of one chunk's logits [t, V]; columns [t, 1] broadcast. Overwrites `log_p`."""
    if grad_entropy is None:
        p, gradient = log_p.exp_(), None
    else:  # dH/dz_j = -p_j * (log p_j + H)
        p = log_p.exp()
        gradient = log_p.add_(entropy).mul_(p).mul_(-grad_entropy)
    if grad_logp is not None:  # d logp_a/dz_j = [j = a] - p_j, and 1 - p_a is the others' sum
        others = p.scatter_(-1, target, 0.0).sum(-1, keepdim=True)
        p.mul_(-grad_logp).scatter_(-1, target, others * grad_logp)
        gradient = p if gradient is None else gradient.add_(p)
    assert gradient is not None  # autograd calls only where one of the two is wanted
    return gradient


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Float32 logits; the product itself accumulates in float32 whatever hidden's dtype."""
    logits = hidden.float() @ weight.T
    if bias is not None:
        logits += bias.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(size: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(i, i + step) for i in range(0, max(size, 1), step)]  # of no tokens: one, empty
