"""How the learner's step grows: with tokens, vocabulary, ranks, and what an algorithm has in it.

    python benchmarks/growth.py [tokens] [vocabulary] [ranks] [parts]

All four where none is named. Steps of one comparison take turns, and a ratio is the median of the
rounds' own, so that whatever else the machine does meets all alike. One thread a process.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from attrs import frozen
from learner import (
    EPISODES,
    by_hand_of,
    logp_packed,
    make_episodes,
    make_learner,
    make_model,
    make_trajectories,
    measure,
    step_by_hand,
)
from torch import Tensor

from isentrope import Algorithm, LearnerConfig, Objective, TokenBatch, recipe
from isentrope.learner.experience import experience
from isentrope.learner.head import KNOWN
from isentrope.learner.learner import Learner
from isentrope.learner.metrics import learning_metrics, rollout_metrics
from isentrope.learner.packing import Trajectory, micro_batches
from isentrope.learner.policy import Policy
from isentrope.learner.ranks import Ranks, joined

BUDGET = LearnerConfig().micro_batch_tokens
COUNTS = (64, 128, 256, 512, 1024)
VOCABULARIES = (286, 2048, 16384, 65536)
RANKS = (1, 2, 4)
RECIPES = ("rloo", "grpo", "dapo", "gspo", "adapo", "grpo-bonus", "repo-r", "repo-d")


@frozen
class Bare(Objective):
    """As little as an objective can be: policy gradient, without ratio, clip or diagnostics."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return the loss per token."""
        return -batch.advantage * batch.logp


@frozen
class BareOfEntropy(Bare):
    """The same, where the head is to return entropies too."""

    needs = frozenset({"entropy"})


@frozen
class BareOfResponse(Bare):
    """The same, where the head is to return entropy responses too."""

    needs = frozenset({"entropy_response"})


def step_of(
    learner: Learner, trajectories: list[Trajectory], algorithm: Algorithm
) -> Callable[[], float]:
    """Return what takes a step on all of them."""
    count = len(trajectories)
    return lambda: learner.step(algorithm, trajectories, nominal_sequences=count, step=1).loss


def tokens(rounds: int) -> None:
    """Print the time of a step on more and more episodes."""
    learner = make_learner(make_model(), BUDGET)
    every = make_trajectories(learner, [e for i in range(4) for e in make_episodes(seed=i)])
    algorithm = recipe("grpo", minibatch=None)
    steps = {str(n): step_of(learner, every[:n], algorithm) for n in COUNTS}
    seconds = measure(steps, rounds)
    print(f"\n{'episodes':>10} {'sampled tokens':>15} {'ms':>8} {'us / token':>11}")
    for n in COUNTS:
        sampled, took = sum(map(len, every[:n])), median(seconds[str(n)])
        print(f"{n:>10} {sampled:>15} {took * 1e3:>8.1f} {took / sampled * 1e6:>11.1f}")


def vocabulary(rounds: int) -> None:
    """Print the time of a step over larger and larger vocabularies, beside a step by hand."""
    print(f"\n{'vocabulary':>10} {'ms':>8} {'ours / by hand, packed':>23}")
    for size in VOCABULARIES:
        model = make_model(size)
        learner = make_learner(model, BUDGET)
        trajectories = make_trajectories(learner, make_episodes()[: EPISODES // 4])
        packs = by_hand_of(trajectories, micro_batches([t.episode for t in trajectories], BUDGET))
        plain = copy.deepcopy(learner.policy.plain)
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
        seconds = measure(
            {
                "ours": step_of(learner, trajectories, recipe("grpo", minibatch=None)),
                "by hand": lambda p=plain, o=optimizer, b=packs: step_by_hand(p, o, b, logp_packed),
            },
            max(4, rounds * 286 // size),
        )
        against = median(a / b for a, b in zip(*seconds.values(), strict=True))
        print(f"{size:>10} {median(seconds['ours']) * 1e3:>8.1f} {against:>23.3f}")


def ranks(rounds: int) -> None:
    """Print the time of a step on more and more ranks, each a process of this machine."""
    print(f"\n{'ranks':>10} {'ms':>8} {'of one':>8}")
    one = _of_a_rank(Ranks(), rounds)
    print(f"{'unsharded':>10} {one:>8.1f} {1:>8.2f}")
    for size in RANKS:
        command = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        command += [__file__, "--as-rank", "--rounds", str(rounds)]
        found = subprocess.run(
            [sys.executable, "-m", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # or torchrun talks about it
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        took = float(json.loads(found.stdout.splitlines()[-1]))
        print(f"{size:>10} {took:>8.1f} {took / one:>8.2f}")


def _of_a_rank(ranks: Ranks, rounds: int) -> float:
    """Return the milliseconds of a step on four times as many episodes as elsewhere."""
    config = LearnerConfig(lr=1e-4, micro_batch_tokens=BUDGET)
    learner = Learner(Policy(make_model(), 1.0, lora=None), config, ranks)
    every = make_trajectories(learner, [e for i in range(4) for e in make_episodes(seed=i)])
    step = step_of(learner, every, recipe("grpo", minibatch=None))
    return median(measure({"it": step}, rounds)["it"]) * 1e3


def parts(rounds: int) -> None:
    """Print what recipes cost beside a bare objective, and what an iteration's metrics cost."""
    learner = make_learner(make_model(), BUDGET)
    episodes = make_episodes()
    trajectories = make_trajectories(learner, episodes, KNOWN)
    bare = {frozenset[str](): Bare(), **{b.needs: b for b in (BareOfEntropy(), BareOfResponse())}}
    print(f"\n{'recipe':>12} {'ms':>8} {'of a bare objective':>20}")
    grpo = recipe("grpo", minibatch=None)
    for name in RECIPES:
        algorithm = recipe(name, minibatch=None)
        plain = Algorithm(advantage=grpo.advantage, objective=bare[algorithm.needs])
        seconds = measure(
            {
                name: step_of(learner, trajectories, algorithm),
                "bare": step_of(learner, trajectories, plain),
            },
            rounds,
        )
        against = median(a / b for a, b in zip(*seconds.values(), strict=True))
        print(f"{name:>12} {median(seconds[name]) * 1e3:>8.1f} {against:>20.3f}")
    scores = learner.scores(episodes, frozenset())
    learnt = experience(episodes, scores, grpo.advantage, failed=0, empty=0, keep_zero_groups=True)
    report = learner.step(grpo, trajectories, nominal_sequences=EPISODES, step=0)

    def learn() -> None:
        learner.scores(episodes, frozenset())
        step_of(learner, trajectories, grpo)()

    def measured() -> dict[str, Any]:
        return rollout_metrics(episodes, episodes, scores) | learning_metrics(learnt, [report])

    seconds = measure({"learn": learn, "metrics": measured}, rounds)
    share = median(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"metrics of an iteration, of its log-probs and one step: {share:.3f}")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Time the learner's step as things grow.")
    every = {f.__name__: f for f in (tokens, vocabulary, ranks, parts)}
    parser.add_argument("what", nargs="*", metavar="|".join(every))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(every):
        parser.error(f"no such comparison: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    if arguments.as_rank:
        with joined(sharded=True) as ranks_:
            took = _of_a_rank(ranks_, arguments.rounds)
            if ranks_.first:
                print(json.dumps(took))
        return
    for name in arguments.what or every:
        every[name](arguments.rounds)


if __name__ == "__main__":
    main()
