"""The embedded engine, against slow computations that share nothing with it."""

from __future__ import annotations

import asyncio
import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from isentrope import (
    Completion,
    Engine,
    EngineError,
    EngineUse,
    LanguageModel,
    Sampling,
    WeightsRef,
)
from isentrope_plugins.sampler import choosing
from isentrope_plugins.sampler.batching import BatchingEngine
from isentrope_plugins.sampler.cached import CachedDecoder
from isentrope_plugins.sampler.drawing import Uniforms, invert, truncate
from isentrope_plugins.sampler.engine import TransformersEngine
from isentrope_plugins.sampler.qwen3 import Qwen3Decoder

VOCABULARY = 61
CONTEXT = 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
}


def qwen3(seed: int = 0, **options: Any) -> PreTrainedModel:
    return made(
        Qwen3ForCausalLM, Qwen3Config(**{**SHAPE, "tie_word_embeddings": True, **options}), seed
    )


def llama(seed: int = 0) -> PreTrainedModel:
    return made(LlamaForCausalLM, LlamaConfig(**SHAPE), seed)


def gpt2(seed: int = 0) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, n_inner=48
    )
    return made(GPT2LMHeadModel, config, seed)


def made(cls: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    """Return a random model with opinions: as initialised, every token is equally likely."""
    torch.manual_seed(seed)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim == 2 else 1).add_(0.1 * torch.randn_like(parameter))
    return model


MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "qwen3, lean": qwen3,
    "qwen3 untied, lean": lambda seed=0: qwen3(seed, tie_word_embeddings=False),
    "qwen3 with biases, general": lambda seed=0: qwen3(seed, attention_bias=True),
    "qwen3 with a sliding window, general": lambda seed=0: qwen3(
        seed, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "llama, general": llama,
    "gpt2, general": gpt2,
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
both_decoders = pytest.mark.parametrize("build", [qwen3, llama], ids=["lean", "general"])


def engine_for(model: PreTrainedModel, **options: Any) -> Any:
    return TransformersEngine(**options).build(
        LanguageModel(model, tokenizer=None), EngineUse(context=CONTEXT)
    )


def sampled(engine: Engine, *requests: tuple[Sequence[int], Sampling]) -> list[Completion]:
    """Return the completions of requests that are pending together."""

    async def main() -> list[Completion]:
        return list(await asyncio.gather(*(engine.generate(*request) for request in requests)))

    return asyncio.run(asyncio.wait_for(main(), 20))


def prompts(count: int, longest: int = 14, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(VOCABULARY, size=rng.integers(1, longest)).tolist() for _ in range(count)]


def distribution(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the probabilities [V] that logits [V] give, one plain step after the other."""
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    weight = np.exp((scores - scores.max()) / sampling.temperature)
    kept = ranked[: sampling.top_k or None]
    if sampling.top_p < 1:
        mass, nucleus = 0.0, []
        for token in kept:
            if mass >= sampling.top_p * weight[kept].sum():
                break
            nucleus.append(token)
            mass += weight[token]
        kept = nucleus
    allowed = np.zeros(len(scores), bool)
    allowed[kept] = True
    return np.where(allowed, weight, 0) / weight[allowed].sum()


def expected_logp(
    model: PreTrainedModel, prompt: Sequence[int], completion: Completion, sampling: Sampling
) -> list[float]:
    """Return each token's log-probability from one float64 forward, without cache or padding."""
    exact = copy.deepcopy(model).double().eval()
    ids = [*prompt, *completion.ids]
    with torch.no_grad():
        logits = exact(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].numpy()
    return [
        math.log(distribution(row, sampling)[token])
        for row, token in zip(logits, completion.ids, strict=True)
    ]


# --- What is drawn, and its log-probability -------------------------------------------------


@every_model
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=9),
        Sampling(max_tokens=9, temperature=0.6),
        Sampling(max_tokens=9, temperature=1.7, top_k=5),
        Sampling(max_tokens=9, top_p=0.8),
        Sampling(max_tokens=9, temperature=1.3, top_k=20, top_p=0.7),
    ],
    ids=["plain", "cool", "top-k", "top-p", "all of them"],
)
def test_logp_is_that_of_the_distribution_a_full_forward_gives(build, sampling) -> None:
    model = build()
    requests = [(p, evolve(sampling, seed=i)) for i, p in enumerate(prompts(7))]
    for (prompt, _), completion in zip(
        requests, sampled(engine_for(model), *requests), strict=True
    ):
        expected = expected_logp(model, prompt, completion, sampling)
        assert expected == pytest.approx(completion.logp, abs=3e-5)


