"""Collecting ahead of learning: what it needs, what is learnt from what, what it proves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch
from attrs import frozen

import isentrope
from isentrope import (
    AdvantageTransform,
    Completion,
    ConfigError,
    EngineError,
    EngineUse,
    LanguageModel,
    Sampling,
    TokenBatch,
    WeightsRef,
    component,
)
from isentrope.learner import proof
from isentrope.learner.head import TokenScores
from isentrope.looping import LoopThread
from isentrope.testing import check_engine
from tests.conftest import SMALL_MODEL

LORA = {"lora": {"r": 4, "alpha": 8}, "lr": 1e-2}


def ahead(tiny_run: dict[str, Any], staleness: int) -> dict[str, Any]:
    """Return the settings of a run that collects so far ahead."""
    rollout = {**tiny_run["rollout"], "staleness": staleness}
    return {**tiny_run, "algorithm": correcting(), "rollout": rollout}


def correcting(**options: Any) -> Any:
    transforms = [component("transform", "truncated-importance")]
    return isentrope.recipe("grpo", transforms=transforms, **options)


# What is refused


def test_what_older_policies_sampled_must_be_weighed(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="truncated-importance"):
        isentrope.train(**{**ahead(tiny_run, 1), "algorithm": "grpo"})


def test_a_transform_that_says_so_weighs_it(tiny_run: dict[str, Any]) -> None:
    @frozen
    class Own(AdvantageTransform):
        corrects_sampling: ClassVar[bool] = True

        def __call__(self, batch: TokenBatch) -> torch.Tensor:
            return batch.advantage

    algorithm = isentrope.recipe("grpo", transforms=[Own()])
    assert algorithm.corrects_sampling
    assert not isentrope.recipe("repo-r").corrects_sampling


def test_what_weighs_samples_is_the_last_transform() -> None:
    weighs, repo = component("transform", "truncated-importance"), component("transform", "repo-r")
    assert isentrope.recipe("grpo", transforms=[repo, weighs]).corrects_sampling
    with pytest.raises(ConfigError, match=r"must be the last .*what RepoR adds"):
        isentrope.recipe("grpo", transforms=[weighs, repo])


# Runs that collect ahead


def test_a_run_learns_from_the_policy_before_while_the_next_episodes_are_collected(
    tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from isentrope.learner.learner import Learner
    from isentrope.rollout.collector import RolloutCollector

    begun = [threading.Event() for _ in range(4)]
    count = iter(range(4))
    collect, step = RolloutCollector._collect, Learner.step

    async def collecting(self: Any, *args: Any) -> Any:
        begun[next(count)].set()
        return await collect(self, *args)

    def learning(self: Any, *args: Any, **options: Any) -> Any:
        iteration = int(self.optimizer.state[next(iter(self.optimizer.state))]["step"])
        if iteration < 3:  # the last has nothing to wait for
            assert begun[min(iteration + 1, 3)].wait(20), "nothing was collected meanwhile"
        return step(self, *args, **options)

    monkeypatch.setattr(RolloutCollector, "_collect", collecting)
    monkeypatch.setattr(Learner, "step", learning)
    algorithm = correcting(epochs=1, minibatch=None)
    run = isentrope.train(**{**ahead(tiny_run, 1), "algorithm": algorithm, "iterations": 4})
    assert [0, 1, 2, 3] == [m["iteration"] for m in run.metrics]
    assert 0 == run.metrics[0]["staleness_max"]
    assert any(m["staleness_mean"] > 0 for m in run.metrics[1:])
    assert all(m["staleness_max"] <= 1 for m in run.metrics)
    for metrics in run.metrics:
        if metrics["staleness_mean"] == 0:
            assert metrics["mismatch_max"] < 1e-3
        elif metrics["steps"]:
            assert metrics["truncated_importance/weight"] != 1.0


def test_the_tasks_of_an_iteration_are_the_same_whoever_collects_them(
    tiny_run: dict[str, Any],
) -> None:
    out = tiny_run.pop("out")
    now = isentrope.train(**{**tiny_run, "algorithm": correcting()}, out=out / "1")
    before = isentrope.train(**ahead(tiny_run, 2), out=out / "2")
    tasks = [
        [(e["iteration"], e["task"], e["seed"]) for e in run.episodes] for run in (now, before)
    ]
    assert tasks[0] == tasks[1]


def test_a_run_that_collects_ahead_evaluates_and_is_resumed(tiny_run: dict[str, Any]) -> None:
    settings = {
        **ahead(tiny_run, 1),
        "evaluation": {"every": 1, "tasks": 2, "k": 2},
    }
    run = isentrope.train(**settings)
    again = isentrope.train(resume=run, iterations=5)
    assert [0, 1, 2, 3, 4] == [m["iteration"] for m in again.metrics]
    assert all("eval/reward" in m for m in again.metrics)


def test_entropy_is_that_of_the_policies_that_sampled(
    tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner's own log-probs of an older policy's tokens would be a cross entropy."""
    from isentrope import trainer

    sampled = []

    def seen(self: Any, episodes: Any, scores: Any) -> Any:
        tokens = [x for e in episodes for s in e.segments for x in s.logp[s.sampled]]
        sampled.append(-sum(map(float, tokens)) / len(tokens))
        return statistics(self, episodes, scores)

    statistics = trainer.Trainer._statistics
    monkeypatch.setattr(trainer.Trainer, "_statistics", seen)
    run = isentrope.train(**ahead(tiny_run, 1))
    assert sampled == [pytest.approx(m["entropy"], rel=1e-6) for m in run.metrics]


