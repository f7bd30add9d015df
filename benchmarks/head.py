"""The head's peak memory and CPU time against full logits, TRL's and Cut Cross-Entropy's.

    python benchmarks/head.py [--quick]

Each case runs in a process of its own, one thread: hidden states [T, 256] with gradient, a weight
[151936, 256] without, forward and backward once, after a warm-up of a few tokens. Memory is the
high-water mark of resident memory over what was there before, as Linux counts it, so that what
libraries hold beside tensors is counted too. Seconds are CPU seconds, without compilation.

Full logits are run up to 2,048 tokens, and beyond that, marked ~, taken as in proportion to them.
TRL's chunked function and cut-cross-entropy's compiled product run where they can be imported.
The last table asks each for the gradient of a token of 1 - p = 5e-9: exact is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor

from isentrope.learner.head import token_scores

VOCABULARY, SIZE = 151_936, 256
TOKENS = (512, 2048, 8192)
FULL_TOKENS = 2048  # more would take 15 GB
TEMPERATURE = 0.7
MIB = 1 << 20

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""From hidden [T, D], weight [V, D] and target [T] to log-probs [T], and entropies that have
gradient."""


@frozen
class Contestant:
    """A way to log-probs, and the dtype of what it gets."""

    head: Head
    dtype: torch.dtype


def ours(*needs: str) -> Head:
    """Isentrope's, with what parts of an algorithm may need."""

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = token_scores(hidden, weight, None, target, TEMPERATURE, needs=frozenset(needs))
        return scores.logp, scores.entropy

    return head


def full(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, None]:
    """All logits at once, in float32."""
    log_p = torch.log_softmax((hidden @ weight.T).float() / TEMPERATURE, -1)
    return log_p.gather(-1, target[:, None]).squeeze(-1), None


def full_with_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once, and their entropies."""
    log_p = torch.log_softmax((hidden @ weight.T).float() / TEMPERATURE, -1)
    return log_p.gather(-1, target[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def trl(*outputs: str) -> Head:
    """TRL's, in chunks of as many logits as its trainers use."""

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as SIZE_OF_CHUNK

        logp, entropy, *_ = ChunkedLogProbFunction.apply(
            hidden, weight, None, target, TEMPERATURE, SIZE_OF_CHUNK, None, 1.0, outputs
        )
        return logp, entropy

    return head


def cut(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, None]:
    """cut-cross-entropy's compiled product, which is what it has for CPUs."""
    from isentrope.learner.cut import CutCrossEntropy

    return CutCrossEntropy.load(hidden.device, bias=False)(
        hidden, weight, target, TEMPERATURE
    ), None


CONTESTANTS = {
    "ours, float32": Contestant(ours(), torch.float32),
    "ours, bfloat16": Contestant(ours(), torch.bfloat16),
    "ours, float16": Contestant(ours(), torch.float16),
    "ours + entropy, float32": Contestant(ours("entropy"), torch.float32),
    "ours + response, float32": Contestant(ours("entropy_response"), torch.float32),
    "ours + both, bfloat16": Contestant(ours("entropy", "entropy_response"), torch.bfloat16),
    "full logits, float32": Contestant(full, torch.float32),
    "full logits + entropy, float32": Contestant(full_with_entropy, torch.float32),
    "TRL, float32": Contestant(trl(), torch.float32),
    "TRL, bfloat16": Contestant(trl(), torch.bfloat16),
    "TRL + entropy, float32": Contestant(trl("entropy"), torch.float32),
    "CCE, float32": Contestant(cut, torch.float32),
    "CCE, bfloat16": Contestant(cut, torch.bfloat16),
}