@both_decoders
def test_prompts_of_equal_length_need_no_mask_and_give_the_same_logp(build) -> None:
    model = build()
    requests = [([i, 7, 3 * i], Sampling(max_tokens=12, seed=i)) for i in range(5)]
    for (prompt, sampling), completion in zip(
        requests, sampled(engine_for(model), *requests), strict=True
    ):
        expected = expected_logp(model, prompt, completion, sampling)
        assert expected == pytest.approx(completion.logp, abs=3e-5)


def test_requests_of_one_wave_keep_their_own_parameters() -> None:
    model = qwen3()
    samplings = [
        Sampling(max_tokens=3, temperature=0.5, seed=1),
        Sampling(max_tokens=8, top_k=3, seed=2),
        Sampling(max_tokens=5, top_p=0.5, seed=3),
        Sampling(max_tokens=6, temperature=2, top_k=9, top_p=0.9, seed=4),
    ]
    requests = list(zip(prompts(4), samplings, strict=True))
    completions = sampled(engine_for(model), *requests)
    assert [3, 8, 5, 6] == [len(completion.ids) for completion in completions]
    for (prompt, sampling), completion in zip(requests, completions, strict=True):
        expected = expected_logp(model, prompt, completion, sampling)
        assert expected == pytest.approx(completion.logp, abs=3e-5)


@both_decoders
@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=1), Sampling(max_tokens=1, temperature=1.5, top_k=30, top_p=0.9)],
    ids=["plain", "truncated"],
)
def test_tokens_are_as_frequent_as_the_distribution_says(build, sampling) -> None:
    model, prompt, draws = build(), [5, 11, 2], 4000
    requests = [(prompt, evolve(sampling, seed=seed)) for seed in range(draws)]
    tokens = [completion.ids[0] for completion in sampled(engine_for(model), *requests)]
    with torch.no_grad():
        logits = copy.deepcopy(model).double().eval()(torch.tensor([prompt])).logits[0, -1]
    expected = draws * distribution(logits.numpy(), sampling)
    observed = np.bincount(tokens, minlength=VOCABULARY)
    assert 0 == observed[expected == 0].sum()

    # Rare tokens are pooled: chi-square needs a few of each.
    common = expected >= 8
    cells = [(o, e) for o, e in zip(observed[common], expected[common], strict=True)]
    if (rest := expected[~common].sum()) > 0:
        cells.append((observed[~common].sum(), rest))
    chi_square = sum((o - e) ** 2 / e for o, e in cells)
    freedom = len(cells) - 1
    assert freedom >= 5
    assert chi_square < freedom + 3.5 * math.sqrt(2 * freedom)


def test_later_tokens_of_neighbouring_seeds_are_independent() -> None:
    streams = Uniforms(range(2000))
    numbers = np.stack([next(streams) for _ in range(20)])
    correlation = np.corrcoef(numbers) - np.eye(20)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(2000)
    across = np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]
    assert abs(across) < 4 / math.sqrt(numbers.size)
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1


def test_truncation_keeps_exactly_k_tokens_when_all_are_equally_likely() -> None:
    scores = torch.zeros(1, 10)
    kept = truncate(scores, torch.tensor([[4]]), torch.tensor([[1.0]], dtype=torch.float64))
    assert [0, 1, 2, 3] == kept.isfinite()[0].nonzero()[:, 0].tolist()


def test_a_token_without_probability_is_never_drawn_at_the_ends_of_the_interval() -> None:
    scores = torch.tensor([[-torch.inf, 0, 0, -torch.inf]] * 2)
    ids, logp = invert(scores, torch.tensor([0, 1 - 2**-53], dtype=torch.float64))
    assert [1, 2] == ids.tolist()
    assert [-math.log(2)] * 2 == pytest.approx(logp.tolist())