# Engines that are sent adapters


@frozen
class Adapted:
    """Our engine, sent adapters: it merges them into the model that it was built with."""

    takes_adapters: ClassVar[bool] = True
    proven: ClassVar[bool] = True
    defect: str = "Merging"
    """A class of this file."""
    tolerance: float | None = None

    def build(self, model: LanguageModel, use: EngineUse) -> Any:
        assert use.rank is not None
        wrapper = globals()[self.defect]
        return wrapper(component("engine", "transformers").build(model, use), model)


class Merging:
    seeded = True

    def __init__(self, engine: Any, model: LanguageModel) -> None:
        self.engine = engine
        state = model.model.state_dict(keep_vars=True)
        kept: dict[int, torch.Tensor] = {}
        self.base = {k: kept.setdefault(id(t), t.detach().clone()) for k, t in state.items()}

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, conversation: object = None
    ) -> Completion:
        return await self.engine.generate(prompt, sampling)

    async def publish(self, weights: WeightsRef) -> None:
        assert weights.adapter is not None
        assert not weights.tensors
        merged = self.merged(weights.adapter)
        await self.engine.publish(WeightsRef(weights.version, merged))

    def merged(self, adapter: Any) -> dict[str, torch.Tensor]:
        scale = adapter.config["lora_alpha"] / adapter.config["r"]
        merged = dict(self.base)
        for name, low in adapter.tensors.items():
            layer, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
            if part != "A.weight":
                continue
            if f"{layer}.weight" not in merged:
                raise EngineError(f"There is no {layer}.")
            up = adapter.tensors[name.replace("lora_A", "lora_B")]
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale * (up @ low)
        return merged

    async def close(self) -> None:
        await self.engine.close()


class Forgetful(Merging):
    """Loads the adapter and applies it to nothing, as servers have done."""

    def merged(self, adapter: Any) -> dict[str, torch.Tensor]:
        return self.base


class HalfScaled(Merging):
    def merged(self, adapter: Any) -> dict[str, torch.Tensor]:
        half = {**adapter.config, "lora_alpha": adapter.config["lora_alpha"] / 2}
        return super().merged(attrs.evolve(adapter, config=half))


class PassesOver(Merging):
    """Ignores layers that it does not know, as servers do."""

    def merged(self, adapter: Any) -> dict[str, torch.Tensor]:
        known = {k: v for k, v in adapter.tensors.items() if "no.such" not in k}
        return super().merged(attrs.evolve(adapter, tensors=known))


class OutOfDate(Merging):
    """Unseeded, and a publication behind."""

    seeded = False
    last: Any = None

    def merged(self, adapter: Any) -> dict[str, torch.Tensor]:
        before, self.last = self.last, super().merged(adapter)
        return before or self.base


@pytest.fixture(scope="module")
def small() -> LanguageModel:
    made = component(
        "model", SMALL_MODEL["id"], **{k: v for k, v in SMALL_MODEL.items() if k != "id"}
    )
    return made.build(isentrope.EnvRef("arithmetic"))


