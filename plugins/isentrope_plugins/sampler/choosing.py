"""Which decoder a model gets: a lean one where it provably computes the same, else the general."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from isentrope_plugins.sampler.cached import CachedDecoder
from isentrope_plugins.sampler.qwen3 import Qwen3Decoder, supports

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from isentrope_plugins.sampler.decoder import Decoder

_TOLERANCE = 1e-4
"""Largest difference of a logit in float32 that rounding explains."""
_MOST = 0.05
"""Whatever the dtype: a decoder with another model's weights differs by more."""


def decoder_for(model: PreTrainedModel, device: str) -> Decoder[Any]:
    """Copy the model into the fastest decoder that agrees with it."""
    if not supports(model):
        return CachedDecoder(model, device)
    lean = Qwen3Decoder(model, device)
    difference = disagreement(lean, model)
    if difference <= tolerance(model.dtype):
        return lean
    warnings.warn(
        f"The lean Qwen3 decoder's logits differ from the model's by {difference:.2g}, more than "
        f"{tolerance(model.dtype):.2g}: sampling through transformers' own forward, more slowly.",
        stacklevel=3,
    )
    return CachedDecoder(model, device)


def tolerance(dtype: torch.dtype) -> float:
    """Return how far two ways to compute a logit may be apart, relative to logits of size 1."""
    scaled = _TOLERANCE * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    return min(scaled, _MOST)


@torch.no_grad()
def disagreement(decoder: Decoder[Any], model: PreTrainedModel) -> float:
    """Return the largest difference between logits, relative to the largest where that is above 1.

    Compared are a padded prompt and a step after it, with whole sequences read by the model.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary, (3, 9), generator=generator)
    pad = torch.tensor([0, 3, 6])
    ours, cache = decoder.prefill(ids[:, :-1].to(decoder.device), pad.to(decoder.device))
    steps = torch.stack([ours, decoder.step(ids[:, -1].to(decoder.device), cache)], 1).cpu()
    expected = torch.stack([_whole(model, row[skip:]) for row, skip in zip(ids, pad, strict=True)])
    return float((steps - expected).abs().max() / expected.abs().max().clamp(min=1))


def _whole(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the model's own logits [2, V] float32 after the last two of ids [T]."""
    training = model.training
    model.eval()
    try:
        return model(input_ids=ids[None].to(model.device)).logits[0, -2:].float().cpu()  # type: ignore[no-any-return]  # transformers types no forward
    finally:
        model.train(training)