def test_a_tiny_top_p_leaves_the_likeliest_token_with_certainty() -> None:
    (completion,) = sampled(engine_for(qwen3()), ([1, 2], Sampling(max_tokens=6, top_p=1e-9)))
    assert (0.0,) * 6 == completion.logp


# --- What a completion depends on -----------------------------------------------------------


@both_decoders
def test_a_request_gives_the_same_ids_alone_and_amid_others_in_any_order(build) -> None:
    engine = engine_for(build())
    samplings = [
        Sampling(max_tokens=4 + i % 5, temperature=0.8 + 0.1 * (i % 4), top_k=(i % 3) * 8, seed=i)
        for i in range(18)
    ]
    requests = list(zip(prompts(18), samplings, strict=True))
    alone = [sampled(engine, request)[0] for request in requests]
    together = sampled(engine, *requests)
    backwards = sampled(engine, *reversed(requests))[::-1]
    assert [c.ids for c in alone] == [c.ids for c in together]
    assert together == backwards
    for one, other in zip(alone, together, strict=True):
        assert one.logp == pytest.approx(other.logp, abs=3e-5)


def test_smaller_batches_change_no_ids() -> None:
    requests = [(p, Sampling(max_tokens=8, seed=i)) for i, p in enumerate(prompts(11))]
    whole = sampled(engine_for(qwen3()), *requests)
    parts = sampled(engine_for(qwen3(), max_batch=3), *requests)
    assert [c.ids for c in whole] == [c.ids for c in parts]


def test_engines_built_alike_draw_alike_bit_for_bit() -> None:
    requests = [(p, Sampling(max_tokens=20, seed=i)) for i, p in enumerate(prompts(9))]
    first, second = (sampled(engine_for(qwen3()), *requests) for _ in range(2))
    assert first == second


def test_seeds_tell_rollouts_of_one_prompt_apart() -> None:
    requests = [([4, 5, 6], Sampling(max_tokens=10, seed=seed)) for seed in (-1, 0, 1, 2**63, 1)]
    drawn = [completion.ids for completion in sampled(engine_for(qwen3()), *requests)]
    assert 4 == len(set(drawn))
    assert drawn[2] == drawn[4]


# --- Ends ------------------------------------------------------------------------------------


@both_decoders
def test_a_completion_ends_with_the_first_stop_id_and_keeps_it(build) -> None:
    engine = engine_for(build())
    free = Sampling(max_tokens=30, temperature=1.5, seed=3)
    (whole,) = sampled(engine, ([1, 2, 3], free))
    stops = (whole.ids[20], whole.ids[8])
    first = min(whole.ids.index(stop) for stop in stops)
    (cut,) = sampled(engine, ([1, 2, 3], evolve(free, stop_ids=stops)))
    assert whole.ids[: first + 1] == cut.ids
    assert len(cut.ids) == len(cut.logp)
    assert "stop" == cut.finish_reason


def test_every_row_has_its_own_stop_ids_to_the_end() -> None:
    engine = engine_for(qwen3())
    free = [(p, Sampling(max_tokens=24, seed=i)) for i, p in enumerate(prompts(12))]
    whole = [completion.ids for completion in sampled(engine, *free)]
    stops = [ids[2 * i] for i, ids in enumerate(whole)]
    stopping = [
        (prompt, evolve(sampling, stop_ids=(i, stop) if i % 2 else (stop,)))
        for i, ((prompt, sampling), stop) in enumerate(zip(free, stops, strict=True))
    ]
    for (_, sampling), ids, completion in zip(
        stopping, whole, sampled(engine, *stopping), strict=True
    ):
        first = min(ids.index(stop) for stop in sampling.stop_ids if stop in ids)
        assert ids[: first + 1] == completion.ids


def test_a_completion_without_a_stop_id_ends_at_its_length() -> None:
    (completion,) = sampled(engine_for(qwen3()), ([1, 2, 3], Sampling(max_tokens=7)))
    assert 7 == len(completion.ids) == len(completion.logp)
    assert "length" == completion.finish_reason


