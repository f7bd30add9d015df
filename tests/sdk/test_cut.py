"""Cut Cross-Entropy in the head's place: what it is asked, what it refuses, what it answers.

The package itself is optional: a stand-in that computes the same takes its place, and `cut_itself`
asks the package, by an interpreter that has it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedModel, Qwen3Config

from isentrope import ConfigError, LearnerConfig, LoraConfig
from isentrope.learner.head import KNOWN
from isentrope.learner.packing import Inputs
from isentrope.learner.policy import Policy
from tests.sdk.packs import packed_rows
from tests.test_peers import RUN, interpreter

ROOT = Path(__file__).parents[2]

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def some_inputs() -> Inputs:
    torch.manual_seed(1)
    return packed_rows(torch.randint(50, (3, 12)), 5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a stand-in in the package's place; return the options that it was called with."""
    calls: list[dict[str, Any]] = []

    def linear_cross_entropy(e: Tensor, c: Tensor, targets: Tensor, **options: Any) -> Tensor:
        calls.append(options)
        return torch.nn.functional.cross_entropy(e @ c.T, targets, reduction="none")

    package = SimpleNamespace(linear_cross_entropy=linear_cross_entropy)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", package)
    return calls


def refusal(model: PreTrainedModel, lora: LoraConfig | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        Policy(model, 1.0, lora, "cut-cross-entropy")
    return str(refused.value)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, alpha=8.0)])
@pytest.mark.usefixtures("asked")
def test_log_probs_and_gradients_are_those_of_the_chunked_head(lora: LoraConfig | None) -> None:
    inputs, results = some_inputs(), []
    for backend in ("chunked", "cut-cross-entropy"):
        torch.manual_seed(3)  # for the adapters
        policy = Policy(qwen3(), 0.7, lora, backend)
        assert (backend == "chunked") == policy.exact_softmax
        logp, *others = policy(inputs)
        assert [None, None] == others
        assert torch.float32 == logp.dtype
        loss = (torch.linspace(-1, 1, len(logp)) * logp).sum()
        results.append([logp, *torch.autograd.grad(loss, policy.trainable())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-4)


def test_on_a_cpu_the_compiled_product_is_asked_and_filters_nothing(
    asked: list[dict[str, Any]],
) -> None:
    Policy(qwen3(), 1.0, None, "cut-cross-entropy")(some_inputs())
    expected = {"reduction": "none", "impl": "torch_compile", "filter_eps": None}
    assert [expected] == [dict(x) for x in {tuple(options.items()) for options in asked}]


def test_a_policy_that_is_yet_to_come_to_its_gpu_asks_nothing_of_the_package(
    asked: list[dict[str, Any]],
) -> None:
    policy = Policy(qwen3(), 1.0, None, "cut-cross-entropy", torch.device("cuda"))
    assert ("cuda", []) == (policy.device.type, asked)


def test_where_the_package_is_missing_the_refusal_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)
    message = refusal(qwen3())
    assert message.startswith("learner.head = 'cut-cross-entropy' cannot be imported (")
    assert message.endswith("): install isentrope[gpu], or use learner.head = 'chunked'.")


@pytest.mark.usefixtures("asked")
def test_an_output_layer_with_a_bias_is_refused() -> None:
    expected = (
        "learner.head = 'cut-cross-entropy' takes no bias, and the model's output layer has one: "
        "use learner.head = 'chunked'."
    )
    phi = AutoModelForCausalLM.from_config(PhiConfig(**SIZES), dtype=torch.float32)
    assert expected == refusal(phi)


@pytest.mark.usefixtures("asked")
def test_adapters_of_the_output_layer_are_refused() -> None:
    expected = (
        "learner.head = 'cut-cross-entropy' takes no adapters of the output layer: use "
        "learner.head = 'chunked', or learner.lora.head = false."
    )
    assert expected == refusal(qwen3(), LoraConfig(r=4, alpha=8.0, head=True))


@pytest.mark.usefixtures("asked")
def test_on_a_cpu_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    expected = (
        "learner.head = 'cut-cross-entropy' needs a C++ compiler on a CPU, and there is no "
        "no-such-compiler: use learner.head = 'chunked'."
    )
    assert expected == refusal(qwen3())


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("needs", [KNOWN, frozenset({"entropy"}), frozenset({"entropy_response"})])
def test_entropies_are_refused_when_asked_and_before(needs: frozenset[str]) -> None:
    policy = Policy(qwen3(), 1.0, None, "cut-cross-entropy")
    policy.check_needs(frozenset())
    expected = (
        "learner.head = 'cut-cross-entropy' computes log-probs only, and the algorithm needs "
        f"{', '.join(sorted(needs))}: use learner.head = 'chunked'."
    )
    with pytest.raises(ConfigError) as early:
        policy.check_needs(needs)
    with pytest.raises(ConfigError) as late:
        policy(some_inputs(), needs=needs)
    assert [expected] * 2 == [str(early.value), str(late.value)]


def test_another_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"LearnerConfig.head: 'chunk' .* 'chunked'"):
        LearnerConfig(head="chunk")  # type: ignore[arg-type]  # what is refused


@pytest.mark.slow
def test_the_package_itself_answers_as_ours_where_it_is() -> None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [interpreter("cut"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
         "tests/sdk/cut_itself.py"],
        cwd=ROOT, env=ours, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert re.search(r"^3 passed", done.stdout, re.M), done.stdout + done.stderr


def test_what_ci_installs_is_what_the_extra_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (named,) = map(Requirement, project["optional-dependencies"]["gpu"])
    (line,) = re.findall(r"^cut (.*)$", RUN, re.M)
    installed = Requirement(line)
    assert named.name == installed.name
    assert named.specifier.contains(str(installed.specifier).removeprefix("=="))