@pytest.mark.parametrize(
    ("defect", "failing"),
    [
        ("Merging", set()),
        ("Forgetful", {"publish", "unknown-tensor"}),
        ("HalfScaled", {"publish"}),
        ("PassesOver", {"unknown-tensor"}),
        ("OutOfDate", {"publish"}),
    ],
)
def test_the_kit_checks_engines_that_are_sent_adapters(
    small: LanguageModel, defect: str, failing: set[str]
) -> None:
    report = check_engine(Adapted(defect), small)  # type: ignore[arg-type]
    assert failing == {finding.check for finding in report.failures}
    seeded = {"deterministic", "independent"}
    ran = {finding.check for finding in report.findings}
    assert (seeded if defect != "OutOfDate" else {"random"}) <= ran


def test_an_engine_that_is_sent_adapters_needs_some(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"learner\.lora = \{\}"):
        isentrope.train(**tiny_run, engine=Adapted())


def test_each_publication_is_proven_and_the_run_the_same(tiny_run: dict[str, Any]) -> None:
    out = tiny_run.pop("out")
    run = isentrope.train(**tiny_run, learner=LORA, engine=Adapted(), out=out / "1")
    plain = isentrope.train(**tiny_run, learner=LORA, out=out / "2")
    proven = [m for m in run.metrics if m["steps"]]
    assert proven
    assert all(0 <= m["proof_mean"] <= m["proof_max"] < 1e-4 for m in proven)
    assert "proof_mean" not in plain.metrics[0]
    for ours, theirs in zip(run.metrics, plain.metrics, strict=True):
        assert pytest.approx(theirs["entropy"], abs=1e-3) == ours["entropy"]


@pytest.mark.parametrize("defect", ["Forgetful", "HalfScaled", "OutOfDate"])
def test_a_server_that_samples_from_something_else_stops_the_run_with_the_numbers(
    tiny_run: dict[str, Any], defect: str
) -> None:
    with pytest.raises(
        EngineError,
        match=r"Server 1 of 1 does not sample from version 1 .* nats from the policy's",
    ):
        isentrope.train(**tiny_run, learner=LORA, engine=Adapted(defect))
    assert not tiny_run["out"].exists()  # nothing was recorded: the corrected command can be given


def test_the_tolerance_is_the_engines_to_say(tiny_run: dict[str, Any]) -> None:
    isentrope.train(**tiny_run, learner=LORA, engine=Adapted("HalfScaled", tolerance=50.0))


def test_an_adapter_that_is_applied_to_nothing_is_found_whatever_the_tolerance(
    tiny_run: dict[str, Any],
) -> None:
    """In 16 bits, what is within the rounding of every token may be all that was learnt."""
    with pytest.raises(EngineError, match="it was loaded, and applied to nothing"):
        isentrope.train(**tiny_run, learner=LORA, engine=Adapted("Forgetful", tolerance=50.0))


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("moved", [0.0, 1e-4, 0.01, 0.04, 0.2])
def test_a_server_with_the_policy_is_never_taken_for_one_without(
    noise: float, moved: float
) -> None:
    """And one without it is found where the policy has moved by more than twice the noise."""
    rng = np.random.default_rng(0)
    prompt = [1, 2]
    for _ in range(200):
        base = rng.normal(-2, 1, proof.TOKENS)
        policy = base + moved * rng.choice([-1, 1], proof.TOKENS)
        scores = [TokenScores(torch.tensor(x), None, None) for x in (policy, base)]
        for own, wrong in ((policy, False), (base, True)):
            logp = own + noise * rng.normal(size=proof.TOKENS)
            drawn = Completion([0] * proof.TOKENS, logp, "length", 1)
            found = proof.Proof.of(proof.episodes(prompt, [drawn]), scores[:1], scores[1:])
            if not wrong:
                found.check(1, tolerance=1.0)
            elif moved > 4 * noise:
                with pytest.raises(EngineError, match="applied to nothing"):
                    found.check(1, tolerance=1.0)


# The loop in a thread


def test_a_loop_in_a_thread_runs_and_is_left_to_work() -> None:
    async def double(x: int) -> int:
        await asyncio.sleep(0.01)
        return 2 * x

    with LoopThread() as loop:
        started = [loop.start(double(i)) for i in range(3)]
        assert 20 == loop.run(double(10))
        assert [0, 2, 4] == [loop.result(one) for one in started]


def test_a_loop_in_a_thread_raises_what_was_raised_and_cancels_what_is_left() -> None:
    ended = []

    async def fail() -> None:
        raise KeyError("mine")

    async def wait() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    with LoopThread() as loop:
        with pytest.raises(KeyError, match="mine"):
            loop.run(fail())
        waiting = loop.start(wait())
    assert [True] == ended
    assert waiting.cancelled()
