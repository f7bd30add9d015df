"""The loop: one iteration after another, with no algorithm or environment known by name.

sample tasks -> G rollouts each -> recompute log-probs -> controllers move knobs -> advantages,
filter -> epochs x minibatches -> publish -> record.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field

from isentrope.algorithms import Algorithm, AlgorithmState
from isentrope.components import make
from isentrope.config import TrainConfig, read_config, to_toml
from isentrope.engines import Engine, WeightsRef
from isentrope.environments import Task
from isentrope.episodes import Episode, Status
from isentrope.errors import ConfigError, TrainingError
from isentrope.models import LanguageModel
from isentrope.parts import Statistics
from isentrope.rollout.chat import ChatTemplate
from isentrope.rollout.collector import Request, RolloutCollector
from isentrope.runs import Run
from isentrope.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor

    from isentrope.learner.experience import Experience
    from isentrope.learner.learner import Learner, StepReport

Metrics = dict[str, Any]
Listener = Callable[[Mapping[str, Any]], None]


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    on_iteration: Listener | None = None,
    **overrides: Any,
) -> Run:
    """Train a policy; return its run folder.

    config: a TOML file, a mapping, or a `TrainConfig`. overrides: its keys, with tables merged in:
    ``train(env="arithmetic", algorithm=recipe("repo-r"), rollout={"tasks": 16}, iterations=50)``.
    on_iteration: called with each iteration's metrics, as they are written.

    Raises `ConfigError` before anything is loaded where the composition cannot work, and
    `TrainingError` where the run cannot go on; what was written stays.
    """
    resolved = read_config(config, overrides)
    _check_one_rank()
    run = Run.create(resolved, to_toml(resolved))
    with _threads(resolved.threads), asyncio.Runner() as runner:
        trainer = Trainer.build(resolved)
        try:
            for metrics, episodes in trainer.iterations(runner):
                run.record(metrics, episodes)
                if on_iteration is not None:
                    on_iteration(metrics)
        finally:
            trainer.collector.close()
            runner.run(trainer.engine.close())
    trainer.save(run.policy)
    return run


@define
class Trainer:
    """Everything of a run that is in memory."""

    config: TrainConfig
    model: LanguageModel
    learner: Learner
    engine: Engine
    collector: RolloutCollector
    tasks: tuple[Task, ...]
    state: AlgorithmState
    version: int = field(default=0, init=False)
    """Publications so far."""

    @classmethod
    def build(cls, config: TrainConfig) -> Trainer:
        """Load the model, and put learner, engine and environments round it."""
        import torch

        from isentrope.learner.learner import Learner
        from isentrope.learner.policy import Policy

        torch.manual_seed(derive(config.seed, "model"))
        model = config.model.build(config.env)
        engine = config.engine.build(model)
        policy = Policy(model.model, config.rollout.temperature, config.learner.lora)
        collector = RolloutCollector(
            env=config.env,
            engine=engine,
            template=ChatTemplate(model.tokenizer, model.stop_ids),
            config=config.rollout,
            sampling=config.rollout.sampling(model.stop_ids),
            context=_context(config.rollout.context, model.context),
        )
        env = make(config.env.id, **config.env.config)
        tasks = env.tasks[config.rollout.split]
        env.close()
        learner = Learner(policy, config.learner)
        return cls(
            config, model, learner, engine, collector, tasks, config.algorithm.initial_state()
        )

    def iterations(self, runner: asyncio.Runner) -> Iterator[tuple[Metrics, list[Episode]]]:
        """Run iteration after iteration; ends early, saying so, when there is nothing to learn."""
        idle = 0
        for iteration in range(self.config.iterations):
            metrics, episodes = self._iterate(iteration, runner)
            idle = 0 if metrics["steps"] else idle + 1
            stop = idle >= self.config.stop_after_idle and iteration + 1 < self.config.iterations
            metrics["stopped"] = (
                f"Every group's rewards were equal for {idle} iterations in a row, so there was "
                "nothing to learn: the task is too easy or too hard for this policy."
                if stop
                else None
            )
            yield metrics, episodes
            if stop:
                return

    def save(self, folder: Path) -> None:
        """Write the policy, adapters merged in, in transformers' own format."""
        self.model.save(folder, self.learner.policy.weights())

    def _iterate(self, iteration: int, runner: asyncio.Runner) -> tuple[Metrics, list[Episode]]:
        from isentrope.learner.experience import experience, usable
        from isentrope.learner.metrics import Clock, learning_metrics, rollout_metrics

        clock = Clock()
        requests = self._requests(iteration)
        episodes = runner.run(self.collector.collect(requests))
        clock.lap("rollout")
        good = usable(episodes)
        _check_usable(episodes, good, self.config.rollout.max_failure_rate, self.collector.context)
        old_logp = self.learner.log_probs(good)
        clock.lap("recompute")
        statistics = self._statistics(iteration, good, old_logp)
        self.config.algorithm.control(statistics, self.state)
        algorithm = self.config.algorithm.at(self.state.knobs)
        failed = sum(e.status is not Status.OK for e in episodes)
        learnt = experience(
            good,
            old_logp,
            algorithm.advantage,
            failed=failed,
            empty=len(episodes) - failed - len(good),
            keep_zero_groups=algorithm.keeps_zero_groups,
        )
        reports = self._learn(iteration, algorithm, learnt)
        clock.lap("learn")
        if reports:
            self.version += 1
            runner.run(self.engine.publish(WeightsRef(self.version, self.learner.policy.weights())))
        clock.lap("publish")
        return {
            "iteration": iteration,
            "reward": statistics.reward,
            "success": statistics.success,
            "entropy": statistics.entropy,
            "entropy_target": algorithm.target_entropy(statistics),
            **self.state.knobs,
            **rollout_metrics(episodes, good, old_logp),
            **learning_metrics(learnt, reports),
            **clock.seconds,
        }, episodes

    def _requests(self, iteration: int) -> list[Request]:
        """G rollouts of each of the iteration's tasks; every epoch has an order of its own."""
        seed, per_iteration = self.config.seed, self.config.rollout.tasks
        requests = []
        for slot in range(iteration * per_iteration, (iteration + 1) * per_iteration):
            epoch, place = divmod(slot, len(self.tasks))
            order = np.random.default_rng(derive(seed, "tasks", epoch)).permutation(len(self.tasks))
            requests += [
                Request(
                    task=self.tasks[order[place]].id,
                    seed=derive(seed, "env", slot) % 2**31,
                    rollout=rollout,
                    sampling_seed=derive(seed, "sampling", slot, rollout),
                )
                for rollout in range(self.config.rollout.group)
            ]
        return requests

    def _statistics(
        self, iteration: int, episodes: Sequence[Episode], logp: Sequence[Tensor]
    ) -> Statistics:
        """Measure the experience, before anything is filtered out of it."""
        tokens = sum(x.numel() for x in logp)
        entropy = -sum(float(x.double().sum()) for x in logp) / tokens
        if self.state.initial_entropy is None:
            self.state.initial_entropy = entropy
        return Statistics(
            iteration=iteration,
            entropy=entropy,
            initial_entropy=self.state.initial_entropy,
            reward=float(np.mean([e.reward for e in episodes])),
            success=float(np.mean([e.success for e in episodes])),
        )

    def _learn(
        self, iteration: int, algorithm: Algorithm, experience: Experience
    ) -> list[StepReport]:
        trajectories = experience.trajectories
        collected = self.config.rollout.tasks * self.config.rollout.group
        size = min(algorithm.minibatch or collected, collected)
        reports: list[StepReport] = []
        for epoch in range(algorithm.epochs):
            rng = np.random.default_rng(derive(self.config.seed, "minibatch", iteration, epoch))
            order = rng.permutation(len(trajectories))
            for start in range(0, len(order), size):
                minibatch = [trajectories[i] for i in order[start : start + size]]
                reports.append(
                    self.learner.step(
                        algorithm, minibatch, nominal_sequences=size, step=len(reports)
                    )
                )
        return reports


def _check_one_rank() -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise ConfigError(
            f"Started on {ranks} ranks, but this version trains on one: start a single process."
        )


def _context(configured: int | None, positions: int) -> int:
    if configured is not None and configured > positions:
        raise ConfigError(
            f"rollout.context ({configured} tokens) is more than the model's positions "
            f"({positions})."
        )
    return configured or positions


def _check_usable(
    episodes: Sequence[Episode], good: Sequence[Episode], max_failure_rate: float, context: int
) -> None:
    """Stop a run that collects nothing to learn from, with the reason."""
    failed = [e for e in episodes if e.status is not Status.OK]
    if len(failed) > max_failure_rate * len(episodes) or (failed and not good):
        error = (failed[0].error or "").strip()
        raise TrainingError(
            f"{len(failed)} of {len(episodes)} episodes failed (rollout.max_failure_rate is "
            f"{max_failure_rate:g}). The first, task {failed[0].task!r}, {failed[0].status}:\n"
            f"{error}"
        )
    if not good:
        raise TrainingError(
            f"No prompt left room for an answer: the context is {context} tokens, and task "
            f"{episodes[0].task!r} fills it with its prompt alone. Raise rollout.context, or "
            "choose a model with more positions."
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's intra-op threads for a run, and set them back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
