"""Evaluation: how often a policy succeeds, with k tries."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

from isentrope.components import component, make
from isentrope.config import RolloutConfig, read_toml
from isentrope.episodes import Episode, Status
from isentrope.errors import ConfigError
from isentrope.looping import off_loop
from isentrope.models import LanguageModel, ModelConfig
from isentrope.rollout.collector import Request, RolloutCollector
from isentrope.runs import Run, is_run
from isentrope.seeding import derive
from isentrope.specs import EnvRef
from isentrope.structuring import edit, structure


@frozen
class Evaluation:
    """What k rollouts of every task of a split came to. Failures are apart from wrong answers."""

    env: str
    split: str
    k: int
    tasks: int
    """Tasks with at least one episode that did not fail."""
    reward: float
    """Mean return."""
    success: float
    """avg@k: mean share of successes, each task weighing the same."""
    pass_at: dict[int, float]
    """pass@j for j = 1 .. k, unbiased: the chance that one of j rollouts succeeds."""
    failed: int
    """Episodes whose environment or engine failed."""
    truncated: int
    """Episodes that a limit ended."""
    tokens_per_episode: float
    episodes: tuple[Episode, ...] = field(repr=False)


def evaluate(
    policy: Run | ModelConfig | str | Path,
    env: EnvRef | str | dict[str, Any] | None = None,
    *,
    split: str = "test",
    k: int = 1,
    tasks: int | None = None,
    rollout: RolloutConfig | dict[str, Any] | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Evaluation:
    """Roll a policy out k times on every task of a split.

    policy: a run or its folder, a `ModelConfig`, or the id of one. env: None for the run's own.
    tasks: only the split's first so many. rollout: limits and sampling that differ from the run's.

    Raises `ConfigError` for a wrong name or number. Failed episodes are counted in the result.
    """
    import torch

    for name, number in (("k", k), ("tasks", 1 if tasks is None else tasks), ("threads", threads)):
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name} must be a whole number, at least 1; got {number!r}.")
    run = _as_run(policy)
    model = structure(_model_of(policy, run), ModelConfig)
    if env is None and run is None:
        raise ConfigError("env is missing: name the environment to evaluate on.")
    # Only what evaluation needs: the algorithm's classes may not be importable here.
    trained = read_toml(run.path / "config.toml") if run is not None else {}
    ref = structure(trained["env"] if env is None else env, EnvRef)
    limits = structure(trained.get("rollout", {}), RolloutConfig)
    if isinstance(rollout, RolloutConfig):
        limits = rollout
    elif rollout is not None:
        limits = edit(limits, rollout)
    world = make(ref.id, **ref.config)
    chosen = [t.id for t in world.tasks[split][:tasks]]
    world.close()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        built = model.build(ref)
        episodes = off_loop(lambda: asyncio.run(_roll_out(built, ref, limits, chosen, k, seed)))
    finally:
        torch.set_num_threads(before)
    return summarize(episodes, env=ref.id, split=split, k=k)


def summarize(episodes: Sequence[Episode], *, env: str, split: str, k: int) -> Evaluation:
    """Add up episodes, k of each task.

    pass@j is estimated as Chen et al. (2021) do: ``1 - C(n - c, j) / C(n, j)`` with c successes in
    n rollouts, averaged over the tasks that have at least j rollouts which did not fail.
    """
    good = [e for e in episodes if e.status is Status.OK]
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for episode in good:
        outcomes[episode.task].append(episode.success)
    pass_at = {}
    for j in range(1, k + 1):
        chances = [
            1 - comb(len(o) - sum(o), j) / comb(len(o), j) for o in outcomes.values() if len(o) >= j
        ]
        pass_at[j] = _mean(chances)
    return Evaluation(
        env=env,
        split=split,
        k=k,
        tasks=len(outcomes),
        reward=_mean([e.reward for e in good]),
        success=_mean([_mean(o) for o in outcomes.values()]),
        pass_at=pass_at,
        failed=len(episodes) - len(good),
        truncated=sum(e.truncated for e in good),
        tokens_per_episode=_mean([e.sampled_tokens for e in good]),
        episodes=tuple(episodes),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _as_run(policy: object) -> Run | None:
    if isinstance(policy, Run):
        return policy
    if isinstance(policy, (str, Path)) and is_run(Path(policy)):
        return Run(Path(policy))
    return None


def _model_of(policy: object, run: Run | None) -> object:
    """Return what names the policy's model: a component, its id, or a table."""
    if run is not None:
        if not run.policy.is_dir():
            raise ConfigError(f"{run.path} has no policy yet: the run has not come to its end.")
        return {"id": "pretrained", "path": str(run.policy)}
    if not isinstance(policy, (str, Path)):
        return policy
    if (Path(policy) / "config.json").is_file():
        return {"id": "pretrained", "path": str(policy)}
    if isinstance(policy, Path) or "/" in policy:
        raise ConfigError(f"{policy} is neither a run folder nor the folder of a model.")
    return policy


def requests(tasks: Sequence[str], k: int, seed: int) -> list[Request]:
    """Return k rollouts of each task, the same for every policy."""
    return [
        Request(
            task=task,
            seed=derive(seed, "eval-env", task) % 2**31,
            rollout=rollout,
            sampling_seed=derive(seed, "eval", task, rollout),
        )
        for task in tasks
        for rollout in range(k)
    ]


async def _roll_out(
    model: LanguageModel,
    env: EnvRef,
    limits: RolloutConfig,
    tasks: Sequence[str],
    k: int,
    seed: int,
) -> list[Episode]:
    engine = component("engine", "transformers").build(model)
    collector = RolloutCollector.of(env, engine, model, limits)
    try:
        return await collector.collect(requests(tasks, k, seed))
    finally:
        await collector.close()
