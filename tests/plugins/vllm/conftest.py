"""vLLM for tests: ``ISENTROPE_VLLM`` names the installation to test with; it is only read.

``isentrope vllm install --root DIR`` makes one. Without it tests that need one are skipped, and
fail where ``CI`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from isentrope import LanguageModel
from isentrope_plugins.vllm.checks import check
from isentrope_plugins.vllm.place import VARIABLE, Place
from isentrope_plugins.vllm.server import Server, ServerOptions

NAMED = os.environ.get(VARIABLE)


@pytest.fixture(scope="session")
def vllm() -> Place:
    """A whole installation, for slow tests."""
    if NAMED is None:
        assert "CI" not in os.environ, f"{VARIABLE} names no installation."
        pytest.skip(f"{VARIABLE} names no installation")
    (found,) = check()
    assert "ok" == found.state, found.message
    return Place(NAMED)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 of 0.4 M parameters, with opinions."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from isentrope_plugins.tiny.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["What is 6 * 7? It is 42.", "north south east west"] * 20, 512)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.12,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(Qwen3ForCausalLM(config), tokenizer)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def server(vllm: Place, tiny_model: Path) -> Iterator[Server]:
    """A server of the tiny model, in float32, with room for four adapters of rank 16: 3 GiB."""
    options = ServerOptions(model=str(tiny_model), max_loras=4, max_lora_rank=16)
    with Server.start(options, vllm) as started:
        started.wait_ready(600)
        yield started
