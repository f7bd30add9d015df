"""A short supervised phase: next-token loss on the assistant's turns of demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isentrope import Message

IGNORED = -100  # cross_entropy's own mark for positions without a label
Labelled = tuple[NDArray[np.int64], NDArray[np.int64]]


def label(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message]) -> Labelled:
    """Encode a conversation: ids [N], and labels [N] that are `IGNORED` outside assistant's turns.

    Encoded turn by turn, just as the token ledger builds an episode, so that the policy meets in
    rollouts the token boundaries that it was taught.
    """
    ids: list[int] = []
    labels: list[int] = []
    for message in conversation:
        if message["role"] == "assistant":
            turn = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
            turn = [*turn, tokenizer.eos_token_id]
            ids += turn
            labels += turn
        else:
            plain = [{"role": message["role"], "content": message["content"]}]
            opening = tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=True
            )
            prompt = tokenizer(opening, add_special_tokens=False)["input_ids"]
            ids += prompt
            labels += [IGNORED] * len(prompt)
    return np.array(ids), np.array(labels)


def warm_up(
    model: PreTrainedModel,
    corpus: Sequence[Labelled],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Train `model` in place; deterministic on one thread. Cosine schedule with a short ramp."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    ramp = max(1, steps // 15)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / ramp)
            * (0.05 + 0.475 * (1 + math.cos(math.pi * step / max(steps, 1))))
        ),
    )
    for _ in range(steps):
        chosen = [corpus[i] for i in rng.integers(len(corpus), size=batch)]
        ids, labels = (
            _pad([pair[k] for pair in chosen], value) for k, value in ((0, 0), (1, IGNORED))
        )
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _pad(rows: Sequence[NDArray[np.int64]], value: int) -> torch.Tensor:
    """Stack rows, padded on the right: causal attention never looks there."""
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)
