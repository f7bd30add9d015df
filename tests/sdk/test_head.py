"""The head, against float64: over full logits by autograd, and by sums over the other tokens.

Gaps are exact: with the identity for a weight, a hidden state is its own logits, and the gradient
of the one is that of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from isentrope.learner import head
from isentrope.learner.head import token_logp

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]


def make_inputs(
    tokens: int = 13, vocabulary: int = 31, *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Return hidden [T, 8], weight [V, 8], bias [V] and targets [T]."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    target = torch.randint(vocabulary, (tokens,), generator=generator)
    return normal(tokens, 8), normal(vocabulary, 8), normal(vocabulary) if bias else None, target


def full_float64(inputs: Inputs, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probs and entropies by way of all the logits."""
    hidden, weight, bias, target = inputs
    logits = hidden.double() @ weight.double().T
    logits = (logits if bias is None else logits + bias.double()) / temperature
    log_p = torch.log_softmax(logits, -1)
    own = log_p.gather(-1, target[:, None]).squeeze(-1)
    return own, -(log_p.exp() * log_p).sum(-1)


def gradients(
    function: Callable[[Inputs], tuple[Tensor, Tensor | None]], inputs: Inputs
) -> list[Tensor]:
    """Return the gradients of a fixed, uneven mixture of the results to every float input."""
    hidden = inputs[0]
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for values in function(inputs):
        if values is not None:
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
    expected, _ = full_float64(inputs, temperature)
    found, nothing = token_logp(*inputs, temperature)
    assert nothing is None
    assert torch.float32 == found.dtype
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)
    theirs = gradients(lambda x: (full_float64(x, temperature)[0], None), inputs)
    ours = gradients(lambda x: token_logp(*x, temperature), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("bias", [False, True])
def test_entropy_and_its_gradient_are_those_of_the_full_distribution(
    temperature: float, bias: bool
) -> None:
    inputs = make_inputs(bias=bias)
    _, expected = full_float64(inputs, temperature)
    _, found = token_logp(*inputs, temperature, entropy=True)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)
    for pick in (slice(0, 2), slice(1, 2)):  # both results, and entropy alone
        theirs = gradients(lambda x, p=pick: full_float64(x, temperature)[p], inputs)
        ours = gradients(lambda x, p=pick: token_logp(*x, temperature, entropy=True)[p], inputs)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_asking_for_entropy_changes_no_log_prob_and_no_gradient_of_one() -> None:
    inputs = make_inputs()
    plain, with_entropy = (token_logp(*inputs, entropy=wanted)[0] for wanted in (False, True))
    assert plain.tolist() == with_entropy.tolist()
    ours = [
        gradients(lambda x, w=wanted: (token_logp(*x, entropy=w)[0], None), inputs)
        for wanted in (False, True)
    ]
    assert [g.tolist() for g in ours[0]] == [g.tolist() for g in ours[1]]


