"""The model's own answers, for `check_engine`.

Shape legend: P tokens of a prompt, N tokens of its completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from isentrope.models import LanguageModel


@torch.no_grad()
def model_logp(
    model: LanguageModel,
    weights: Mapping[str, Tensor] | None,
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    temperature: float,
    top_k: int,
) -> list[float]:
    """Return the log-probability of each token of a completion [N], nats, computed in float32.

    Of the distribution at that temperature, over the `top_k` most likely tokens (0: all). weights:
    what to use in place of the model's own, by name.
    """
    policy = model.model
    was_training = policy.training
    policy.train(False)
    try:
        ids = torch.tensor([[*prompt, *completion]], device=policy.device)
        inputs = {"input_ids": ids, "use_cache": False}
        output = (
            policy(**inputs)
            if weights is None
            else functional_call(policy, dict(weights), (), inputs)
        )
    finally:
        policy.train(was_training)
    scores = output.logits[0, len(prompt) - 1 : -1].float() / temperature  # [N, V]
    if top_k:
        least = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    chosen = torch.tensor(completion, device=scores.device)[:, None]
    found: list[float] = scores.log_softmax(-1).gather(-1, chosen)[:, 0].tolist()
    return found


def perturbed(model: LanguageModel) -> dict[str, Tensor]:
    """Return the model's weights with a little noise, by every name; tied ones stay equal."""
    rng = torch.Generator().manual_seed(0)
    made: dict[int, Tensor] = {}
    weights = {}
    for name, tensor in model.model.state_dict().items():
        if tensor.data_ptr() not in made:
            noise = torch.randn(tensor.shape, generator=rng).to(tensor)
            changed = tensor + 0.02 * noise if tensor.is_floating_point() else tensor.clone()
            made[tensor.data_ptr()] = changed
        weights[name] = made[tensor.data_ptr()]
    return weights