def test_a_stop_id_drawn_last_is_a_stop() -> None:
    engine = engine_for(qwen3())
    (whole,) = sampled(engine, ([9, 9], Sampling(max_tokens=5)))
    stop = Sampling(max_tokens=1 + whole.ids.index(whole.ids[4]), stop_ids=(whole.ids[4],))
    (completion,) = sampled(engine, ([9, 9], stop))
    assert "stop" == completion.finish_reason


@every_model
def test_rows_that_end_early_leave_the_others_as_they_were(build) -> None:
    engine = engine_for(build())
    lengths = [1, 1, 2, 3, 5, 8, 13, 21, 34, 50]
    requests = [
        (prompt, Sampling(max_tokens=length, seed=length))
        for prompt, length in zip(prompts(10), lengths, strict=True)
    ]
    together = sampled(engine, *requests)
    assert lengths == [len(completion.ids) for completion in together]
    assert [sampled(engine, request)[0].ids for request in requests] == [c.ids for c in together]


@every_model
def test_completions_may_fill_the_context_beside_longer_prompts(build) -> None:
    engine = engine_for(build())
    room = CONTEXT - 3
    requests = [([1, 2, 3], Sampling(max_tokens=room, seed=seed)) for seed in range(5)]
    # Ends at once, and stays in the batch: too few have ended for it to be compacted.
    full = ([1] * (CONTEXT - 1), Sampling(max_tokens=1))
    completions = sampled(engine, *requests, full)
    assert [room] * 5 + [1] == [len(completion.ids) for completion in completions]
    assert [c.ids for c in sampled(engine, *requests)] == [c.ids for c in completions[:5]]


# --- Weights ---------------------------------------------------------------------------------


@both_decoders
@pytest.mark.parametrize("tied_head", [True, False], ids=["both names", "one name"])
def test_published_weights_are_sampled_from_and_carry_their_version(build, tied_head) -> None:
    request = ([1, 2, 3], Sampling(max_tokens=12))
    engine, other = engine_for(build(seed=0)), build(seed=1)
    tensors = dict(other.state_dict())
    if not tied_head and other.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    (before,) = sampled(engine, request)
    asyncio.run(engine.publish(WeightsRef(5, tensors)))
    (after,) = sampled(engine, request)
    assert (0, 5) == (before.version, after.version)
    assert before.ids != after.ids
    assert evolve(sampled(engine_for(other), request)[0], version=5) == after


@both_decoders
def test_an_engine_keeps_what_it_copied(build) -> None:
    model = build()
    engine = engine_for(model)
    request = ([1, 2, 3], Sampling(max_tokens=12))
    (before,) = sampled(engine, request)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert [before] == sampled(engine, request)


@both_decoders
def test_constants_of_the_architecture_may_come_with_a_publication(build) -> None:
    model = build()
    engine = engine_for(model)
    everything = dict(model.named_parameters()) | dict(model.named_buffers())
    assert "model.rotary_emb.inv_freq" in everything
    asyncio.run(engine.publish(WeightsRef(1, everything)))


NORM = "model.layers.1.input_layernorm.weight"


@both_decoders
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop(NORM), rf"lack parameters of the model: '{NORM}'\."),
        (
            lambda tensors: tensors.update({"model.wrong.weight": torch.ones(1)}),
            r"the model does not have: 'model\.wrong\.weight'\.",
        ),
        (
            lambda tensors: tensors.update({NORM: torch.ones(31)}),
            rf"'{NORM}' has shape \(31,\), but the model's has \(32,\)\.",
        ),
    ],
    ids=["missing", "unknown", "mis-shaped"],
)
def test_a_bad_publication_is_named_and_changes_nothing(build, change, sentence) -> None:
    engine, request = engine_for(build()), ([1, 2, 3], Sampling(max_tokens=12))
    (before,) = sampled(engine, request)
    tensors = dict(build(seed=1).state_dict())
    change(tensors)
    with pytest.raises(EngineError, match=sentence):
        asyncio.run(engine.publish(WeightsRef(1, tensors)))
    assert [before] == sampled(engine, request)


def test_weights_that_are_no_numbers_fail_the_requests() -> None:
    engine, model = engine_for(qwen3()), qwen3()
    tensors = {name: torch.full_like(t, torch.nan) for name, t in model.state_dict().items()}
    asyncio.run(engine.publish(WeightsRef(1, tensors)))
    with pytest.raises(EngineError, match="logits are not finite"):
        sampled(engine, ([1, 2], Sampling(max_tokens=3)))