@pytest.mark.parametrize("elements", [1, 31, 62, 93, 12 * 31, 13 * 31 - 1, 13 * 31, 10**6])
def test_where_chunks_end_changes_nothing(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    inputs = make_inputs()
    whole = token_logp(*inputs, 1.3, entropy=True)
    expected = gradients(lambda x: token_logp(*x, 1.3, entropy=True), inputs)
    chunked: list[int] = []
    matmul = head._logits

    def counted(hidden: Tensor, *rest: Any) -> Tensor:
        chunked.append(len(hidden))
        return matmul(hidden, *rest)

    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(head, "_logits", counted)
    found = token_logp(*inputs, 1.3, entropy=True)
    size = max(1, elements // 31)
    assert [min(size, 13 - i) for i in range(0, 13, size)] == chunked
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    ours = gradients(lambda x: token_logp(*x, 1.3, entropy=True), inputs)
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
    logits: list[float], target: int, temperature: float = 1.0, *, entropy: bool = False
) -> tuple[float, list[float]]:
    """Return the log-prob (or the entropy) of one token by the head, and its gradient to logits."""
    hidden = torch.tensor([logits], requires_grad=True)
    size = len(logits)
    results = token_logp(
        hidden, torch.eye(size), None, torch.tensor([target]), temperature, entropy=entropy
    )
    value = results[1] if entropy else results[0]
    assert value is not None
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
    value, gradient = of_logits(logits, 0, entropy=True)
    assert pytest.approx(entropy, rel=1e-5, abs=0) == value
    expected = [-math.exp(x) * (x + entropy) for x in logp]
    assert pytest.approx(expected, rel=1e-5, abs=1e-6 * entropy) == gradient


def test_beyond_float32s_smallest_number_a_token_is_certain() -> None:
    assert (0.0, [0.0, 0.0]) == of_logits([0.0, 200.0], 1)
    assert (-200.0, [1.0, -1.0]) == of_logits([0.0, 200.0], 0)
    assert (0.0, [0.0, 0.0]) == of_logits([0.0, 200.0], 0, entropy=True)


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


def test_ties_at_the_top_share_the_probability() -> None:
    value, gradient = of_logits([3.0] * 4, 2)
    assert pytest.approx(-math.log(4), rel=1e-6) == value
    assert pytest.approx([-0.25, -0.25, 0.75, -0.25], rel=1e-6) == gradient
    value, gradient = of_logits([3.0] * 4, 2, entropy=True)
    assert pytest.approx(math.log(4), rel=1e-6) == value
    assert pytest.approx([0.0] * 4, abs=1e-7) == gradient


def test_a_vocabulary_of_one_is_certain() -> None:
    assert (0.0, [0.0]) == of_logits([5.0], 0)
    assert (0.0, [0.0]) == of_logits([5.0], 0, entropy=True)


def test_no_tokens_are_no_log_probs_and_no_gradient() -> None:
    hidden, weight, bias, target = make_inputs()
    logp, entropy = token_logp(hidden[:0], weight, bias, target[:0], entropy=True)
    assert entropy is not None
    assert (0, 0) == (len(logp), len(entropy))
    (gradient,) = torch.autograd.grad(logp.sum(), weight)
    assert not gradient.any()


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sixteen_bit_inputs_give_float32_log_probs(
    dtype: torch.dtype, ulp: float, temperature: float
) -> None:
    """The inputs are rounded, and nothing after them: only a gradient, to its own dtype again."""
    inputs = make_inputs(dtype=dtype)
    expected = full_float64(inputs, temperature)
    found = token_logp(*inputs, temperature, entropy=True)
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert torch.float32 == a.dtype
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=3e-6)
    doubles = [x.detach().double().requires_grad_() for x in inputs[:3] if x is not None]
    theirs = gradients(lambda x: full_float64(x, temperature), (*doubles, inputs[3]))
    ours = gradients(lambda x: token_logp(*x, temperature, entropy=True), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert dtype == a.dtype
        torch.testing.assert_close(a.double(), b, rtol=ulp, atol=1e-5)


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
    logp, _ = token_logp(hidden, weight, bias, target)
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


@pytest.mark.parametrize(
    ("tokens", "vocabulary"),
    [(512, 4096), pytest.param(4096, 32768, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(("entropy", "chunks"), [(False, 1), (True, 2)])
def test_memory_is_that_of_a_chunk_and_not_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, tokens: int, vocabulary: int, entropy: bool, chunks: int
) -> None:
    """One chunk for log-probs and two for entropies, which are a quarter of the logits here."""
    full = 4 * tokens * vocabulary
    if tokens == 4096:
        assert full == 8 * 4 * head.CHUNK_ELEMENTS  # as it comes
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", full // 4 // 8)
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    target = torch.zeros(tokens, dtype=torch.int64)

    def work() -> None:
        logp, exact = token_logp(hidden, weight, None, target, entropy=entropy)
        (logp if exact is None else logp + exact).sum().backward()

    peak = peak_bytes(work)
    assert chunks * full / 8 <= peak < (chunks + 0.5) * full / 8
    if not entropy:
        assert peak < full / 4
