"""The head, against float64 over full logits by autograd, and against many-digit decimals.

Gaps are exact: with the identity for a weight, a hidden state is its own logits, and the gradient
of the one is that of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from isentrope.learner import head
from isentrope.learner.head import token_scores

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]
ENTROPY = frozenset({"entropy"})
RESPONSE = frozenset({"entropy_response"})
BOTH = ENTROPY | RESPONSE
SUBSETS = [frozenset[str](), ENTROPY, RESPONSE, BOTH]
ULP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
DTYPES = list(ULP)
SMALLEST = torch.finfo(torch.float32).tiny


def make_inputs(
    tokens: int = 13, vocabulary: int = 31, *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Return hidden [T, 8], weight [V, 8], bias [V] and targets [T]."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    target = torch.randint(vocabulary, (tokens,), generator=generator)
    return normal(tokens, 8), normal(vocabulary, 8), normal(vocabulary) if bias else None, target


def full_float64(inputs: Inputs, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, entropies and entropy responses by way of all the logits."""
    hidden, weight, bias, target = inputs
    logits = hidden.double() @ weight.double().T
    logits = (logits if bias is None else logits + bias.double()) / temperature
    log_p = torch.log_softmax(logits, -1)
    own = log_p.gather(-1, target[:, None]).squeeze(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    excess = log_p + entropy[:, None]
    step = torch.nn.functional.one_hot(target, len(weight)) - p
    return own, entropy, -(p * excess * step).sum(-1).detach()


def gradients(
    function: Callable[[Inputs], Iterable[Tensor | None]], inputs: Inputs
) -> list[Tensor]:
    """Return the gradients of a fixed, uneven mixture of the results to every float input."""
    hidden = inputs[0]
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for values in function(inputs):
        if values is not None and values.requires_grad:
            mixture = torch.randn(len(hidden), generator=generator, dtype=torch.float64)
            loss = loss + (mixture * values.double()).sum()
    return list(torch.autograd.grad(loss, [x for x in inputs[:3] if x is not None]))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 13])
def test_log_probs_and_gradients_are_those_of_the_full_logits(
    temperature: float, bias: bool, tokens: int
) -> None:
    inputs = make_inputs(tokens, bias=bias)
    expected, *_ = full_float64(inputs, temperature)
    found, *others = token_scores(*inputs, temperature)
    assert [None, None] == others
    assert torch.float32 == found.dtype
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)
    theirs = gradients(lambda x: full_float64(x, temperature)[:1], inputs)
    ours = gradients(lambda x: token_scores(*x, temperature), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("bias", [False, True])
def test_entropy_and_its_gradient_are_those_of_the_full_distribution(
    temperature: float, bias: bool
) -> None:
    inputs = make_inputs(bias=bias)
    _, expected, _ = full_float64(inputs, temperature)
    _, found, _ = token_scores(*inputs, temperature, needs=ENTROPY)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)
    for pick in (slice(0, 2), slice(1, 2)):  # both results, and entropy alone
        theirs = gradients(lambda x, p=pick: full_float64(x, temperature)[p], inputs)
        ours = gradients(lambda x, p=pick: token_scores(*x, temperature, needs=ENTROPY)[p], inputs)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("bias", [False, True])
def test_the_entropy_response_is_that_of_the_full_distribution_and_has_no_gradient(
    temperature: float, bias: bool
) -> None:
    inputs = make_inputs(bias=bias)
    _, _, expected = full_float64(inputs, temperature)
    _, entropy, found = token_scores(*inputs, temperature, needs=RESPONSE)
    assert entropy is None
    assert found is not None
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)


