"""The learner's step against the same step written by hand in bare PyTorch.

    python benchmarks/learner.py [--quick]

Ours splits, packs, runs parts and diagnostics, and recomputes its logits; the step by hand gets
its micro-batches ready made, and the loss, the aggregation and the optimizer are inlined. Three of
them: one on the very packs that ours makes, one on rows of similar length, padded, and one that
pads rows as they come and runs the head over every position, as most scripts do. Rounds are
interleaved, so that whatever else the machine does meets all alike, and the ratio is the median of
the rounds' own. One thread. Then what packing and the sharing of prompts save.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from isentrope import Algorithm, Episode, LearnerConfig, Segment, recipe
from isentrope.episodes import StopReason
from isentrope.learner.learner import Learner
from isentrope.learner.packing import Inputs, Trajectory, collate, micro_batches
from isentrope.learner.policy import Policy, of_decoder

EPISODES, PROMPT, SHORTEST, LONGEST = 256, 11, 6, 32
VOCABULARY = 286
TARGET = 1.1
BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
WARM_UP = 2


@frozen
class ByHand:
    """One micro-batch, ready for a step by hand. R rows, L positions, T sampled tokens."""

    inputs: Inputs
    """What ours makes of the same episodes."""
    ids: Tensor
    """[R, L]: the same as rows, padded on the right."""
    row: Tensor
    column: Tensor
    old_logp: Tensor
    advantage: Tensor
    weight: Tensor
    """[T] of each token in the loss: seq-mean-token-mean."""


def make_model(vocabulary: int = VOCABULARY, **options: Any) -> Qwen3ForCausalLM:
    """Make the embedded model's shape, with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **options,
    )
    return Qwen3ForCausalLM(config)  # Policy sets it to eval; there is no dropout in it


def make_episodes(*, shared: bool = False, seed: int = 0) -> list[Episode]:
    """Make episodes of one turn, of even lengths between the shortest and the longest.

    shared: groups have a prompt, and not every episode one of its own.
    """
    rng = np.random.default_rng(seed)
    episodes: list[Episode] = []
    for i, sampled in enumerate(rng.integers(SHORTEST, LONGEST + 1, EPISODES)):
        size = PROMPT + int(sampled)
        mask = np.arange(size) >= PROMPT
        ids = rng.integers(0, VOCABULARY, size)
        if shared and i % 8:
            ids[:PROMPT] = episodes[-1].segments[0].ids[:PROMPT]
        segment = Segment(ids, mask, np.zeros(size), np.zeros(size), np.where(mask, 0, -1))
        task = f"task-{i // 8}"
        episodes.append(
            Episode(task, 0, i % 8, (segment,), (), (0.0,), False, StopReason.TERMINATED)
        )
    return episodes


