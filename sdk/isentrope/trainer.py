"""One iteration of training, with no algorithm or environment known by name.

sample tasks -> G rollouts each -> recompute log-probs -> controllers move knobs -> advantages,
filter -> epochs x minibatches -> publish.

Every rank runs this. What decides anything is the same number on all of them; the first alone has
an engine and environments, and hands the episodes round.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from attrs import define, field

from isentrope.algorithms import Algorithm
from isentrope.components import make
from isentrope.config import EarlyStop, EvaluationConfig, TrainConfig
from isentrope.engines import WeightsRef
from isentrope.environments import Task
from isentrope.episodes import Episode, Status
from isentrope.errors import TrainingError
from isentrope.evaluation.result import summarize
from isentrope.evaluation.run import requests
from isentrope.learner import proof
from isentrope.learner.accounting import peak_flops
from isentrope.learner.checkpoints import Progress
from isentrope.learner.experience import Experience, experience, usable
from isentrope.learner.head import TokenScores
from isentrope.learner.learner import Learner, StepReport
from isentrope.learner.metrics import (
    Clock,
    learning_metrics,
    of_sampled,
    performance_metrics,
    rollout_metrics,
)
from isentrope.learner.outlines import on_first
from isentrope.learner.packing import concatenate
from isentrope.learner.policy import Policy
from isentrope.learner.probe import Probe
from isentrope.learner.ranks import Ranks
from isentrope.learner.rehearsal import placing, rehearse
from isentrope.learner.tokens import Columns, TokenLog
from isentrope.looping import LoopThread, Runner, torch_threads
from isentrope.models import LanguageModel
from isentrope.parts import Statistics
from isentrope.rollout.collector import Request, RolloutCollector
from isentrope.seeding import derive, seed_everything
from isentrope.specs import EnvRef

T = TypeVar("T")
Metrics = dict[str, Any]


@define
class Trainer:
    """Everything of a run that is in memory."""

    config: TrainConfig
    model: LanguageModel
    learner: Learner
    collector: RolloutCollector | None
    """Of the first rank."""
    context: int
    tasks: tuple[Task, ...]
    progress: Progress
    _ahead: dict[int, Future[tuple[list[Episode], Metrics]]] = field(factory=dict, init=False)
    """What is collected already, or being collected, by iteration; on the first rank."""
    _counted: Metrics = field(factory=dict, init=False)
    """What there was to count when the last collection ended; on the first rank."""

    @classmethod
    def build(cls, config: TrainConfig, ranks: Ranks | None = None) -> Trainer:
        """Load the model, and put learner, engine and environments round it."""
        ranks = ranks or Ranks()
        torch.manual_seed(derive(config.seed, "model"))
        model = on_first(lambda: config.model.build(config.env), ranks)
        context = config.rollout.context_within(model.context)
        device = torch.device(model.device)
        # On its way to a GPU, a policy is read through where the main thread has nothing to share.
        threads = config.threads if device.type == "cpu" else os.cpu_count() or 1
        made: list[RolloutCollector] = []
        use = config.engine_use(context)
        with torch_threads(threads), placing(config.learner):
            ranks.by_first(
                lambda: made.append(
                    RolloutCollector.of(
                        config.env, config.engine.build(model, use), model, config.rollout
                    )
                )
            )
            if not config.learner.shards(ranks.size):
                whole: Any = model.model  # transformers' own annotation of `to` is wrong
                whole.to(device)
            policy = ranks.first_then_others(
                lambda: Policy(
                    model.model,
                    config.rollout.temperature,
                    config.learner.lora,
                    config.learner.head,
                    device,
                )
            )
            policy.check_context(context)
            learner = Learner(policy, config.learner, ranks)
        tasks = _tasks(config.env, config.rollout.split)
        peak_flops(learner.device, config.learner.torch_dtype)  # measured once: not in an iteration
        state = config.algorithm.initial_state()
        state.initial_entropy = state.initial_exact_entropy = config.initial_entropy
        collector = made[0] if made else None
        return cls(config, model, learner, collector, context, tasks, Progress(state))

    @property
    def ranks(self) -> Ranks:
        """The processes of the run."""
        return self.learner.ranks

    def publish(self, runner: Runner) -> Metrics:
        """Hand the present weights to the engine, and have it prove that it has them.

        Returns how far its log-probs are from the learner's, where it is one to prove that.

        Raises `EngineError` where they are too far.
        """
        policy, version = self.learner.policy, self.progress.version
        if getattr(self.config.engine, "takes_adapters", False):
            weights = WeightsRef(version, adapter=policy.adapter())
        else:
            weights = WeightsRef(version, policy.weights(keep=self.ranks.first))
        self._by_collector(lambda collector: runner.run(collector.publish(weights)))
        if not getattr(self.config.engine, "proven", False):
            return {}
        prompt = proof.prompt(self.model, self.context)
        drawn = self._by_collector(
            lambda collector: runner.run(collector.sample_on_each(prompt, proof.SAMPLING))
        )
        answers = proof.episodes(prompt, drawn)
        with policy.at_temperature(proof.TEMPERATURE):
            scores = self.learner.scores(answers, frozenset())
            without: list[TokenScores] = []
            if self.config.learner.lora is not None:
                with policy.at_start():
                    without = self.learner.scores(answers, frozenset())
        found = proof.Proof.of(answers, scores, without)
        allowed = getattr(self.config.engine, "tolerance", None)
        found.check(version, allowed or proof.tolerance(self.config.learner.dtype))
        return {"proof_mean": max(found.means), "proof_max": max(found.maxima)}

    def rehearse(self) -> None:
        """Go through the largest micro-batch that there can be, without effect.

        On a CPU, whose memory is short only in a way that no process lives to report, and where the
        positions of a large model take long, only up to `rollout.context`, if that is set.

        Raises `TrainingError` where it does not fit into memory.
        """
        if self.learner.device.type == "cpu" and self.config.rollout.context is None:
            return
        rehearse(self.learner, self.context, self.config.algorithm.needs_of_experience)

    def evaluate(
        self, config: EvaluationConfig, runner: Runner
    ) -> tuple[Metrics, list[Episode], Metrics]:
        """Evaluate the present policy; the same tasks and seeds every time.

        Returns what it came to, its episodes, and what was counted while they were collected.
        """
        clock = Clock()
        tasks = [task.id for task in _tasks(self.config.env, config.split)[: config.tasks]]
        wanted = requests(tasks, config.k, derive(self.config.seed, "evaluation"))
        episodes, counts = self._by_collector(lambda _: runner.run(self._collect(wanted)))
        result = summarize(episodes, env=self.config.env.id, split=config.split, k=config.k)
        success = result.estimates["success"]
        clock.lap("evaluation")
        counted = {n: x for n, x in counts.items() if not n.startswith("performance/")}
        metrics = {
            "eval/reward": result.reward,
            "eval/success": result.success,
            "eval/success_low": success.low,
            "eval/success_high": success.high,
            **{f"eval/pass@{j}": chance for j, chance in result.pass_at.items()},
            "eval/failed": result.failed,
            "eval/truncated": result.truncated,
            **clock.seconds,
        }
        return metrics, episodes, counted

    def close(self, runner: Runner) -> None:
        """Give up what is being collected; close environments and engine."""
        for collection in self._ahead.values():
            collection.cancel()
        if self.collector is not None:
            runner.run(self.collector.close())

    def export(self) -> Callable[[Path], None]:
        """Gather the policy, and return what writes it to a folder, in transformers' own format.

        Adapters are merged in, and beside that in ``adapter/``, in peft's format.
        """
        policy = self.learner.policy
        weights, adapter = policy.weights(keep=self.ranks.first), policy.adapter()

        def write(folder: Path) -> None:
            self.model.save(folder, weights)
            if adapter is not None:
                adapter.save(folder / "adapter")

        return write

    def _by_collector(self, function: Callable[[RolloutCollector], T]) -> T:
        """Call `function` on the first rank, which has the collector; return its result on all."""

        def call() -> T:
            assert self.collector is not None  # the first rank's
            return function(self.collector)

        return self.ranks.by_first(call)

    async def _collect(
        self, wanted: Sequence[Request], early_stop: EarlyStop | None = None
    ) -> tuple[list[Episode], Metrics]:
        """Return episodes, and what it took to run them; on the first rank."""
        assert self.collector is not None
        episodes = await self.collector.collect(wanted, early_stop)
        before, self._counted = self._counted, self.collector.counts()
        return episodes, {n: x - before.get(n, 0) for n, x in self._counted.items()}

    def _experience(self, runner: Runner) -> tuple[list[Episode], Metrics]:
        """Return the iteration's episodes; have those of the next be collected from now on."""
        iteration, ahead = self.progress.iteration, self.config.rollout.staleness
        early_stop = self.config.rollout.early_stop
        if not isinstance(runner, LoopThread):
            wanted = self._requests(iteration)
            return self._by_collector(lambda _: runner.run(self._collect(wanted, early_stop)))
        last = min(iteration + ahead, self.config.iterations - 1)
        wanted_by = {i: self._requests(i) for i in range(iteration, last + 1)}

        def collected(_: RolloutCollector) -> tuple[list[Episode], Metrics]:
            for i, wanted in wanted_by.items():  # one after the other
                if i not in self._ahead:
                    self._ahead[i] = runner.start(self._collect(wanted, early_stop))
            return runner.result(self._ahead.pop(iteration))

        return self._by_collector(collected)

    def iterate(self, runner: Runner) -> tuple[Metrics, list[Episode], Columns | None]:
        """Run the next iteration; return what it came to, and its episodes.

        On the first rank, where there were episodes to learn from, also what is kept of tokens.
        """
        clock, progress, configured = Clock(), self.progress, self.config.algorithm
        iteration = progress.iteration
        seed_everything(derive(self.config.seed, "iteration", iteration))
        rate = self.learner.set_rate(iteration, self.config.iterations)
        episodes, collecting = self._experience(runner)
        clock.lap("rollout")
        self._by_collector(lambda collector: runner.run(collector.rest()))
        good = usable(episodes)
        _check_usable(episodes, good, self.config.rollout.max_failure_rate, self.context)
        scores = self.learner.scores(good, configured.needs_of_experience)
        asked = "reference_logp" in configured.needs
        references = self.learner.reference_logps(good) if asked else None
        clock.lap("recompute")
        statistics = self._statistics(good, scores)
        configured.control(statistics, progress.state)
        algorithm = configured.at(progress.state.knobs)
        statuses = Counter(e.status for e in episodes)
        cancelled = statuses[Status.CANCELLED]
        failed = len(episodes) - statuses[Status.OK] - cancelled
        learnt = experience(
            good,
            scores,
            algorithm.advantage,
            failed=failed,
            cancelled=cancelled,
            empty=statuses[Status.OK] - len(good),
            min_group=self.config.rollout.min_group,
            keep_zero_groups=algorithm.keeps_zero_groups,
            references=references,
        )
        probe = Probe.take(self.learner, algorithm, learnt.trajectories, self.config.learner.probe)
        clock.lap("probe")
        log = TokenLog.of(episodes, learnt.trajectories, good)
        reports = self._learn(algorithm, learnt, log)
        clock.lap("learn")
        probed = {} if probe is None else probe.metrics(self.learner)
        clock.lap("probe")
        tokens = self._tokens(
            log, episodes, dict(zip(map(id, good), scores, strict=True)), learnt, probe
        )
        clock.lap("record")
        performance = performance_metrics(
            self.learner, clock, episodes, reports, collecting["performance/collect_seconds"]
        )
        learnt_something = not all(report.skipped for report in reports)
        settling = self.learner.scale.value > 1 and bool(reports)  # float16 finds its scale
        sampled_for = progress.version
        self._by_collector(lambda collector: runner.run(collector.wake()))
        proved: Metrics = {}
        if learnt_something:
            progress.version += 1
            proved = self.publish(runner)
        clock.lap("publish")
        progress.iteration += 1
        progress.idle = 0 if learnt_something or settling else progress.idle + 1
        return (
            {
                "iteration": iteration,
                "reward": statistics.reward,
                "success": statistics.success,
                "entropy": statistics.entropy,
                "entropy_exact": statistics.exact_entropy,
                "entropy_target": configured.target_entropy(statistics, "sampled"),
                "entropy_exact_target": configured.target_entropy(statistics, "exact"),
                **progress.state.knobs,
                **rollout_metrics(episodes, good, scores, sampled_for),
                **collecting,
                **proved,
                **learning_metrics(learnt, reports),
                **probed,
                "exact_softmax": self.learner.policy.exact_softmax,
                "lr": rate,
                **performance,
                "loss_scale": self.learner.scale.value,
                **clock.seconds,
            },
            episodes,
            tokens,
        )

    def _requests(self, iteration: int) -> list[Request]:
        """G rollouts of each of the iteration's tasks; every epoch has an order of its own."""
        seed, per_iteration = self.config.seed, self.config.rollout.tasks
        slots = range(iteration * per_iteration, (iteration + 1) * per_iteration)
        orders = {
            epoch: np.random.default_rng(derive(seed, "tasks", epoch)).permutation(len(self.tasks))
            for epoch in {slot // len(self.tasks) for slot in slots}
        }
        return [
            Request(
                task=self.tasks[orders[slot // len(self.tasks)][slot % len(self.tasks)]].id,
                seed=derive(seed, "env", slot) % 2**31,
                rollout=rollout,
                sampling_seed=derive(seed, "sampling", slot, rollout),
            )
            for slot in slots
            for rollout in range(self.config.rollout.group)
        ]

    def _statistics(self, episodes: Sequence[Episode], scores: Sequence[TokenScores]) -> Statistics:
        """Measure the experience, before anything is filtered out of it."""
        measured = concatenate(scores)
        entropy = -float(measured.logp.double().mean())
        if self.config.rollout.staleness:  # of what older policies sampled, that is no entropy
            entropy = -float(of_sampled(episodes, "logp").astype(np.float64).mean())
        exact = None if measured.entropy is None else float(measured.entropy.double().mean())
        if not math.isfinite(entropy):
            raise TrainingError(
                f"Iteration {self.progress.iteration}: the policy's log-probs are not finite, so "
                "it has diverged. Lower learner.lr, and begin again."
            )
        state = self.progress.state
        if state.initial_entropy is None:
            state.initial_entropy = entropy
        if state.initial_exact_entropy is None:
            state.initial_exact_entropy = exact
        return Statistics(
            iteration=self.progress.iteration,
            entropy=entropy,
            initial_entropy=state.initial_entropy,
            exact_entropy=exact,
            initial_exact_entropy=state.initial_exact_entropy,
            reward=float(np.mean([e.reward for e in episodes])),
            success=float(np.mean([e.success for e in episodes])),
        )

    def _tokens(
        self,
        log: TokenLog,
        episodes: Sequence[Episode],
        known: dict[int, TokenScores],
        learnt: Experience,
        probe: Probe | None,
    ) -> Columns | None:
        """Return what is kept of tokens; known: scores by the identity of their episode."""
        seen = self.ranks.gather(log.seen)
        if not self.ranks.first:
            return None
        if probe is not None:  # which knows their entropy, too
            known |= {id(t.episode): t.old for t in probe.trajectories}
        return log.columns(episodes, known, learnt.trajectories, seen, self.model.tokenizer)

    def _learn(
        self, algorithm: Algorithm, experience: Experience, log: TokenLog
    ) -> list[StepReport]:
        trajectories = experience.trajectories
        collected = self.config.rollout.tasks * self.config.rollout.group
        size = min(algorithm.minibatch or collected, collected)
        reports: list[StepReport] = []
        for epoch in range(algorithm.epochs):
            rng = np.random.default_rng(
                derive(self.config.seed, "minibatch", self.progress.iteration, epoch)
            )
            order = rng.permutation(len(trajectories))
            for start in range(0, len(order), size):
                minibatch = [trajectories[i] for i in order[start : start + size]]
                reports.append(
                    self.learner.step(
                        algorithm,
                        minibatch,
                        nominal_sequences=size,
                        step=len(reports),
                        watch=log.see,
                    )
                )
        self.learner.release()  # they need not wait for the next rollouts
        return reports


def _tasks(env: EnvRef, split: str) -> tuple[Task, ...]:
    world = make(env.id, **env.config)
    try:
        return world.tasks[split]
    finally:
        world.close()


def _check_usable(
    episodes: Sequence[Episode], good: Sequence[Episode], max_failure_rate: float, context: int
) -> None:
    """Stop a run that collects nothing to learn from, with the reason."""
    failed = [e for e in episodes if e.status not in (Status.OK, Status.CANCELLED)]
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
