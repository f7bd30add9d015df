"""The numerics study: its variants are what they say, and its measures what they are called."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamics import precision
from dynamics.precision import gradients as own
from dynamics.precision import ratios, trajectories
from dynamics.precision.variants import VARIANTS, VariantPolicy
from torch import Tensor

import isentrope
from isentrope.learner.packing import Inputs
from isentrope.learner.policy import Policy
from tests.conftest import SMALL_MODEL
from tests.sdk.packs import packed_rows


@pytest.fixture(scope="module")
def model() -> Any:
    config = {k: v for k, v in SMALL_MODEL.items() if k != "id"}
    built = isentrope.component("model", "tiny-qwen3", **config)
    return built.build(isentrope.EnvRef("arithmetic")).model


@pytest.fixture(scope="module")
def inputs(model: Any) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return packed_rows(torch.randint(0, model.config.vocab_size, (3, 12), generator=generator), 5)


def learnt(policy: Policy, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log-probs, and the gradients of their mean."""
    policy.zero_grad()
    logp = policy(inputs).logp
    logp.mean().backward()
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return logp.detach(), gradients


def apart(gradients: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Return the relative L2 distance of two gradients."""
    assert gradients.keys() == others.keys()
    one, other = (
        torch.cat([g[n].double().flatten() for n in gradients]) for g in (gradients, others)
    )
    return float((one - other).norm() / other.norm())


def of(model: Any, name: str) -> VariantPolicy:
    return VariantPolicy(model, 1.0, VARIANTS[name])


def test_float32_is_the_policy_that_is_shipped_to_the_bit(model: Any, inputs: Inputs) -> None:
    logp, gradients = learnt(Policy(model, 1.0, None), inputs)
    ours, found = learnt(of(model, "float32"), inputs)
    assert torch.equal(logp, ours)
    assert all(torch.equal(g, found[n]) for n, g in gradients.items())


def test_float64_is_float64_in_every_layer(model: Any, inputs: Inputs) -> None:
    policy = of(model, "float64")
    dtypes: set[torch.dtype] = set()

    def note(_: Any, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        dtypes.update({first.dtype} if isinstance(first, Tensor) else set())

    hooks = [m.register_forward_hook(note) for m in policy.modules() if not list(m.children())]
    logp, gradients = learnt(policy, inputs)
    for hook in hooks:
        hook.remove()
    assert {torch.float64} == dtypes | {logp.dtype} | {g.dtype for g in gradients.values()}


def test_float64s_gradient_is_that_of_finite_differences(model: Any, inputs: Inputs) -> None:
    policy = of(model, "float64")
    _, gradients = learnt(policy, inputs)
    generator = torch.Generator().manual_seed(1)
    step = 1e-6
    for name, parameter in policy.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        means = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                means.append(policy(inputs).logp.mean())
                parameter.sub_(sign * step * direction)
        slope = float(means[0] - means[1]) / (2 * step)
        assert slope == pytest.approx(
            float((gradients[name] * direction).sum()), rel=1e-5, abs=1e-8
        )


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "float64"])
def test_every_variant_is_near_float64_as_far_as_its_digits_go(
    model: Any, inputs: Inputs, name: str
) -> None:
    truth, true_gradients = learnt(of(model, "float64"), inputs)
    logp, gradients = learnt(of(model, name), inputs)
    error = float((logp - truth).abs().max())
    low, high = {"float32": (0, 1e-5), "bf16": (1e-4, 0.3), "fp16": (1e-5, 0.03)}[name.split()[0]]
    assert low < error < high
    assert torch.float32 == logp.dtype
    assert {torch.float32} == {g.dtype for g in gradients.values()}
    assert apart(gradients, true_gradients) < max(high, 1e-5)


def test_a_loss_scale_leaves_no_trace_but_what_it_saves(model: Any, inputs: Inputs) -> None:
    import attrs

    scaled = VARIANTS["fp16"]
    assert scaled.loss_scale > 1
    plain = VariantPolicy(model, 1.0, attrs.evolve(scaled, loss_scale=1.0))
    logp, gradients = learnt(plain, inputs)
    ours, found = learnt(of(model, "fp16"), inputs)
    assert torch.equal(logp, ours)
    assert apart(gradients, found) < 0.02


def test_rounded_log_probs_are_those_of_the_same_model_rounded(model: Any, inputs: Inputs) -> None:
    logp, _ = learnt(of(model, "bf16"), inputs)
    rounded, _ = learnt(of(model, "bf16 log-probs"), inputs)
    assert torch.equal(logp.bfloat16().float(), rounded)
    assert not torch.equal(logp, rounded)


def test_the_engine_gets_float32_weights(model: Any) -> None:
    for name in VARIANTS:
        assert {torch.float32} == {w.dtype for w in of(model, name).weights().values()}


# ---------------------------------------------------------------- measures


def test_ratios_of_episodes_are_of_their_own_tokens() -> None:
    log_ratio = torch.tensor([0.3, 0.1, -0.2, 0.6]).double()
    found = ratios._sequence_ratios(log_ratio, [3, 1])
    assert [math.exp(0.2 / 3), math.exp(0.6)] == pytest.approx(found.tolist())


def test_a_ratio_is_outside_above_or_below() -> None:
    ratio = torch.tensor([0.79, 0.81, 1.0, 1.27, 1.29])
    assert [-1, 0, 0, 0, 1] == ratios._outside(ratio, (0.2, 0.28)).tolist()


def test_the_reference_is_no_error_away_from_itself() -> None:
    torch.manual_seed(0)
    new, old = torch.randn(40).double(), torch.randn(40).double()
    name = "float64"
    found = ratios._against_reference(name, {name: new}, {name: old}, [30, 10])
    wrong = {k: v for k, v in found.items() if "bias" in k or "error" in k or "changed" in k}
    assert {0.0} == set(wrong.values())
    above = ((new - old).exp() > 1.2).double().mean()
    assert float(above) == found["above"] > 0


def test_errors_are_of_the_variant_less_the_reference() -> None:
    old = {"float64": torch.zeros(4).double(), "bf16": torch.zeros(4)}
    new = {
        "float64": torch.tensor([0.0, 0.1, 0.19, -0.5]).double(),
        "bf16": torch.tensor([0.1, 0.1, 0.15, -0.5]),
    }
    found = ratios._against_reference("bf16", new, old, [2, 2])
    assert 0.06 / 4 == pytest.approx(found["log_ratio_error"], abs=1e-7)
    assert 0.14 / 4 == pytest.approx(found["log_ratio_error_abs"], abs=1e-7)
    bias = (math.exp(0.1) - 1 + math.exp(0.15) - math.exp(0.19)) / 4
    assert bias == pytest.approx(found["ratio_bias"], abs=1e-6)
    assert 0.25 == found["clip_changed"]  # exp(0.19) is above 1.2, exp(0.15) is not
    assert -0.06 / 4 == pytest.approx(found["entropy_bias"], abs=1e-7)


def test_own_gradients_are_the_odds_of_the_others() -> None:
    gap = torch.tensor([0.0, 3.0, 12.0, 30.0])
    logits = torch.stack([gap, torch.zeros(4)], -1)
    target = torch.zeros(4, dtype=torch.long)
    truth = [1 / (1 + math.exp(g)) for g in gap.tolist()]
    assert truth == pytest.approx(own._own_truly(logits, target).tolist(), rel=1e-12)
    assert truth == pytest.approx(own._own_ours(logits, target).tolist(), rel=1e-6)
    plain = own._own_plain(logits, target).tolist()
    assert truth[:2] == pytest.approx(plain[:2], rel=1e-6)
    assert 0 == plain[3] < truth[3]
    found = own._gradient_errors(torch.tensor(plain), torch.tensor(truth).double())
    assert (0.25, 1.0) == (found["zero"], found["relative_max"])


def test_distance_is_of_the_first_less_the_other() -> None:
    assert {"mean_abs": 0.2, "mean": 0.1} == pytest.approx(
        trajectories.distance([1.3, 0.9, 5.0], [1.0, 1.0])
    )


# ---------------------------------------------------------------- jobs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds that were measured."""
    seeds: list[int] = []

    def fixed(seed: int) -> dict[str, Any]:
        seeds.append(seed)
        return {"x": 1 / 3, "y": [math.nan, 2]}

    monkeypatch.setitem(precision._OF_A_SEED, "fixed", fixed)
    return seeds


def test_a_job_is_done_once_and_its_record_is_json(tmp_path: Path, counted: list[int]) -> None:
    job = precision.Job("fixed", 7)
    first = precision.run(job, tmp_path)
    assert {"x": 0.333333, "y": [None, 2]} == first == precision.run(job, tmp_path)
    assert [7] == counted
    (written,) = (tmp_path / "precision" / "fixed").glob("7-*.json")
    assert first == json.loads(written.read_text())


def test_every_variant_is_trained_on_every_seed() -> None:
    keys = [job.key for job in precision.jobs()]
    assert len(keys) == len(set(keys)) == len(precision.SEEDS) * (3 + len(VARIANTS))
    assert "precision/trajectory/bf16 logits/3" in keys
