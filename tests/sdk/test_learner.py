"""The learner's own: half precision, the rehearsal, rate, decay, the start policy, exports."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import isentrope
from isentrope import ConfigError, LearnerConfig, LoraConfig, TrainingError, recipe
from isentrope.config import read_config
from isentrope.learner import sharding
from isentrope.learner.checkpoints import CheckpointFolder, Progress
from isentrope.learner.learner import Learner
from isentrope.learner.policy import Policy
from isentrope.learner.ranks import joined
from isentrope.learner.rehearsal import rehearse
from isentrope.learner.scaling import GROWTH_INTERVAL, LossScale
from isentrope_objectives.surrogates import KlToStart
from tests.sdk.test_aggregation import MODEL, NOMINAL, TEMPERATURE, TRAJECTORIES, make_model

ALGORITHM = recipe("grpo")
EPISODES = [t.episode for t in TRAJECTORIES]


def make_learner(model: Any = None, **options: Any) -> Learner:
    config = LearnerConfig(**{"lr": 1e-2, "max_grad_norm": 1e9, **options})
    torch.manual_seed(0)  # of the adapters
    policy = Policy(copy.deepcopy(model or MODEL), TEMPERATURE, config.lora)
    return Learner(policy, config)


def take_step(learner: Learner, **options: Any) -> Any:
    return learner.step(ALGORITHM, TRAJECTORIES, nominal_sequences=NOMINAL, step=1, **options)


def weights(learner: Learner) -> Tensor:
    return torch.cat([w.flatten().clone() for w in learner.policy.weights().values()])


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process group of one, and a learner in float16."""
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)
    with joined(sharded=True):
        yield make_learner(dtype="float16")


def test_float16_learns_as_float32_does_to_its_digits(half: Learner) -> None:
    plain = make_learner()
    exact, rounded = take_step(plain), take_step(half)
    assert not rounded.skipped
    assert pytest.approx(exact.grad_norm, rel=0.01) == rounded.grad_norm
    assert pytest.approx(exact.loss, rel=0.01, abs=1e-3) == rounded.loss
    for ours, theirs in zip(half.policy.trainable(), plain.policy.trainable(), strict=True):
        assert torch.float32 == ours.dtype == ours.grad.dtype
        apart = (ours.grad.full_tensor() - theirs.grad).norm()
        assert apart < 0.02 * theirs.grad.norm() + 1e-4


def test_an_overflow_in_float16_is_skipped_counted_and_harmless(half: Learner) -> None:
    before, half.scale.value = weights(half), 2.0**60
    report = take_step(half)
    assert report.skipped
    assert 2.0**59 == half.scale.value
    assert torch.equal(before, weights(half))
    steps = 1
    while take_step(half).skipped:
        steps += 1
    assert half.scale.value == 2.0 ** (60 - steps)
    assert not torch.equal(before, weights(half))


def test_a_checkpoint_keeps_the_scale_and_how_long_it_has_held(
    half: Learner, tmp_path: Path
) -> None:
    half.scale.value = 2.0**60
    while take_step(half).skipped:
        pass
    take_step(half)
    progress = Progress(ALGORITHM.initial_state(), iteration=3)
    with CheckpointFolder(tmp_path) as folder:
        folder.save(half, progress)
        folder.finish()
        again = make_learner(dtype="float16")
        folder.load(again, Progress(ALGORITHM.initial_state()))
    assert 2 == again.scale.steps
    assert half.scale == again.scale
    assert torch.equal(weights(half), weights(again))
    one, other = take_step(half), take_step(again)
    assert one.grad_norm == other.grad_norm
    assert torch.equal(weights(half), weights(again))


def test_the_scale_grows_after_many_steps_and_starts_again_after_an_overflow() -> None:
    scale = LossScale()
    for _ in range(GROWTH_INTERVAL - 1):
        scale.update(finite=True)
    assert 2.0**16 == scale.value
    scale.update(finite=False)
    assert (2.0**15, 0) == (scale.value, scale.steps)
    for _ in range(GROWTH_INTERVAL):
        scale.update(finite=True)
    assert (2.0**16, 0) == (scale.value, scale.steps)