def test_entropy_responds_to_a_tabular_step_as_foretold() -> None:
    """By definition, without a formula: move the logits a little, and see the entropy move."""
    logits = torch.randn(9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(9) % 7
    found = token_scores(logits.float(), torch.eye(7), None, target, 0.7, needs=RESPONSE)
    p = torch.softmax(logits / 0.7, -1)
    step = torch.nn.functional.one_hot(target, 7) - p

    def entropy(advantage: float) -> Tensor:
        log_p = torch.log_softmax(logits / 0.7 + advantage * step, -1)
        return -(log_p.exp() * log_p).sum(-1)

    assert found.entropy_response is not None
    expected = (entropy(1e-4) - entropy(-1e-4)) / 2e-4
    torch.testing.assert_close(found.entropy_response.double(), expected, rtol=1e-5, atol=1e-6)


def test_what_else_is_asked_for_changes_nothing() -> None:
    inputs = make_inputs()
    results = {needs: token_scores(*inputs, needs=needs) for needs in SUBSETS}
    for needs, found in results.items():
        asked = {"logp"} | needs
        assert asked == {k for k, v in found._asdict().items() if v is not None}
        for name in asked:
            assert getattr(results[BOTH | needs], name).tolist() == getattr(found, name).tolist()
    by_logp = [gradients(lambda x, n=n: token_scores(*x, needs=n)[:1], inputs) for n in SUBSETS]
    for found in by_logp[1:]:
        for a, b in zip(by_logp[0], found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_chunk_that_is_kept_serves_once_and_is_then_computed_again() -> None:
    hidden, *others = make_inputs()
    hidden = hidden.detach().requires_grad_()
    logp = token_scores(hidden, *others).logp
    once, again = (
        torch.autograd.grad(logp, hidden, torch.arange(13.0), retain_graph=True)[0] for _ in "ab"
    )
    torch.testing.assert_close(once, again, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("needs", [frozenset(), BOTH], ids=["nothing", "both"])
@pytest.mark.parametrize("elements", [1, 31, 62, 93, 12 * 31, 13 * 31 - 1, 13 * 31, 10**6])
def test_where_chunks_end_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, elements: int, needs: frozenset[str]
) -> None:
    inputs = make_inputs()
    whole = token_scores(*inputs, 1.3, needs=needs)
    expected = gradients(lambda x: token_scores(*x, 1.3, needs=needs), inputs)
    chunked: list[int] = []
    logits = head._Layer.logits

    def counted(layer: head._Layer, rows: slice) -> Tensor:
        chunk = logits(layer, rows)
        chunked.append(len(chunk))
        return chunk

    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(head._Layer, "logits", counted)
    found = token_scores(*inputs, 1.3, needs=needs)
    size = max(1, elements // 31)
    assert [min(size, 13 - i) for i in range(0, 13, size)] == chunked
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    ours = gradients(lambda x: token_scores(*x, 1.3, needs=needs), inputs)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def by_the_others(logits: list[float]) -> tuple[list[float], list[float]]:
    """Return log p and 1 - p of every token, each right to float64's last digits.

    From the sums over all other tokens: ``log p = -log1p(S)`` and ``1 - p = S / (1 + S)``. By way
    of p itself, even float64 has nothing left from a gap of 37 on.
    """
    others = [
        math.fsum(math.exp(z - own) for j, z in enumerate(logits) if j != i)
        for i, own in enumerate(logits)
    ]
    return [-math.log1p(s) for s in others], [s / (1 + s) for s in others]


def of_logits(
    logits: list[float],
    target: int,
    temperature: float = 1.0,
    *,
    pick: str = "logp",
    dtype: torch.dtype = torch.float32,
) -> tuple[float, list[float]]:
    """Return one token's log-prob (or entropy, ...) by the head, and its gradient to logits."""
    hidden = torch.tensor([logits], requires_grad=True, dtype=dtype)
    needs = frozenset({pick}) & head.KNOWN
    scores = token_scores(
        hidden,
        torch.eye(len(logits), dtype=dtype),
        None,
        torch.tensor([target]),
        temperature,
        needs=needs,
    )
    value = getattr(scores, pick)
    if not value.requires_grad:
        return value.item(), []
    (gradient,) = torch.autograd.grad(value.sum(), hidden)
    return value.item(), gradient[0].tolist()


GAPS = [0.0, 0.5, 1.0, 5.0, 10.0, 16.0, 17.0, 18.0, 20.0, 30.0, 37.0, 45.0, 60.0]


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("offset", [0.0, -30.0, 12.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_confident_tokens_log_prob_and_gradient_keep_their_digits(
    gap: float, offset: float, temperature: float
) -> None:
    """``p - 1`` in float32 is 0 from a gap of 17 on, and log p with it."""
    logits = [offset, offset + gap, offset - 0.25, offset]
    logp, complement = by_the_others([z / temperature for z in logits])
    value, gradient = of_logits(logits, 1, temperature)
    assert value < 0
    assert pytest.approx(logp[1], rel=1e-5) == value
    assert pytest.approx(complement[1] / temperature, rel=1e-5, abs=0) == gradient[1]
    others = [-math.exp(x) / temperature for i, x in enumerate(logp) if i != 1]
    assert pytest.approx(others, rel=1e-5, abs=0) == [g for i, g in enumerate(gradient) if i != 1]


@pytest.mark.parametrize("gap", GAPS)
def test_a_token_far_from_the_top_has_its_log_prob_and_the_tops_gradient(gap: float) -> None:
    logits = [0.0, gap, -1.0]
    logp, complement = by_the_others(logits)
    value, gradient = of_logits(logits, 2)
    assert pytest.approx(logp[2], rel=1e-6) == value
    expected = [-math.exp(logp[0]), -math.exp(logp[1]), complement[2]]
    assert pytest.approx(expected, rel=1e-5, abs=0) == gradient


@pytest.mark.parametrize("gap", GAPS)
def test_a_confident_distributions_entropy_and_its_gradient_keep_their_digits(gap: float) -> None:
    """``dH/dz_j = -p_j (log p_j + H)``: of the top token a difference of two tiny numbers."""
    logits = [0.0, gap, -0.25, -1.0]
    logp, _ = by_the_others(logits)
    entropy = -math.fsum(math.exp(x) * x for x in logp)
    value, gradient = of_logits(logits, 0, pick="entropy")
    assert pytest.approx(entropy, rel=1e-5, abs=0) == value
    expected = [-math.exp(x) * (x + entropy) for x in logp]
    assert pytest.approx(expected, rel=1e-5, abs=0) == gradient


def exact_response(logits: list[float], target: int, temperature: float = 1.0) -> float:
    """Return the entropy response as it is defined, in decimals of more digits than can cancel."""
    with localcontext(prec=120):
        exps = [(Decimal(z) / Decimal(temperature)).exp() for z in logits]
        log_total = sum(exps).ln()
        log_p = [e.ln() - log_total for e in exps]
        p = [x.exp() for x in log_p]
        entropy = -sum(a * b for a, b in zip(p, log_p, strict=True))
        excess = [x + entropy for x in log_p]
        squares = sum(a * a * b for a, b in zip(p, excess, strict=True))
        return float(squares - p[target] * excess[target])


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_confident_distributions_entropy_response_keeps_its_digits(
    gap: float, target: int, temperature: float
) -> None:
    """Of the top token a second-order number, ``-2 gap exp(-2 gap)``, from terms of first order."""
    logits = [0.0, gap + 0.125, -0.25, -1.0]
    response, gradient = of_logits(logits, target, temperature, pick="entropy_response")
    expected = exact_response(logits, target, temperature)
    assert [] == gradient
    assert pytest.approx(expected, rel=2e-5, abs=SMALLEST) == response


@given(
    logits=st.lists(st.integers(-160, 160).map(lambda n: n / 8), min_size=2, max_size=9),
    target=st.integers(0, 8),
)
def test_any_logits_entropy_response_agrees_with_its_definition(
    logits: list[float], target: int
) -> None:
    """Relative to the response's two parts where these meet: near ties, it passes through zero."""
    target %= len(logits)
    response, _ = of_logits(logits, target, pick="entropy_response")
    logp, complement = by_the_others(logits)
    top = max(range(len(logits)), key=lambda j: logits[j])
    below = [z - logits[top] for z in logits]
    gap = -math.fsum(math.exp(x) * d for x, d in zip(logp, below, strict=True))
    squares = math.fsum(math.exp(2 * x) * abs(d + gap) for x, d in zip(logp, below, strict=True))
    own = math.exp(logp[target]) * abs(below[target] + gap)
    if logits[target] == logits[top] and logits.count(logits[top]) == 1:
        own, squares = own * complement[target], squares - math.exp(2 * logp[top]) * gap
    expected = exact_response(logits, target)
    assert pytest.approx(expected, abs=SMALLEST + 1e-5 * (own + squares)) == response


def test_plain_float32_would_lose_the_entropy_response() -> None:
    logits = [0.0, 17.0, -1.0]
    log_p = torch.log_softmax(torch.tensor(logits), -1)
    p = log_p.exp()
    excess = log_p - (p * log_p).sum()
    naive = float((p * p * excess).sum() - (p * excess)[1])
    expected = exact_response(logits, 1)
    response, _ = of_logits(logits, 1, pick="entropy_response")
    assert pytest.approx(expected, rel=1e-5, abs=0) == response
    assert abs(naive / expected - 1) > 0.5


def test_beyond_float32s_smallest_number_a_token_is_certain() -> None:
    assert (0.0, [0.0, 0.0]) == of_logits([0.0, 200.0], 1)
    assert (-200.0, [1.0, -1.0]) == of_logits([0.0, 200.0], 0)
    assert (0.0, [0.0, 0.0]) == of_logits([0.0, 200.0], 0, pick="entropy")
    for target in range(2):
        assert (0.0, []) == of_logits([0.0, 200.0], target, pick="entropy_response")


def test_plain_float32_would_fail_the_tests_above() -> None:
    logits = torch.tensor([0.0, 20.0], requires_grad=True)
    logp = torch.log_softmax(logits, -1)[1]
    (gradient,) = torch.autograd.grad(logp, logits)
    assert (0.0, 0.0) == (logp.item(), gradient[1].item())
    assert 0.0 != gradient[0].item()


@given(
    logits=st.lists(st.integers(-160, 160).map(lambda n: n / 8), min_size=2, max_size=9),
    target=st.integers(0, 8),
)
def test_any_logits_agree_with_sums_over_the_other_tokens(logits: list[float], target: int) -> None:
    target %= len(logits)
    logp, complement = by_the_others(logits)
    value, gradient = of_logits(logits, target)
    assert pytest.approx(logp[target], rel=1e-5) == value
    expected = [-math.exp(x) for x in logp]
    expected[target] = complement[target]
    assert pytest.approx(expected, rel=1e-5, abs=0) == gradient


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    logits=st.lists(st.integers(-240, 240).map(lambda n: n / 8), min_size=2, max_size=9),
    target=st.integers(0, 8),
    temperature=st.floats(0.5, 2.0),
)
def test_any_logits_of_any_dtype_at_any_temperature_keep_their_digits(
    dtype: torch.dtype, logits: list[float], target: int, temperature: float
) -> None:
    """Gaps up to 60. The logits are rounded to their dtype before, and the gradient after."""
    target %= len(logits)
    logits = torch.tensor(logits, dtype=dtype).tolist()
    logp, complement = by_the_others([z / temperature for z in logits])
    entropy = -math.fsum(math.exp(x) * x for x in logp)
    chances = [math.exp(x) / temperature for x in logp]
    by_logp = [-p for p in chances]
    by_logp[target] = complement[target] / temperature
    # Where log p_j is about -H, its share of the gradient passes through zero.
    by_entropy = [-p * (x + entropy) for p, x in zip(chances, logp, strict=True)]
    cancelled = max(p * abs(x) for p, x in zip(chances, logp, strict=True))
    for pick, value, gradient, near in (
        ("logp", logp[target], by_logp, 0.0),
        ("entropy", entropy, by_entropy, 1e-5 * cancelled),
    ):
        found, to_logits = of_logits(logits, target, temperature, pick=pick, dtype=dtype)
        assert pytest.approx(value, rel=2e-5, abs=SMALLEST) == found
        near += max(torch.finfo(dtype).smallest_normal * ULP[dtype], SMALLEST)
        assert pytest.approx(gradient, rel=2e-5 + ULP[dtype], abs=near) == to_logits
    found, _ = of_logits(logits, target, temperature, dtype=dtype)
    plain, _ = of_logits(logits, target, temperature)
    assert plain == found  # the products were exact, and nothing was rounded after them


def test_ties_at_the_top_share_the_probability() -> None:
    value, gradient = of_logits([3.0] * 4, 2)
    assert pytest.approx(-math.log(4), rel=1e-6) == value
    assert pytest.approx([-0.25, -0.25, 0.75, -0.25], rel=1e-6) == gradient
    value, gradient = of_logits([3.0] * 4, 2, pick="entropy")
    assert pytest.approx(math.log(4), rel=1e-6) == value
    assert pytest.approx([0.0] * 4, abs=1e-7) == gradient


def test_a_vocabulary_of_one_is_certain() -> None:
    assert (0.0, [0.0]) == of_logits([5.0], 0)
    assert (0.0, [0.0]) == of_logits([5.0], 0, pick="entropy")
    assert (0.0, []) == of_logits([5.0], 0, pick="entropy_response")


def test_no_tokens_are_no_log_probs_and_no_gradient() -> None:
    hidden, weight, bias, target = make_inputs()
    logp, *others = token_scores(hidden[:0], weight, bias, target[:0], needs=BOTH)
    assert [0, 0] == [len(x) for x in others if x is not None]
    assert 0 == len(logp)
    (gradient,) = torch.autograd.grad(logp.sum(), weight)
    assert not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_sixteen_bit_inputs_give_float32_log_probs(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    bias: bool,
    temperature: float,
    block: int,
) -> None:
    """The inputs are rounded, and nothing after them: only a gradient, to its own dtype again."""
    monkeypatch.setattr(head, "BLOCK_ELEMENTS", block)
    inputs = make_inputs(dtype=dtype, bias=bias)
    expected = full_float64(inputs, temperature)
    found = token_scores(*inputs, temperature, needs=BOTH)
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert torch.float32 == a.dtype
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=3e-6)
    hidden, weight, shift, target = inputs
    doubles = [
        None if x is None else x.detach().double().requires_grad_() for x in (hidden, weight, shift)
    ]
    theirs = gradients(lambda x: full_float64(x, temperature), (*doubles, target))
    ours = gradients(lambda x: token_scores(*x, temperature, needs=ENTROPY), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert dtype == a.dtype
        torch.testing.assert_close(a.double(), b, rtol=ULP[dtype], atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_the_embedding_too_gets_both_gradients(dtype: torch.dtype) -> None:
    _, weight, bias, target = make_inputs(dtype=dtype)
    double = weight.detach().double().requires_grad_()
    logp, entropy, _ = token_scores(weight[:13], weight, bias, target, 0.7, needs=ENTROPY)
    expected = full_float64((double[:13], double, bias, target), 0.7)
    mixture = torch.linspace(-1, 1, 13, dtype=torch.float64)
    (ours,) = torch.autograd.grad((mixture * (logp - 2 * entropy)).sum(), weight)
    (theirs,) = torch.autograd.grad((mixture * (expected[0] - 2 * expected[1])).sum(), double)
    near = 1e-5 + 2 * ULP[dtype] * float(theirs.abs().max())  # a sum of two rounded gradients
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("elements", [31, 93, 1 << 24])
def test_an_adapter_is_a_low_rank_change_of_the_weight(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, frozen: bool, elements: int
) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(head, "BLOCK_ELEMENTS", 40)
    hidden, weight, bias, target = make_inputs(dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(13, 2, generator=generator).to(dtype).requires_grad_()
    up = torch.randn(31, 2, generator=generator).to(dtype).requires_grad_()
    assert bias is not None
    tensors = [hidden, weight, bias, low, up]
    if frozen:
        weight.requires_grad_(False)
        bias.requires_grad_(False)
    found = token_scores(hidden, weight, bias, target, 0.7, needs=BOTH, adapter=(low, up))

    doubles = [x.detach().double().requires_grad_() for x in tensors]
    h, w, b, x, y = doubles
    expected = full_float64((torch.cat([h, x], 1), torch.cat([w, y], 1), b, target), 0.7)
    for a, e in zip(found, expected, strict=True):
        assert a is not None
        torch.testing.assert_close(a.double(), e, rtol=4e-6, atol=4e-6)
    mixture = torch.linspace(-1, 1, 13, dtype=torch.float64)
    trained = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    ours, theirs = (
        torch.autograd.grad((mixture * (logp + 0.3 * entropy)).sum(), [inputs[i] for i in trained])
        for (logp, entropy, _), inputs in ((found, tensors), (expected, doubles))
    )
    for a, e in zip(ours, theirs, strict=True):
        assert dtype == a.dtype
        torch.testing.assert_close(a.double(), e, rtol=1e-5 + ULP[dtype], atol=2e-5)


def test_under_autocast_nothing_is_rounded() -> None:
    inputs = make_inputs()
    expected = token_scores(*inputs, needs=BOTH)
    gradient = gradients(lambda x: token_scores(*x, needs=BOTH), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_scores(*inputs, needs=BOTH)
        under = gradients(lambda x: token_scores(*x, needs=BOTH), inputs)
    for a, b in zip((*found, *under), (*expected, *gradient), strict=True):
        assert b.tolist() == a.tolist()


class Made(TorchDispatchMode):
    """Remembers the shape of every tensor that an operation makes or writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.shapes.add(tuple(result.shape))
        return result


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_a_frozen_inputs_gradient_is_never_computed(frozen: str) -> None:
    hidden, weight, bias, target = make_inputs()
    tensors = {"hidden": hidden, "weight": weight}
    tensors[frozen].requires_grad_(False)
    logp = token_scores(hidden, weight, bias, target).logp
    with Made() as made:
        logp.sum().backward()
    for name, tensor in tensors.items():
        assert (name == frozen) == (tensor.grad is None)
        assert (name == frozen) == (tuple(tensor.shape) not in made.shapes)


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the most memory that `function` has allocated at one time, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = [e for e in events if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    ("tokens", "vocabulary"),
    [(512, 4096), pytest.param(4096, 32768, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    ("needs", "chunks"), [(frozenset(), 1), (ENTROPY, 2), (RESPONSE, 2), (BOTH, 2)]
)
def test_memory_is_that_of_a_chunk_and_not_of_all_logits(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    tokens: int,
    vocabulary: int,
    needs: frozenset[str],
    chunks: int,
) -> None:
    """One chunk for log-probs and two for more, which are a quarter of the logits here."""
    full = 4 * tokens * vocabulary
    if tokens == 4096:
        assert full == 8 * 4 * head.CHUNK_ELEMENTS  # as it comes
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", full // 4 // 8)
    hidden = torch.randn(tokens, 4).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 4).to(dtype).requires_grad_()
    target = torch.zeros(tokens, dtype=torch.int64)

    def work() -> None:
        logp, exact, _ = token_scores(hidden, weight, None, target, needs=needs)
        (logp if exact is None else logp + exact).sum().backward()

    peak = peak_bytes(work)
    assert chunks * full / 8 <= peak < (chunks + 0.5) * full / 8
    if not needs:
        assert peak < full / 4


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("needs", [frozenset(), BOTH])
def test_a_sixteen_bit_weight_becomes_float32_in_blocks_only(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, needs: frozenset[str]
) -> None:
    tokens, vocabulary, size = 64, 1024, 512
    chunk, block = 4 * 8 * vocabulary, 4 * 16 * size
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk // 4)
    monkeypatch.setattr(head, "BLOCK_ELEMENTS", block // 4)
    hidden = torch.randn(tokens, size).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, size).to(dtype)
    target = torch.zeros(tokens, dtype=torch.int64)

    def work() -> None:
        logp, exact, _ = token_scores(hidden, weight, None, target, needs=needs)
        (logp if exact is None else logp + exact).sum().backward()

    with Made() as made:
        work()
    assert {(16, size)} == {shape for shape in made.shapes if shape[-1:] == (size,)} - {
        (tokens, size), (8, size),
    }  # fmt: skip
    states = 2 * tokens * size + 3 * 4 * 8 * size  # the gradient, and a chunk's in float32
    assert peak_bytes(work) < 2 * chunk + 2 * block + states + 4096 * 8