def make_trajectories(
    learner: Learner, episodes: list[Episode], needs: frozenset[str] = frozenset()
) -> list[Trajectory]:
    """Give every episode a random advantage, and log-probs that make some ratios clip."""
    generator = torch.Generator().manual_seed(0)

    def noise(size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    scores = learner.scores(episodes, needs)
    drifted = [x._replace(logp=x.logp + 0.1 * noise(x.logp.numel())) for x in scores]
    return [
        Trajectory(episode, i // 8, old, noise(1).expand(old.logp.numel()))
        for i, (episode, old) in enumerate(zip(episodes, drifted, strict=True))
    ]


def by_hand_of(trajectories: list[Trajectory], split: list[list[int]]) -> list[ByHand]:
    """Lay micro-batches of trajectories out."""
    batches = []
    for indices in split:
        part = [trajectories[i] for i in indices]
        segments = [s for t in part for s in t.episode.segments]
        rows = [torch.from_numpy(s.ids) for s in segments]
        sampled = [torch.from_numpy(s.sampled) for s in segments]
        row, position = torch.nn.utils.rnn.pad_sequence(sampled, batch_first=True).nonzero().T
        weight = [torch.full((len(t),), 1 / len(t) / len(trajectories)) for t in part]
        batches.append(
            ByHand(
                inputs=collate([t.episode for t in part], torch.device("cpu")),
                ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
                row=row,
                column=position - 1,
                old_logp=torch.cat([t.old.logp for t in part]),
                advantage=torch.cat([t.advantage for t in part]),
                weight=torch.cat(weight),
            )
        )
    return batches


def by_length(trajectories: list[Trajectory], budget: int) -> list[list[int]]:
    """Split into batches of similar length, each of at most `budget` padded tokens."""
    lengths = [len(t.episode.segments[0].ids) for t in trajectories]
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(trajectories)), key=lengths.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def in_order(trajectories: list[Trajectory], budget: int) -> list[list[int]]:
    """Split as they come, as many rows at a time as the longest of all allows."""
    longest = max(len(t.episode.segments[0].ids) for t in trajectories)
    size, every = max(1, budget // longest), range(len(trajectories))
    return [list(every[i : i + size]) for i in every[::size]]


def logp_packed(model: Any, batch: ByHand) -> Tensor:
    """Log-probs [T] of the pack that ours makes."""
    states = model.model(**of_decoder(batch.inputs))[0][0].index_select(0, batch.inputs.state)
    logits = model.lm_head(states)
    return torch.log_softmax(logits, -1).gather(-1, batch.inputs.target[:, None]).squeeze(-1)


def logp_padded(model: Any, batch: ByHand) -> Tensor:
    """Log-probs [T] by taking the sampled positions of padded rows first, and the head after."""
    states = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.lm_head(states[batch.row, batch.column])
    target = batch.ids[batch.row, batch.column + 1]
    return torch.log_softmax(logits, -1).gather(-1, target[:, None]).squeeze(-1)


def logp_everywhere(model: Any, batch: ByHand) -> Tensor:
    """Log-probs [T] from the logits of every padded position."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    logp = torch.log_softmax(logits, -1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return logp[batch.row, batch.column]


def step_by_hand(
    model: Any, optimizer: Any, batches: list[ByHand], logp_of: Callable[[Any, ByHand], Tensor]
) -> Tensor:
    """Take one step: PPO's clip, the mean of sequences' means, clipped gradient, AdamW."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for batch in batches:
        ratio = (logp_of(model, batch) - batch.old_logp).exp()
        clipped = ratio.clamp(0.8, 1.2)
        per_token = -torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
        loss = (batch.weight * per_token).sum()
        torch.autograd.backward(loss)
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total


def make_learner(model: Qwen3ForCausalLM, budget: int) -> Learner:
    """Make a learner of a copy of `model`."""
    config = LearnerConfig(lr=1e-4, max_grad_norm=1.0, micro_batch_tokens=budget)
    return Learner(Policy(copy.deepcopy(model), 1.0, lora=None), config)


def contestants(
    algorithm: Algorithm, budget: int, *, shared: bool = False
) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Return steps and log-prob passes by name, ours first."""
    model, episodes = make_model(), make_episodes(shared=shared)
    learner = make_learner(model, budget)
    trajectories = make_trajectories(learner, episodes)
    packs = by_hand_of(trajectories, micro_batches(episodes, budget))
    rows = by_hand_of(trajectories, by_length(trajectories, budget))
    unsorted = by_hand_of(trajectories, in_order(trajectories, budget))

    def by_hand(
        batches: list[ByHand], logp_of: Callable[[Any, ByHand], Tensor]
    ) -> Callable[[], Tensor]:
        own = copy.deepcopy(learner.policy.plain if logp_of is logp_packed else model)
        config = learner.config
        optimizer = torch.optim.AdamW(
            own.parameters(), lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True
        )
        return lambda: step_by_hand(own, optimizer, batches, logp_of)

    def ours() -> float:
        return learner.step(algorithm, trajectories, nominal_sequences=EPISODES, step=0).loss

    def log_probs_by_hand() -> list[Tensor]:
        with torch.no_grad():
            return [logp_packed(learner.policy.plain, batch) for batch in packs]

    steps = {
        "ours": ours,
        "by hand, packed": by_hand(packs, logp_packed),
        "by hand, padded": by_hand(rows, logp_padded),
        "by hand, as they come": by_hand(unsorted, logp_everywhere),
    }
    losses = [float(step()) for step in steps.values()]  # type: ignore[arg-type]  # a loss each
    assert max(losses) - min(losses) < 1e-5, f"not the same step: {losses}"
    return steps, {
        "ours": lambda: learner.scores(episodes, frozenset()),
        "by hand, packed": log_probs_by_hand,
    }


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each, round by round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-WARM_UP, rounds):
        for name, function in list(functions.items())[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            function()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Return the median over rounds of ours over the other's."""
    return median(a / b for a, b in zip(seconds["ours"], seconds[name], strict=True))


def tokens_computed(budget: int, *, shared: bool) -> tuple[int, int]:
    """Return the tokens of the packs and of rows as they come, padded."""
    learner = make_learner(make_model(), budget)
    trajectories = make_trajectories(learner, make_episodes(shared=shared))
    packs = by_hand_of(trajectories, micro_batches([t.episode for t in trajectories], budget))
    rows = by_hand_of(trajectories, in_order(trajectories, budget))
    return sum(b.inputs.ids.numel() for b in packs), sum(b.ids.numel() for b in rows)


def sweep(rounds: int) -> None:
    """Print what a step costs at each ``micro_batch_tokens``."""
    algorithm = recipe("grpo", minibatch=EPISODES)
    functions = {str(b): contestants(algorithm, b)[0]["ours"] for b in BUDGETS}
    seconds = measure(functions, rounds)
    print(f"\n{'micro_batch_tokens':>20} {'packs':>8} {'ms':>8} {'tokens/s':>9}")
    tokens = sum(e.sampled_tokens for e in make_episodes())
    for budget in BUDGETS:
        packs = len(micro_batches(make_episodes(), budget))
        took = median(seconds[str(budget)])
        print(f"{budget:>20} {packs:>8} {took * 1e3:>8.1f} {tokens / took:>9.0f}")


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Time the learner's step against bare PyTorch.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no sweep")
    parser.add_argument("--budget", type=int, default=LearnerConfig().micro_batch_tokens)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 8 if arguments.quick else 40
    print(f"torch {torch.__version__}, 1 thread, micro_batch_tokens={arguments.budget}")
    for shared in (False, True):
        print("\nEight rollouts of each prompt:" if shared else "\nEvery prompt its own:")
        ours, rows = tokens_computed(arguments.budget, shared=shared)
        print(f"{rows} tokens in rows as they come, {ours} in packs ({ours / rows:.0%})")
        print(f"{'':>34} {'median ms':>10} {'ours / it':>10}")
        algorithm = recipe("grpo", minibatch=EPISODES)
        steps, passes = contestants(algorithm, arguments.budget, shared=shared)
        for kind, functions in (("step", steps), ("log-probs", passes)):
            seconds = measure(functions, rounds)
            for name, took in seconds.items():
                against = f"{ratio(seconds, name):.3f}" if name != "ours" else ""
                print(f"{kind + ', ' + name:>34} {median(took) * 1e3:>10.1f} {against:>10}")
            if kind == "step":
                reached = ratio(seconds, "by hand, packed")
        verdict = "reached" if reached <= TARGET else "missed"
        print(f"step, ours / by hand, packed: {reached:.3f} (target {TARGET}: {verdict})")
    if not arguments.quick:
        sweep(rounds // 2)


if __name__ == "__main__":
    main()
