"""vLLM for tests: ``ISENTROPE_VLLM`` names the installation to test with; it is only read.

``isentrope vllm install --root DIR`` makes one. Without it tests that need one are skipped, and
fail where ``CI`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from isentrope import EnvRef, component
from isentrope_plugins.vllm.checks import check
from isentrope_plugins.vllm.place import Place
from isentrope_plugins.vllm.server import Server, ServerOptions

NAMED = os.environ.get(Place.variable)


@pytest.fixture(scope="session")
def vllm() -> Place:
    """A whole installation, for slow tests."""
    if NAMED is None:
        assert "CI" not in os.environ, f"{Place.variable} names no installation."
        pytest.skip(f"{Place.variable} names no installation")
    (found,) = check()
    assert "ok" == found.state, found.message
    return Place(NAMED)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy that plays `guess` a little; its heads are as small as vLLM takes."""
    tiny = component(
        "model", "tiny-qwen3", hidden_size=128, layers=1, context=1024,
        warmup_steps=80, warmup_batch=32, warmup_lr=8e-3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.build(EnvRef("guess")).save(folder)
    return folder


@pytest.fixture(scope="session")
def server(vllm: Place, tiny_model: Path) -> Iterator[Server]:
    """A server of the tiny model, in float32, with room for four adapters of rank 16: 3 GiB."""
    options = ServerOptions(model=str(tiny_model), max_loras=4, max_lora_rank=16)
    with Server.start(options, vllm) as started:
        started.wait_ready(600)
        yield started
