"""Outlines: all of a model but its numbers. `test_ranks` has ranks learn from them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from isentrope import LanguageModel
from isentrope.learner.outlines import of_outline, on_first, outline
from isentrope.learner.ranks import Ranks
from isentrope_plugins.tiny.tokenizer import train_tokenizer


def language_model(*, tied: bool) -> LanguageModel:
    shape: dict[str, Any] = {
        "vocab_size": 20_000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "tie_word_embeddings": tied,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**shape))
    return LanguageModel(model, train_tokenizer(["higher lower"], 300), "a/path", "cuda")


@pytest.mark.parametrize("tied", [True, False])
def test_an_outline_has_all_but_the_numbers(tied: bool) -> None:
    whole = language_model(tied=tied)
    whole.model.get_input_embeddings().weight.requires_grad_(False)
    data = outline(whole)
    assert data is not None
    assert len(data) < sum(p.nbytes for p in whole.model.parameters()) / 20
    found = of_outline(data)
    assert (whole.path, whole.device) == (found.path, found.device)
    assert whole.model.config.to_dict() == found.model.config.to_dict()
    assert whole.stop_ids == found.stop_ids
    assert whole.tokenizer("higher").input_ids == found.tokenizer("higher").input_ids
    for kind in ("named_parameters", "named_buffers"):
        there = dict(getattr(whole.model, kind)())
        for name, tensor in getattr(found.model, kind)():
            expected = there.pop(name)
            assert (expected.shape, expected.dtype) == (tensor.shape, tensor.dtype)
            assert (type(expected), True) == (type(tensor), tensor.is_meta)
            assert expected.requires_grad == tensor.requires_grad
        assert not there
    embedding = found.model.get_input_embeddings().weight
    assert tied == (found.model.get_output_embeddings().weight is embedding)


def test_a_model_that_is_on_the_first_ranks_gpu_comes_to_each_ranks_own() -> None:
    whole = language_model(tied=True)
    whole.model.to("meta")  # for want of a GPU
    data = outline(attrs.evolve(whole, device="cuda:0"))
    assert data is not None
    assert "cuda" == of_outline(data).device


def test_tensors_that_are_no_weights_keep_their_numbers() -> None:
    whole = language_model(tied=True)
    whole.model.table = torch.arange(3)
    data = outline(whole)
    assert data is not None
    assert [0, 1, 2] == of_outline(data).model.table.tolist()


def test_of_a_model_that_cannot_be_sent_every_rank_builds_its_own() -> None:
    whole = language_model(tied=True)
    whole.model.hook = lambda: None
    with pytest.warns(UserWarning, match="Qwen3ForCausalLM cannot be sent to other ranks"):
        assert outline(whole) is None

    class Second(Ranks):
        def by_first(self, function: Any) -> Any:
            del function
            return None  # what the first sends of such a model

    assert whole is on_first(lambda: whole, Second(1, 2))


def test_one_rank_sends_nothing() -> None:
    whole = language_model(tied=True)
    whole.model.hook = lambda: None
    assert whole is on_first(lambda: whole, Ranks())