# --- Which decoder ---------------------------------------------------------------------------


def test_a_plain_qwen3_gets_the_lean_decoder_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(choosing.decoder_for(qwen3(), "cpu"), Qwen3Decoder)


@pytest.mark.parametrize("build", list(MODELS.values())[2:], ids=list(MODELS)[2:])
def test_other_models_get_the_general_decoder_without_a_warning(build) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(choosing.decoder_for(build(), "cpu"), CachedDecoder)


def test_a_lean_decoder_that_disagrees_with_the_model_is_not_used(monkeypatch) -> None:
    monkeypatch.setattr(Qwen3Decoder, "_feed_forward", lambda self, layer, x: x)
    with pytest.warns(UserWarning, match="decoder's logits differ from the model's by"):
        assert isinstance(choosing.decoder_for(qwen3(), "cpu"), CachedDecoder)


def test_a_half_precision_model_is_sampled_leanly_with_a_float32_head() -> None:
    model = qwen3().to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = choosing.decoder_for(model, "cpu")
    assert isinstance(decoder, Qwen3Decoder)
    logits, _ = decoder.prefill(torch.tensor([[1, 2, 3]]), None)
    assert torch.float32 == logits.dtype
    assert not torch.equal(logits, logits.bfloat16().float())


def test_building_an_engine_leaves_the_model_in_its_mode() -> None:
    model = qwen3().train()
    engine_for(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- Waves, errors and ends of the engine ------------------------------------------------------


class Watched:
    """A decoder that remembers how many rows it was given, and fails when told to."""

    device = "cpu"

    def __init__(self, fails_at: int | None = None) -> None:
        self.decoder = CachedDecoder(llama(), "cpu")
        self.prefilled: list[int] = []
        self.stepped: list[int] = []
        self.fails_at = fails_at

    @property
    def weights(self) -> Any:
        return self.decoder.weights

    def prefill(self, ids: torch.Tensor, pad: torch.Tensor | None) -> Any:
        self.prefilled.append(len(ids))
        return self.decoder.prefill(ids, pad)

    def step(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        self.stepped.append(len(ids))
        if len(self.stepped) == self.fails_at:
            raise RuntimeError("out of memory")
        return self.decoder.step(ids, cache)


def watched(max_batch: int = 64, **options: Any) -> tuple[Any, Watched]:
    decoder = Watched(**options)
    engine = BatchingEngine(
        decoder, vocabulary=VOCABULARY, context=CONTEXT, constants=set(), max_batch=max_batch
    )
    return engine, decoder


def test_rollouts_of_one_prompt_read_it_once() -> None:
    engine, decoder = watched()
    group = [([1, 2, 3], Sampling(max_tokens=3, seed=seed)) for seed in range(8)]
    sampled(engine, *group, ([4, 5], Sampling(max_tokens=3)))
    assert [2] == decoder.prefilled
    assert [9, 9] == decoder.stepped


def test_rollouts_of_one_prompt_meet_in_one_batch_however_they_come() -> None:
    engine, decoder = watched(max_batch=4)
    sampled(engine, *[([1, 2, i % 2], Sampling(max_tokens=2, seed=i)) for i in range(8)])
    assert [1, 1] == decoder.prefilled


def test_finished_rows_are_dropped_from_the_batch() -> None:
    engine, decoder = watched()
    sampled(engine, *[([1, 2], Sampling(max_tokens=2**i)) for i in range(4)])
    assert [3, 2, 2, 1, 1, 1, 1] == decoder.stepped


def test_requests_join_a_wave_from_tasks_within_tasks() -> None:
    engine, decoder = watched()

    async def nested(depth: int) -> None:
        if depth:
            await asyncio.create_task(nested(depth - 1))
        else:
            await engine.generate([1, 2, 3], Sampling(max_tokens=2))

    async def main() -> None:
        await asyncio.gather(*(nested(depth) for depth in range(3)))
        await asyncio.gather(*(nested(depth) for depth in range(3)))

    asyncio.run(main())
    assert [1, 1] == decoder.prefilled
    assert [3, 3] == decoder.stepped


@pytest.mark.parametrize(
    ("prompt", "sampling", "sentence"),
    [
        ([], Sampling(max_tokens=1), "the prompt is empty"),
        ([1, 61], Sampling(max_tokens=1), "token id 61 is outside the model's vocabulary of 61"),
        ([-1], Sampling(max_tokens=1), "token id -1 is outside"),
        (
            [1] * 60,
            Sampling(max_tokens=7),
            "a prompt of 60 tokens and max_tokens 7 need 67 positions, but the model has 64",
        ),
    ],
    ids=["empty", "above", "below", "long"],
)
def test_a_request_that_cannot_be_read_is_refused_in_a_sentence(prompt, sampling, sentence) -> None:
    with pytest.raises(EngineError, match=sentence):
        sampled(engine_for(qwen3()), (prompt, sampling))


def test_a_refused_request_does_not_disturb_its_neighbours() -> None:
    engine, good = engine_for(qwen3()), ([1, 2, 3], Sampling(max_tokens=4))

    async def main() -> list[Any]:
        bad = engine.generate([], Sampling(max_tokens=1))
        return await asyncio.gather(engine.generate(*good), bad, return_exceptions=True)

    completion, error = asyncio.run(main())
    assert isinstance(error, EngineError)
    assert [completion] == sampled(engine, good)


def test_a_failing_wave_reaches_everyone_who_waits_and_not_the_next_wave() -> None:
    engine, _ = watched(fails_at=2)
    requests = [(p, Sampling(max_tokens=5)) for p in prompts(6)]

    async def main() -> list[Any]:
        waiting = (engine.generate(*request) for request in requests)
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)

    errors = asyncio.run(main())
    assert ["sampling failed: RuntimeError: out of memory"] * 6 == [str(e) for e in errors]
    assert all(isinstance(error, EngineError) for error in errors)
    assert 6 == len(sampled(engine, *requests))


def test_a_cancelled_request_is_given_up_and_the_others_go_on() -> None:
    engine, decoder = watched()

    async def main() -> Completion:
        doomed = asyncio.create_task(engine.generate([1, 2], Sampling(max_tokens=60)))
        other = asyncio.create_task(engine.generate([1, 2], Sampling(max_tokens=20)))
        while not decoder.stepped:
            await asyncio.sleep(0)
        doomed.cancel()
        return await other

    assert 20 == len(asyncio.run(main()).ids)
    assert len(decoder.stepped) < 59


def test_closing_fails_what_is_pending_and_may_be_repeated() -> None:
    engine, decoder = watched()

    async def main() -> list[Any]:
        in_flight = asyncio.create_task(engine.generate([1, 2], Sampling(max_tokens=60)))
        while not decoder.stepped:
            await asyncio.sleep(0)
        pending = asyncio.create_task(engine.generate([1, 2], Sampling(max_tokens=60)))
        await asyncio.sleep(0)
        await engine.close()
        await engine.close()
        both = asyncio.gather(in_flight, pending, return_exceptions=True)
        return await asyncio.wait_for(both, 10)

    sentence = "the engine was closed before it had sampled this completion."
    assert [sentence] * 2 == [str(error) for error in asyncio.run(main())]


def test_a_closed_engine_says_so() -> None:
    engine = engine_for(qwen3())
    asyncio.run(engine.close())
    with pytest.raises(EngineError, match="the engine is closed"):
        sampled(engine, ([1], Sampling(max_tokens=1)))
    with pytest.raises(EngineError, match="the engine is closed"):
        asyncio.run(engine.publish(WeightsRef(1, qwen3().state_dict())))


def test_an_interrupted_loop_leaves_an_engine_that_works() -> None:
    engine, decoder = watched()

    async def interrupted() -> None:
        asyncio.create_task(engine.generate([1, 2], Sampling(max_tokens=60)))  # noqa: RUF006  left behind on purpose
        while not decoder.stepped:
            await asyncio.sleep(0)

    asyncio.run(interrupted())
    assert 3 == len(sampled(engine, ([1, 2], Sampling(max_tokens=3)))[0].ids)
    assert len(decoder.stepped) < 59


def test_the_engine_is_what_the_contract_asks_for() -> None:
    assert isinstance(engine_for(qwen3()), Engine)