def loss(contestant: Contestant, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Run one forward pass; entropy counts like a regulariser."""
    logp, entropy = contestant.head(hidden, weight, target)
    return logp.sum() if entropy is None else (logp + 0.1 * entropy).sum()


def confident(contestant: Contestant) -> float:
    """Return the gradient of log p of a confident token to its own logit, over the exact one."""
    logits = torch.tensor([[0.0, 19 * TEMPERATURE, -5.0]])
    hidden = logits.to(contestant.dtype).requires_grad_()
    weight = torch.eye(3, dtype=contestant.dtype)
    logp, _ = contestant.head(hidden, weight, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(logp.sum(), hidden)
    rounded = (hidden.double()[0] / TEMPERATURE).tolist()
    others = math.fsum(math.exp(rounded[j] - rounded[1]) for j in (0, 2))
    return float(gradient[0, 1]) * TEMPERATURE / (others / (1 + others))


def resident(field: str) -> int:
    """Return a figure of this process's memory, in bytes: VmRSS, or VmHWM since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def run_case(name: str, tokens: int) -> dict[str, float]:
    """Measure one contestant in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contestant = CONTESTANTS[name]
    weight = torch.randn(VOCABULARY, SIZE, dtype=contestant.dtype).mul_(0.1)
    hidden = torch.randn(tokens, SIZE, dtype=contestant.dtype, requires_grad=True)
    target = torch.randint(VOCABULARY, (tokens,))
    share = confident(contestant)
    for few in (5, 7):  # the second compiles what must serve all sizes
        loss(contestant, hidden[:few].detach().requires_grad_(), weight, target[:few]).backward()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, start = resident("VmRSS"), time.process_time()
    loss(contestant, hidden, weight, target).backward()
    seconds = time.process_time() - start
    return {"bytes": resident("VmHWM") - before, "seconds": seconds, "share": share}


def measure(name: str, tokens: int) -> dict[str, float] | None:
    """Measure one contestant in a process of its own; None where it cannot be imported."""
    command = [sys.executable, __file__, "--case", name, "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        print(f"{name}, {tokens} tokens: left out ({reason})", file=sys.stderr)
        return None
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(
    title: str, figures: dict[str, dict[int, dict[str, float]]], key: str, tokens: tuple[int, ...]
) -> list[str]:
    """Return a Markdown table of one figure by contestant and number of tokens."""
    unit = MIB if key == "bytes" else 1
    lines = [
        f"| {title} |" + "".join(f" {n:,} |" for n in tokens),
        "| --- |" + " ---: |" * len(tokens),
    ]
    for name, by_tokens in figures.items():
        cells = []
        largest = max(by_tokens)
        for n in tokens:
            value = by_tokens[min(n, largest)][key] / unit
            mark = "" if n in by_tokens else "~"
            value *= 1 if n in by_tokens else n / largest
            cells.append(f"{mark}{value:,.0f}" if key == "bytes" else f"{mark}{value:,.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure all, and print the tables."""
    parser = argparse.ArgumentParser(description="Measure the head's memory and time.")
    parser.add_argument("--quick", action="store_true", help="512 tokens only")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case, arguments.tokens)))
        return
    tokens = TOKENS[:1] if arguments.quick else TOKENS
    figures: dict[str, dict[int, dict[str, float]]] = {}
    for name in CONTESTANTS:
        sizes = [n for n in tokens if n <= FULL_TOKENS or not name.startswith("full")]
        measured = {n: found for n in sizes if (found := measure(name, n)) is not None}
        if measured:
            figures[name] = measured
    print(f"torch {torch.__version__}, V = {VOCABULARY:,}, D = {SIZE}, 1 thread\n")
    print("\n".join(table("peak extra memory, MiB, by tokens", figures, "bytes", tokens)), "\n")
    print("\n".join(table("CPU seconds, by tokens", figures, "seconds", tokens)), "\n")
    print("| confident token's gradient, of 1 | |\n| --- | ---: |")
    for name, by_tokens in figures.items():
        print(f"| {name} | {by_tokens[tokens[0]]['share']:.4f} |")


if __name__ == "__main__":
    main()
