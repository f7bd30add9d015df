"""The policy: LoRA, merged weights, heads it refuses, and FSDP2 round it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel, Qwen3Config

from isentrope import ConfigError, LoraConfig
from isentrope.learner.packing import Inputs
from isentrope.learner.policy import Policy

VOCABULARY = 50


def qwen3(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
        max_position_embeddings=64,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def some_inputs(rows: int = 3, length: int = 12) -> Inputs:
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (rows, length))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(4, length - 1), indexing="ij")
    row, column = row.flatten(), column.flatten()
    return Inputs(ids, row, column, ids[row, column + 1])


def by_full_logits(model: PreTrainedModel, inputs: Inputs, temperature: float) -> Tensor:
    logits = model(input_ids=inputs.ids).logits.double() / temperature
    logp = torch.log_softmax(logits, -1)[inputs.row, inputs.column]
    return logp.gather(-1, inputs.target[:, None]).squeeze(-1)


@pytest.mark.parametrize("tied", [True, False])
def test_log_probs_are_those_of_the_models_own_logits_at_the_temperature(tied: bool) -> None:
    model, inputs = qwen3(tied=tied), some_inputs()
    expected = by_full_logits(model.eval(), inputs, 0.7)
    logp, entropy = Policy(model, 0.7, None)(inputs)
    assert entropy is None
    assert torch.float32 == logp.dtype
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=0)


def test_lora_starts_as_the_base_policy_and_trains_only_adapters() -> None:
    inputs = some_inputs()
    expected, _ = Policy(qwen3(), 1.0, None)(inputs)
    policy = Policy(qwen3(), 1.0, LoraConfig(r=4, alpha=8.0))
    logp, _ = policy(inputs)
    torch.testing.assert_close(expected, logp, atol=0, rtol=0)
    names = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_merged_weights_are_those_of_a_plain_model_that_says_the_same() -> None:
    inputs = some_inputs()
    policy = Policy(qwen3(), 1.0, LoraConfig(r=4, alpha=8.0))
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    plain = qwen3()
    base, _ = Policy(plain, 1.0, None)(inputs)
    missing = plain.load_state_dict(policy.weights(), strict=True)
    assert ([], []) == (missing.missing_keys, missing.unexpected_keys)
    adapted, _ = policy(inputs)
    merged, _ = Policy(plain, 1.0, None)(inputs)
    assert float((adapted - base).detach().abs().max()) > 0.01
    torch.testing.assert_close(adapted, merged, atol=1e-5, rtol=0)


def test_a_model_with_capped_logits_is_refused_and_not_silently_miscounted() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.1,
        max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"more than one .* sets final_logit_softcapping"):
        Policy(AutoModelForCausalLM.from_config(config, dtype=torch.float32), 1.0, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_refused_since_small_updates_would_round_away(dtype) -> None:
    with pytest.raises(ConfigError, match=f"weights in {dtype}; training needs float32"):
        Policy(qwen3(dtype=dtype), 1.0, None)


def test_under_fsdp2_log_probs_leave_the_root_unrounded_and_gradients_agree(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    inputs = some_inputs()
    expected, gradients = _logp_and_gradients(Policy(qwen3(), 1.0, None), inputs)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        policy = Policy(qwen3(), 1.0, None)
        for layer in policy._plain.model.layers:
            fully_shard(layer)
        fully_shard(
            policy,
            mp_policy=MixedPrecisionPolicy(
                reduce_dtype=torch.float32, output_dtype=torch.float32, cast_forward_inputs=False
            ),
        )
        logp, sharded = _logp_and_gradients(policy, inputs)
        assert torch.float32 == logp.dtype
        torch.testing.assert_close(expected, logp, atol=0, rtol=0)
        assert gradients.keys() == sharded.keys()
        for name, gradient in gradients.items():
            whole = sharded[name].full_tensor()  # a DTensor
            torch.testing.assert_close(gradient, whole, atol=1e-6, rtol=1e-5)
    finally:
        distributed.destroy_process_group()


def _logp_and_gradients(policy: Policy, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    logp, _ = policy(inputs)
    (logp * torch.linspace(-1, 1, logp.numel())).sum().backward()
    return logp.detach(), {n: p.grad for n, p in policy.named_parameters()}