def test_float16_on_a_cpu_says_how_slow_it_is() -> None:
    with joined(sharded=True), pytest.warns(UserWarning, match="float16 is about a hundred times"):
        make_learner(dtype="float16")


def test_outputs_that_a_root_would_round_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate shards a policy."""

    def rounding(module: Any, mp_policy: MixedPrecisionPolicy, **options: Any) -> Any:
        if mp_policy.output_dtype is not None:
            mp_policy = attrs_free_replace(mp_policy)
        return fully_shard(module, mp_policy=mp_policy, **options)

    def attrs_free_replace(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
        from dataclasses import replace

        return replace(policy, output_dtype=torch.bfloat16)

    monkeypatch.setattr(sharding, "fully_shard", rounding)
    with joined(sharded=True), pytest.raises(ConfigError) as refused:
        make_learner(dtype="bfloat16")
    assert str(refused.value) == (
        "Log-probs of Qwen3ForCausalLM are rounded to torch.bfloat16 on their way out of the "
        "policy, which falsifies every importance ratio."
    )


def test_offload_without_a_gpu_is_refused() -> None:
    with joined(sharded=True), pytest.raises(ConfigError, match="takes a policy off a GPU"):
        make_learner(cpu_offload=True)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, alpha=4.0)])
def test_recomputed_activations_change_no_bit(lora: LoraConfig | None) -> None:
    plain = make_learner(lora=lora)
    recomputing = make_learner(lora=lora, activation_checkpointing=True)
    assert take_step(plain).loss == take_step(recomputing).loss
    assert torch.equal(weights(plain), weights(recomputing))


def test_recomputed_activations_switch_no_dropout_on() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        word_embed_proj_dim=16,
        dropout=0.5,
    )
    model = OPTForCausalLM(config)
    learner = make_learner(model, activation_checkpointing=True)
    inputs = learner.policy.sample_inputs()
    first, second = (learner.policy(inputs).logp for _ in "ab")
    plain = Policy(copy.deepcopy(model), TEMPERATURE, None)(inputs).logp
    assert first.requires_grad
    assert torch.equal(first, second)
    torch.testing.assert_close(first, plain, rtol=0, atol=1e-6)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = make_model()
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    with pytest.raises(ConfigError, match=r"weights that are not finite: model\.embed_tokens"):
        Policy(model, 1.0, None)


def test_position_embeddings_that_depend_on_the_longest_sequence_limit_the_context() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    scaled = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        rope_parameters={**scaled, "original_max_position_embeddings": 16},
    )
    policy = Policy(LlamaForCausalLM(config), 1.0, None)
    policy.check_context(16)
    with pytest.raises(ConfigError, match=r"set rollout\.context to at most 16"):
        policy.check_context(17)
    Policy(make_model(), 1.0, None).check_context(10**6)


def test_adapters_resume_on_the_base_that_they_were_trained_on_only(tmp_path: Path) -> None:
    base, lora = make_model(7), LoraConfig(r=2, alpha=4.0)
    learner, progress = make_learner(base, lora=lora), Progress(ALGORITHM.initial_state())
    with CheckpointFolder(tmp_path) as folder:
        folder.save(learner, progress)
        folder.finish()
        take_step(learner)
        folder.load(learner, progress)  # what is trained may differ
        with torch.no_grad():
            base.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
        with pytest.raises(TrainingError, match="frozen weights are not those"):
            folder.load(make_learner(base, lora=lora), progress)


def test_frozen_weights_are_stored_in_the_dtype_and_adapters_are_not() -> None:
    with joined(sharded=True):
        learner = make_learner(dtype="bfloat16", lora=LoraConfig(r=2, alpha=4.0))
        dtypes = {p.requires_grad: set() for p in learner.policy.parameters()}
        for parameter in learner.policy.parameters():
            dtypes[parameter.requires_grad].add(parameter.dtype)
        assert {True: {torch.float32}, False: {torch.bfloat16}} == dtypes
        before = weights(learner)
        take_step(learner)
        assert torch.float32 == before.dtype
        assert 0 < (weights(learner) - before).abs().max() < 1


def test_only_matrices_decay() -> None:
    learner = make_learner(weight_decay=0.5, lr=0.1)
    before = {n: p.detach().clone() for n, p in learner.policy.named_parameters()}
    for parameter in learner.policy.trainable():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    for name, parameter in learner.policy.named_parameters():
        factor = 0.95 if parameter.dim() > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1]),
        ("linear", 0, [0.8, 0.6, 0.4, 0.2]),
        ("linear", 2, [0.5, 1, 2 / 3, 1 / 3]),
        ("cosine", 0, [(1 + math.cos(math.pi * x / 5)) / 2 for x in (1, 2, 3, 4)]),
    ],
)
def test_the_rate_follows_its_schedule(schedule: Any, warmup: int, expected: list[float]) -> None:
    learner = make_learner(schedule=schedule, warmup=warmup)
    rates = [learner.set_rate(iteration, 4) for iteration in range(4)]
    assert pytest.approx([1e-2 * x for x in expected]) == rates
    assert rates[-1] == learner.optimizer.param_groups[0]["lr"]


def test_the_start_policys_log_probs_are_the_bases_however_far_training_went() -> None:
    learner = make_learner(lora=LoraConfig(r=2, alpha=4.0))
    start = torch.cat([s.logp for s in learner.scores(EPISODES, frozenset())])
    for _ in range(3):
        take_step(learner)
    now = torch.cat([s.logp for s in learner.scores(EPISODES, frozenset())])
    reference = torch.cat(learner.reference_logps(EPISODES))
    torch.testing.assert_close(reference, start, rtol=0, atol=1e-6)
    assert (now - start).abs().max() > 0.01
    assert all(p.requires_grad for n, p in learner.policy.named_parameters() if ".lora_" in n)


def test_without_adapters_there_is_no_start_policy() -> None:
    with pytest.raises(ConfigError, match=r"only where adapters are trained"):
        make_learner().reference_logps(EPISODES)
    pull = recipe("grpo", regularizers=[KlToStart(coef=0.1)])
    with pytest.raises(ConfigError, match=r"set learner.lora = \{\}"):
        read_config({"env": "arithmetic", "algorithm": pull})


def test_kl_to_the_start_has_the_gradient_of_the_divergence() -> None:
    """In expectation over the policy's own tokens: against autograd of the KL itself."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    start = torch.randn(6, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    kl = (logp.exp() * (logp - start)).sum()
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    batch: Any = attrs.make_class("Batch", ["logp", "reference_logp"])(logp, start)
    per_token = KlToStart(coef=1.0)(batch)
    (found,) = torch.autograd.grad((logp.exp().detach() * per_token).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_it_pulls_back() -> None:
    """With no advantage at all, what a policy had learnt is unlearnt."""
    learner = make_learner(lora=LoraConfig(r=2, alpha=4.0), lr=3e-3)
    for _ in range(5):
        take_step(learner)
    algorithm = recipe("grpo", regularizers=[KlToStart(coef=1.0)])
    reference = learner.reference_logps(EPISODES)

    def measured() -> tuple[float, list[Any]]:
        scores = learner.scores(EPISODES, frozenset())
        apart = torch.cat([s.logp - r for s, r in zip(scores, reference, strict=True)])
        return float(apart.square().mean()), scores

    before, _ = measured()
    for _ in range(20):
        _, scores = measured()
        minibatch = [
            attrs.evolve(t, old=s, advantage=torch.zeros_like(t.advantage), reference_logp=r)
            for t, s, r in zip(TRAJECTORIES, scores, reference, strict=True)
        ]
        report = learner.step(algorithm, minibatch, nominal_sequences=NOMINAL, step=0)
    after, _ = measured()
    assert after < 0.2 * before
    assert report.diagnostics["kl_to_start/kl"] > 0


def test_a_rehearsal_changes_nothing() -> None:
    learner, other = make_learner(), make_learner()
    assert rehearse(learner, 60, frozenset({"entropy"})) > 0
    assert all(p.grad is None for p in learner.policy.parameters())
    take_step(learner)
    take_step(other)
    assert torch.equal(weights(learner), weights(other))


SHORT_OF_MEMORY = """
import resource, sys
import torch
from isentrope import LearnerConfig, TrainingError
from isentrope.learner.learner import Learner
from isentrope.learner.policy import Policy
from isentrope.learner.rehearsal import rehearse
from tests.sdk.test_aggregation import make_model

learner = Learner(Policy(make_model(), 1.0, None), LearnerConfig(micro_batch_tokens=400_000))
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
try:
    rehearse(learner, 64, frozenset())
except TrainingError as error:
    print(error)
"""


def test_where_memory_is_short_it_says_so_before_the_first_iteration() -> None:
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    assert found.stdout.startswith(
        "A micro-batch of 400000 tokens, the largest that this run may meet, does not fit into "
    )
    assert "lower learner.micro_batch_tokens (400000), or set learner.activation_checkp" in (
        found.stdout
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exported_adapters_load_into_peft_and_merged_weights_into_transformers(
    tmp_path: Path, dtype: Any
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_model(7)
    base.save_pretrained(tmp_path / "base")
    with joined(sharded=True):
        learner = make_learner(base, lora=LoraConfig(r=2, alpha=4.0), dtype=dtype)
        for _ in range(3):
            take_step(learner)
        policy = learner.policy
        adapter = policy.adapter()
        assert adapter is not None
        adapter.save(tmp_path / "adapter")
        base.save_pretrained(tmp_path / "merged", state_dict=policy.weights())
        (segment,) = EPISODES[0].segments[:1]
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        if dtype != "float32":  # the base was rounded once, when it was stored
            for parameter in plain.parameters():
                parameter.data = parameter.data.bfloat16().float()
        adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
        ids = torch.from_numpy(segment.ids)[None]
        with torch.no_grad():
            logps = [m.double()(input_ids=ids).logits.log_softmax(-1) for m in (merged, adapted)]
        torch.testing.assert_close(*logps, rtol=0, atol=1e-6)
        if dtype == "float32":
            ours = learner.scores(EPISODES[:1], frozenset())[0].logp
            theirs = (adapted(input_ids=ids).logits / TEMPERATURE).log_softmax(-1)[0, :-1]
            theirs = theirs.gather(-1, ids[0, 1:, None])[:, 0][
                torch.from_numpy(segment.sampled[1:])
            ]
            ours = ours[: len(theirs)].double()
            torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=3e-6)


def test_the_metrics_say_what_an_iteration_cost(tiny_run: dict[str, Any]) -> None:
    run = isentrope.train(**tiny_run, checkpoint_every=1)
    for metrics in run.metrics:
        assert metrics["performance/rollout_tokens_per_second"] == pytest.approx(
            metrics["tokens"] / metrics["performance/collect_seconds"]
        )
        assert 0 < metrics["performance/collect_seconds"] < metrics["seconds/rollout"]
        assert 0 < metrics["performance/flop_utilisation"] < 1
        assert 0.1 < metrics["performance/peak_memory_gib"] < 64
        assert (
            0 < metrics["performance/environment_seconds"] < metrics["performance/collect_seconds"]
        )
    assert run.metrics[1]["seconds/checkpoint"] > 0 == run.metrics[0]["seconds/checkpoint"]


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    policy = Policy(copy.deepcopy(MODEL), 1.0, None)
    inputs = policy.sample_inputs()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy(inputs)
    layers, heads, size = 2, 2, 8
    attention = 4 * inputs.pairs * layers * heads * size  # torch does not count a CPU's
    assert policy.flops(inputs) == counter.get_total_flops() + attention
    squares = [len(s.ids[: np.flatnonzero(s.sampled)[-1]]) for s in policy._samples()]
    assert inputs.pairs == sum(n * (n + 1) // 2 for n in squares)
