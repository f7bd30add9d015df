"""Other weights for a model, for `check_engine`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isentrope.engines import Adapter
from isentrope.models import LanguageModel


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


@torch.no_grad()
def adapted(model: LanguageModel, rank: int, seed: int) -> tuple[Adapter, dict[str, Tensor]]:
    """Return random adapters of every linear layer but the last, and the weights with them added.

    The weights are by name, float32.
    """
    import peft

    rng = torch.Generator().manual_seed(seed)
    weights = dict(model.model.state_dict(keep_vars=True))  # tied ones stay the same object
    plain: Any = model.model
    head = plain.get_output_embeddings()
    tensors: dict[str, Tensor] = {}
    layers = [
        name
        for name, layer in model.model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    ]
    for name in layers:
        weight = weights[f"{name}.weight"]
        low = torch.randn(rank, weight.shape[1], generator=rng) / weight.shape[1] ** 0.5
        up = 0.1 * torch.randn(weight.shape[0], rank, generator=rng)
        tensors[f"base_model.model.{name}.lora_A.weight"] = low
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        weights[f"{name}.weight"] = weight + (up @ low).to(weight)  # alpha is the rank
    config: Any = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted({name.rpartition(".")[2] for name in layers}),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return Adapter(tensors, plain), weights
