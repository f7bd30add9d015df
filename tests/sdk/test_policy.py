"""The policy: LoRA, merged weights, heads it refuses, and FSDP2 round it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel, Qwen3Config

from isentrope import ConfigError, LoraConfig
from isentrope.learner.attention import own_attention
from isentrope.learner.head import KNOWN, TokenScores
from isentrope.learner.packing import Inputs
from isentrope.learner.policy import Policy
from tests.sdk.packs import packed_rows

VOCABULARY, SAMPLED_FROM = 50, 5


def qwen3(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
        max_position_embeddings=64,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def some_rows(rows: int = 3, length: int = 12) -> Tensor:
    """Return ids [R, L]; what comes after the fifth is sampled."""
    torch.manual_seed(1)
    return torch.randint(VOCABULARY, (rows, length))


def some_inputs() -> Inputs:
    return packed_rows(some_rows(), SAMPLED_FROM)


def logits_of_rows(model: PreTrainedModel, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the model's own logits [T, V], float64 and tempered, and the sampled tokens [T]."""
    ids = some_rows()
    with own_attention(model):
        logits = model(input_ids=ids).logits.double() / temperature
    at = slice(SAMPLED_FROM - 1, -1)
    return logits[:, at].flatten(0, 1), ids[:, SAMPLED_FROM:].flatten()


def by_full_logits(model: PreTrainedModel, temperature: float) -> Tensor:
    logits, target = logits_of_rows(model, temperature)
    return torch.log_softmax(logits, -1).gather(-1, target[:, None]).squeeze(-1)


@pytest.mark.parametrize("tied", [True, False])
def test_log_probs_are_those_of_the_models_own_logits_at_the_temperature(tied: bool) -> None:
    model, inputs = qwen3(tied=tied), some_inputs()
    logp, *others = Policy(model, 0.7, None)(inputs)
    expected = by_full_logits(model, 0.7)
    assert [None, None] == others
    assert torch.float32 == logp.dtype
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=0)


def test_lora_starts_as_the_base_policy_and_trains_only_adapters() -> None:
    inputs = some_inputs()
    expected = Policy(qwen3(), 1.0, None)(inputs).logp
    policy = Policy(qwen3(), 1.0, LoraConfig(r=4, alpha=8.0))
    logp = policy(inputs).logp
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
    base = Policy(plain, 1.0, None)(inputs).logp
    missing = plain.load_state_dict(policy.weights(), strict=True)
    assert ([], []) == (missing.missing_keys, missing.unexpected_keys)
    adapted = policy(inputs).logp
    merged = Policy(plain, 1.0, None)(inputs).logp
    assert float((adapted - base).detach().abs().max()) > 0.01
    torch.testing.assert_close(adapted, merged, atol=1e-5, rtol=0)


def adapted_head(policy: Policy) -> None:
    """Give every adapter something to say."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def test_an_adapted_output_layer_says_what_the_adapted_model_does(tmp_path: Path) -> None:
    model, inputs = qwen3(tied=False), some_inputs()
    policy = Policy(model, 0.7, LoraConfig(r=4, alpha=8.0, head=True))
    names = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert 2 == sum("lm_head.lora_" in name for name in names)
    assert all(".lora_" in name for name in names)
    base = policy(inputs).logp.detach()
    adapted_head(policy)
    logp = policy(inputs).logp
    expected = by_full_logits(model, 0.7)
    assert float((logp - base).detach().abs().max()) > 0.1
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=0)
    mixture = torch.linspace(-1, 1, logp.numel())
    ours = torch.autograd.grad((mixture * logp).sum(), policy.trainable())
    theirs = torch.autograd.grad((mixture * expected).sum(), policy.trainable())
    for a, b in zip(ours, theirs, strict=True):  # float32 rounds sums: to their largest part
        torch.testing.assert_close(a, b, atol=3e-5 * float(b.abs().max()), rtol=0)


def test_an_adapted_output_layer_merges_into_weights_that_a_folder_holds(tmp_path: Path) -> None:
    inputs = some_inputs()
    model = qwen3(tied=False)
    policy = Policy(model, 1.0, LoraConfig(r=4, alpha=8.0, head=True))
    before = policy.weights()
    adapted_head(policy)
    weights = policy.weights()
    assert qwen3(tied=False).state_dict().keys() == weights.keys()
    changed = {n for n in weights if not torch.equal(weights[n], before[n])}
    assert "lm_head.weight" in changed
    assert "model.embed_tokens.weight" not in changed
    qwen3(tied=False).save_pretrained(tmp_path, state_dict=weights)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    reloaded = Policy(plain, 1.0, None)(inputs).logp
    torch.testing.assert_close(policy(inputs).logp, reloaded, atol=1e-5, rtol=0)


def test_an_output_layer_that_is_the_embedding_takes_no_adapter() -> None:
    with pytest.raises(ConfigError) as refused:
        Policy(qwen3(tied=True), 1.0, LoraConfig(r=4, alpha=8.0, head=True))
    expected = (
        "Qwen3ForCausalLM has its embedding for an output layer, which merging an adapter would "
        "change: use learner.lora.head = false."
    )
    assert expected == str(refused.value)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, alpha=8.0, head=True)])
def test_entropies_and_responses_are_those_of_the_models_own_logits(
    lora: LoraConfig | None,
) -> None:
    model, inputs = qwen3(tied=False), some_inputs()
    policy = Policy(model, 0.7, lora)
    adapted_head(policy)
    logits, target = logits_of_rows(model, 0.7)
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    expected = -(p * log_p).sum(-1)
    step = torch.nn.functional.one_hot(target, VOCABULARY) - p
    response = -(p * (log_p + expected[:, None]) * step).sum(-1)
    found = policy(inputs, needs=frozenset({"entropy", "entropy_response"}))
    torch.testing.assert_close(found.entropy.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy_response.double(), response, atol=1e-5, rtol=0)


def test_the_chunked_head_is_exact_and_computes_all_that_parts_may_need() -> None:
    policy = Policy(qwen3(), 1.0, None)
    assert policy.exact_softmax
    policy.check_needs(KNOWN)


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
        for layer in policy.layers():
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
        scores = policy(inputs, needs=KNOWN)
        assert isinstance(scores, TokenScores)
        for ours, plain in zip(
            scores, Policy(qwen3(), 1.0, None)(inputs, needs=KNOWN), strict=True
        ):
            torch.testing.assert_close(plain, ours, atol=0, rtol=0)
    finally:
        distributed.destroy_process_group()


def _logp_and_gradients(policy: Policy, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    logp = policy(inputs).logp
    (logp * torch.linspace(-1, 1, logp.numel())).sum().backward()
    return logp.detach(), {n: p.grad for n, p in policy.named_parameters()}
