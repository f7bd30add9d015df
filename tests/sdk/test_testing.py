"""The conformance kit, graded: every planted defect is found by the check that should find it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import attrs
import gymnasium
import numpy as np
import pytest
import torch
from attrs import field, frozen

import isentrope
from isentrope import (
    AdvantageEstimator,
    AdvantageTransform,
    Algorithm,
    Completion,
    ConfigError,
    Controller,
    EngineError,
    EngineUse,
    EnvSpec,
    Episode,
    Knob,
    LanguageModel,
    Objective,
    Sampling,
    Statistics,
    Task,
    TaskSet,
    TextEnv,
    TokenBatch,
    UnknownNameError,
    WeightsRef,
    component,
    knob,
    recipe,
)
from isentrope.environments import Guard
from isentrope.plugins import registry
from isentrope.testing import (
    Finding,
    Report,
    check_controller,
    check_engine,
    check_env,
    check_objective,
)
from isentrope_envs.boxes import Boxes

Tensor = torch.Tensor


def failed(report: Report) -> set[str]:
    return {finding.check for finding in report.failures}


def message(report: Report, check: str) -> str:
    return next(f.message for f in report.findings if f.check == check)


# ---------------------------------------------------------------- reports

GOOD, BAD = Finding("tasks", ok=True), Finding("close", ok=False, message="raised\nOSError: no")


def test_a_report_knows_its_failures() -> None:
    report = Report("Environment 'x'", (GOOD, BAD))
    assert not report.ok
    assert (BAD,) == report.failures
    assert Report("Environment 'x'", (GOOD,)).ok


def test_a_report_raises_one_line_for_each_failure() -> None:
    report = Report("Environment 'x'", (BAD, GOOD, Finding("tasks", ok=False, message="none")))
    with pytest.raises(AssertionError) as caught:
        report.raise_for_failures()
    assert (
        "Environment 'x' breaks its contract.\n  close: raised OSError: no\n  tasks: none"
    ) == str(caught.value)


def test_a_report_without_failures_raises_nothing() -> None:
    Report("Environment 'x'", (GOOD,)).raise_for_failures()


def test_a_report_reads_as_a_list() -> None:
    text = str(Report("Environment 'x'", (GOOD, Finding("close", ok=False, message="raised"))))
    assert "Environment 'x': 1 of 2 checks passed\n  ok   tasks\n  FAIL close: raised" == text


def test_what_was_not_run_is_not_counted_as_passed() -> None:
    skipped = Finding("answers", ok=True, message="it needs Linux", ran=False)
    report = Report("Environment 'x'", (GOOD, skipped))
    assert report.ok
    assert "Environment 'x': 1 of 1 checks passed, 1 not run" == report.summary
    assert "skip answers: it needs Linux" in str(report)


def test_what_an_error_says_is_not_cut() -> None:
    class Wordy(Parrot):
        def __init__(self) -> None:
            raise ValueError("no " * 200 + "luck")

    assert message(check_env(Wordy), "constructed").endswith("no luck")


def test_importing_the_kit_loads_no_torch() -> None:
    code = "import sys, isentrope.testing; sys.exit('torch' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


# ---------------------------------------------------------------- environments


class Parrot(TextEnv):
    """A right environment: repeat a word and a number, within three turns."""

    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, words: int = 12) -> None:
        ids = [f"word{i}" for i in range(words)]
        self.tasks = TaskSet({"train": map(Task, ids[2:]), "test": map(Task, ids[:2])})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        self.phrase = f"{self.task.id} {self.draw()}"
        self.left = 3
        return f"Say {self.phrase}", info

    def draw(self) -> int:
        return int(self.np_random.integers(100, 1000))

    def right(self, action: str) -> bool:
        return action == self.phrase

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        right = self.right(action)
        end = right or self.left == 0
        return f"{self.left} left", float(right), end, False, {"success": right}

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        return "wrong" if rng.random() < noise else self.phrase


class Unseeded(Parrot):
    def draw(self) -> int:
        return int(np.random.default_rng().integers(1000))


class SeedsTheProcess(Parrot):
    def draw(self) -> int:
        random.seed(int(self.np_random.integers(100)))
        return random.randrange(1000)


class DrawsFromNumpy(Parrot):
    def step(self, action: str) -> Any:
        np.random.rand()
        return super().step(action)


class DrawsFromTorch(Parrot):
    def step(self, action: str) -> Any:
        torch.rand(1)
        return super().step(action)


class SharesState(Parrot):
    """Keeps the episode in its class."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("phrase", "left"):
            setattr(type(self), name, value)
        else:
            super().__setattr__(name, value)


class KeepsState(Parrot):
    """Goes on counting from the last episode."""

    def reset(self, **arguments: Any) -> Any:
        left = getattr(self, "left", 0)
        answer = super().reset(**arguments)
        self.left = left or 3
        return answer


class RewardsNaN(Parrot):
    def step(self, action: str) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


class ReadsHugeNumbers(Parrot):
    def right(self, action: str) -> bool:
        return super().right(action) or (action.isdigit() and int(action) == -1)


class TakesNothingForAnAnswer(Parrot):
    def right(self, action: str) -> bool:
        return action in self.phrase


class SolvesWrongly(Parrot):
    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        return self.phrase if self.task.id != "word7" else "word 7"


class SolvesWithoutSuccess(Parrot):
    def step(self, action: str) -> Any:
        return (*super().step(action)[:4], {})


class Punishes(Parrot):
    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward - 0.1 * (reward == 0), *rest


class HasNoRange(Parrot):
    reward_range = (-float("inf"), 1.0)


class IgnoresOptions(Parrot):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)


class TakesAnyTask(Parrot):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        try:
            return super().reset(seed=seed, options=options)
        except LookupError:
            return super().reset(seed=seed)


class KeepsTheTaskToItself(Parrot):
    def reset(self, **arguments: Any) -> Any:
        return super().reset(**arguments)[0], {}


class NamesTasksAnew(Parrot):
    def __init__(self) -> None:
        self.tasks = TaskSet({"train": [Task(uuid.uuid4().hex) for _ in range(9)]})


class OrdersTasksAnew(Parrot):
    def __init__(self) -> None:
        ids = np.random.default_rng().permutation(50)
        self.tasks = TaskSet({"train": [Task(f"word{i}") for i in ids]})


class Truncates(Parrot):
    def step(self, action: str) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, True, info


class ClosesOnce(Parrot):
    def close(self) -> None:
        self.open = getattr(self, "open", 1) - 1
        if self.open < 0:
            raise RuntimeError("closed already")


class HasNoTasks(Parrot):
    def __init__(self) -> None:
        pass


class HasAnEmptySplit(Parrot):
    def __init__(self) -> None:
        self.tasks = TaskSet({"train": [Task("word1")], "test": []})


class NumbersItsTasks(Parrot):
    def __init__(self) -> None:
        self.tasks = TaskSet({"train": [Task(1), Task(2)]})  # type: ignore[arg-type]  # the defect


class ClaimsShortObservations(Parrot):
    observation_space = gymnasium.spaces.Text(3)


class NeverEnds(Parrot):
    def step(self, action: str) -> Any:
        return "go on", 0.0, False, False, {}


class AddsUpWhatIsSubmitted(Boxes):
    def grade(self, answer: Any) -> float:
        return super().grade(answer + 0)


class NoTextEnv(gymnasium.Env[str, str]):
    pass


class Lax(Guard):
    """Lets a step after the end pass, and before reset."""

    def step(self, action: str) -> Any:
        return self.inner.step(action)


ENVIRONMENTS: list[tuple[Callable[[], Any], set[str]]] = [
    (Unseeded, {"deterministic", "reusable", "isolated"}),
    (SeedsTheProcess, {"global-rng"}),
    (DrawsFromNumpy, {"global-rng"}),
    (DrawsFromTorch, {"global-rng"}),
    (SharesState, {"isolated"}),
    (KeepsState, {"gymnasium", "reusable"}),
    (RewardsNaN, {"contract"}),
    (ReadsHugeNumbers, {"hostile-actions", "reward-range"}),
    (TakesNothingForAnAnswer, {"hostile-actions"}),
    (SolvesWrongly, {"demonstration"}),
    (SolvesWithoutSuccess, {"demonstration"}),
    (Punishes, {"reward-range"}),
    (HasNoRange, {"reward-range"}),
    (IgnoresOptions, {"task-choice"}),
    (TakesAnyTask, {"task-choice"}),
    (KeepsTheTaskToItself, {"task-choice"}),
    (NamesTasksAnew, {"stable-tasks"}),
    (OrdersTasksAnew, {"stable-tasks"}),
    (Truncates, {"gymnasium", "truncation"}),
    (ClosesOnce, {"close"}),
    (HasNoTasks, {"tasks"}),
    (HasAnEmptySplit, {"tasks"}),
    (NumbersItsTasks, {"tasks"}),
    (ClaimsShortObservations, {"gymnasium"}),
    (NeverEnds, {"demonstration"}),
    (AddsUpWhatIsSubmitted, {"hostile-actions", "reward-range"}),
    (NoTextEnv, {"constructed"}),
    (lambda: Lax(Parrot(), "lax"), {"order-of-calls"}),
]


@pytest.mark.parametrize(("broken", "expected"), ENVIRONMENTS)
def test_a_broken_environment_is_found_out(broken: Any, expected: set[str]) -> None:
    report = check_env(broken, deadline=None)
    assert expected == failed(report), str(report)


HERE = [
    row.id
    for row in registry().rows
    if isinstance(row.spec, EnvSpec)
    and row.spec.python is None
    and row.id not in ("aime", "appworld-served")
]
"""Of this interpreter; what needs another, data or servers is tried by its own tests."""


@pytest.mark.parametrize("env", HERE)
def test_our_environments_pass(env: str) -> None:
    check_env(env).raise_for_failures()


def test_an_environment_is_given_by_id_class_or_instance() -> None:
    reports = [check_env(e) for e in (Parrot, Parrot(), Guard(Parrot(), "guarded"))]
    assert ["Environment 'Parrot'"] * 3 == [r.subject for r in reports]
    assert all(report.ok for report in reports), "\n".join(map(str, reports))
    assert 1 == len({tuple(f.check for f in report.findings) for report in reports})


def test_config_goes_to_the_constructor() -> None:
    assert check_env("arithmetic", grading="derivation").ok
    assert check_env(Parrot, words=4).ok
    assert {"constructed"} == failed(check_env(Parrot, wrods=4))
    assert "'grading'" in message(check_env("arithmetic", grding="answer"), "constructed")
    with pytest.raises(TypeError, match="configured already"):
        check_env(Parrot(), words=4)


def test_an_instance_that_was_played_is_checked_all_the_same() -> None:
    env = KeepsState()
    env.reset(seed=0)
    assert {"gymnasium", "reusable"} == failed(check_env(env))


def test_a_finding_is_told_when_its_check_ends() -> None:
    told: list[Finding] = []
    calls = []

    class Counts(Parrot):
        def __init__(self) -> None:
            super().__init__()
            calls.append(len(told))

    report = check_env(Counts, on_finding=told.append)
    assert list(report.findings) == told
    assert 10 < len(set(calls)), "while others go on"


def test_what_cannot_be_tried_in_another_process_says_why() -> None:
    report = check_env(Parrot())
    for check in ("answers", "across-processes"):
        (finding,) = (f for f in report.findings if f.check == check)
        assert (False, "another process could not import it") == (finding.ran, finding.message)
    assert "no deadline was given" == message(check_env(Parrot, deadline=None), "answers")


def test_what_is_no_environment_at_all_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a factory was expected, not 3"):
        check_env(3)  # type: ignore[arg-type]  # the mistake


def test_an_unknown_id_is_a_finding() -> None:
    report = check_env("arithmetics")
    assert "Did you mean 'arithmetic'?" in message(report, "constructed")


def test_an_environment_without_a_solver_is_told_so() -> None:
    class Silent(Parrot):
        def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> Any:
            return None

    report = check_env(Silent)
    assert report.ok, str(report)
    assert "no scripted solver" in message(report, "demonstration")


def test_messages_say_where_and_what() -> None:
    def said(env: Any, check: str) -> str:
        return message(check_env(env, deadline=None), check)

    assert "task 'word7' with seed" in said(SolvesWrongly, "demonstration")
    assert "random;" in said(SeedsTheProcess, "global-rng")
    assert "torch;" in said(DrawsFromTorch, "global-rng")
    hostile = said(ReadsHugeNumbers, "hostile-actions")
    assert hostile.startswith("100 kB of a digit as the action raised ValueError")
    assert said(TakesNothingForAnAnswer, "hostile-actions").startswith("nothing as")
    assert "reset was" in said(Unseeded, "deterministic")


# ---------------------------------------------------------------- objectives


@frozen(kw_only=True)
class Surrogate(Objective):
    """A right objective, for the broken ones to break."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        return -batch.advantage * batch.ratio


class Averages(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        return super().__call__(batch).mean()


class Widens(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        return super().__call__(batch).double()


class CentersTheBatch(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        kept = batch.advantage[batch.mask]
        return -(batch.advantage - kept.mean()) * batch.ratio


class ForgetsTheMask(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        whole = attrs.evolve(batch, mask=torch.ones_like(batch.mask))
        return -batch.advantage * whole.sequence_mean(batch.ratio)


class DetachesAll(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        return -batch.advantage * batch.ratio.detach()


class WritesItsOwnBackward(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        exp: Callable[..., Tensor] = WrongExp.apply
        return -batch.advantage * exp(batch.logp - batch.old_logp)


class WrongExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        answer: Tensor = grad * (1 + x)
        return answer


class TakesLogOfZero(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        return batch.advantage * (1 - batch.logp.exp()).log()


class SpoilsTheBatch(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        batch.advantage.mul_(2)
        return super().__call__(batch)


class RollsDice(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        return super().__call__(batch) * (1 + 0.1 * torch.rand(()))


class LogsOneNumber(Surrogate):
    def diagnostics(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        return {"ratio": batch.ratio.mean()}


@frozen(kw_only=True)
class Divides(Surrogate):
    by: float = knob(1.0, low=0.0, high=1.0)

    def __call__(self, batch: TokenBatch) -> Tensor:
        return super().__call__(batch) / self.by


class Raises(Surrogate):
    def __call__(self, batch: TokenBatch) -> Tensor:
        raise ZeroDivisionError("oh")


OBJECTIVES: list[tuple[type[Surrogate], set[str]]] = [
    (Averages, {"shape"}),
    (Widens, {"shape"}),
    (CentersTheBatch, {"splitting"}),
    (ForgetsTheMask, {"mask"}),
    (DetachesAll, {"gradient"}),
    (WritesItsOwnBackward, {"gradient"}),
    (TakesLogOfZero, {"extremes"}),
    (SpoilsTheBatch, {"pure"}),
    (RollsDice, {"pure"}),
    (LogsOneNumber, {"diagnostics"}),
    (Divides, {"finite"}),
    (Raises, {"shape", "gradient"}),
]


@pytest.mark.parametrize(("broken", "expected"), OBJECTIVES)
def test_a_broken_objective_is_found_out(broken: Any, expected: set[str]) -> None:
    report = check_objective(broken())
    assert expected <= failed(report), str(report)


@frozen(kw_only=True)
class Cispo(Objective):
    """Clips the ratio and stops its gradient."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        return -batch.ratio.clamp(max=1.2).detach() * batch.advantage * batch.logp


@frozen(kw_only=True)
class Gspo(Objective):
    """One ratio for an episode, whose gradient is spread over its tokens."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        with torch.no_grad():
            mean = batch.sequence_mean(batch.logp - batch.old_logp)
        return -(mean + batch.logp - batch.logp.detach()).exp() * batch.advantage


@frozen(kw_only=True)
class Bonus(Objective):
    """Adds entropy, exact and with gradient."""

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, batch: TokenBatch) -> Tensor:
        return -batch.ratio * batch.advantage - 0.01 * batch.entropy**2


@frozen(kw_only=True)
class Rounds(Objective):
    """Computes in float32 whatever it is given."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        return (-batch.ratio * batch.advantage).float()


@pytest.mark.parametrize("right", [Surrogate(), Cispo(), Gspo(), Bonus(), Rounds()])
def test_a_right_objective_raises_no_alarm(right: Objective) -> None:
    check_objective(right).raise_for_failures()


# ---------------------------------------------------------------- transforms


@frozen(kw_only=True)
class Centered(AdvantageTransform):
    """Subtracts the minibatch's mean, as it should be done."""

    mean: float | None = field(default=None, init=False)

    def prepare(self, minibatch: TokenBatch) -> Self:
        made = attrs.evolve(self)
        object.__setattr__(made, "mean", float(minibatch.advantage[minibatch.mask].mean()))
        return made

    def __call__(self, batch: TokenBatch) -> Tensor:
        assert self.mean is not None
        return batch.advantage - self.mean


class CentersEachPart(Centered):
    def __call__(self, batch: TokenBatch) -> Tensor:
        return batch.advantage - batch.advantage[batch.mask].mean()


class CountsMaskedTokens(Centered):
    def prepare(self, minibatch: TokenBatch) -> Self:
        return super().prepare(attrs.evolve(minibatch, mask=torch.ones_like(minibatch.mask)))


class ReturnsOnlyTheKept(Centered):
    def __call__(self, batch: TokenBatch) -> Tensor:
        return super().__call__(batch)[batch.mask]


class DividesByProbability(Centered):
    def __call__(self, batch: TokenBatch) -> Tensor:
        zero = (1 - batch.logp.exp()) * batch.advantage
        return zero / (1 - batch.logp.exp())


TRANSFORMS: list[tuple[type[Centered], set[str]]] = [
    (CentersEachPart, {"splitting"}),
    (CountsMaskedTokens, {"mask"}),
    (ReturnsOnlyTheKept, {"shape"}),
    (DividesByProbability, {"extremes"}),
]


@pytest.mark.parametrize(("broken", "expected"), TRANSFORMS)
def test_a_broken_transform_is_found_out(broken: Any, expected: set[str]) -> None:
    report = check_objective(broken())
    assert expected <= failed(report), str(report)


def test_statistics_made_in_prepare_raise_no_alarm() -> None:
    check_objective(Centered()).raise_for_failures()


# ---------------------------------------------------------------- estimators


class Plain(AdvantageEstimator):
    """A right estimator: the rewards themselves."""

    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return rewards.clone()


class Ragged(Plain):
    """Right as well: one advantage for each token, more for early ones."""

    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return [
            reward * torch.arange(episode.sampled_tokens, 0, -1)
            for reward, episode in zip(rewards, episodes, strict=True)
        ]


class RaggedOverAllTokens(Plain):
    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return [torch.ones(sum(len(s.ids) for s in e.segments)) for e in episodes]


class OneForAll(Plain):
    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return rewards.mean()


class DividesByTheDeviation(Plain):
    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return (rewards - rewards.mean()) / rewards.std()


class LeavesTheExtremesOut(Plain):
    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return rewards - rewards.sort().values[1:-1].mean()


class TakesTheFirstForABaseline(Plain):
    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return rewards - rewards[0]


class SpoilsTheRewards(Plain):
    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Any:
        return rewards.sub_(rewards.mean())


ESTIMATORS: list[tuple[type[Plain], set[str]]] = [
    (RaggedOverAllTokens, {"shape"}),
    (OneForAll, {"shape"}),
    (DividesByTheDeviation, {"equal-rewards"}),
    (LeavesTheExtremesOut, {"finite"}),
    (TakesTheFirstForABaseline, {"permutation"}),
    (SpoilsTheRewards, {"pure"}),
]


@pytest.mark.parametrize(("broken", "expected"), ESTIMATORS)
def test_a_broken_estimator_is_found_out(broken: Any, expected: set[str]) -> None:
    report = check_objective(broken())
    assert expected <= failed(report), str(report)


@pytest.mark.parametrize("right", [Plain(), Ragged()])
def test_a_right_estimator_raises_no_alarm(right: AdvantageEstimator) -> None:
    check_objective(right).raise_for_failures()


# ---------------------------------------------------------------- ours, and what is none


def components() -> Iterator[tuple[str, str]]:
    for row in registry().rows:
        if row.kind in ("objective", "transform", "advantage") and row.state == "ok":
            yield row.kind, row.id


@pytest.mark.parametrize(("kind", "name"), list(components()))
def test_our_objectives_transforms_and_estimators_pass(kind: Any, name: str) -> None:
    check_objective(component(kind, name)).raise_for_failures()


def test_what_is_no_part_of_an_algorithm_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="An Objective, an AdvantageTransform or"):
        check_objective("clipped")  # type: ignore[arg-type]  # the mistake


# ---------------------------------------------------------------- controllers


@frozen(kw_only=True)
class Thermostat(Controller):
    """A right controller, whose speed grows while it is far off: it needs its memory."""

    moves: ClassVar[Mapping[str, Knob]] = {"objective.eps_high": Knob(0.0, 5.0)}

    def target_entropy(self, statistics: Statistics) -> float | None:
        return statistics.initial_entropy

    def update(
        self, statistics: Statistics, knobs: Mapping[str, float], memory: dict[str, Any]
    ) -> Mapping[str, float]:
        memory["error"] = 0.9 * memory.get("error", 0.0) + self.error(statistics)
        return {"objective.eps_high": self.clip(knobs["objective.eps_high"] + self.gain(memory))}

    def error(self, statistics: Statistics) -> float:
        return statistics.initial_entropy - statistics.entropy

    def gain(self, memory: dict[str, Any]) -> float:
        return 0.1 * float(memory["error"])

    def clip(self, value: float) -> float:
        return min(max(value, 0.0), 5.0)


class RunsAway(Thermostat):
    def clip(self, value: float) -> float:
        return value


class GoesAsFarAsTheKnob(Thermostat):
    """Further than it says that it will."""

    def clip(self, value: float) -> float:
        return min(max(value, 0.0), 10.0)


class DeclaresMoreThanTheKnob(Thermostat):
    moves: ClassVar[Mapping[str, Knob]] = {"objective.eps_high": Knob(0.0, 11.0)}


class ReturnsNaN(Thermostat):
    def error(self, statistics: Statistics) -> float:
        return super().error(statistics) / statistics.entropy if statistics.entropy else np.nan


class MovesAnother(Thermostat):
    def update(self, *arguments: Any) -> Mapping[str, float]:
        return {**super().update(*arguments), "objective.eps_low": 0.1}


class MovesWhatIsNotThere(Thermostat):
    moves: ClassVar[Mapping[str, Knob]] = {"objective.eps": Knob(0.0, 5.0)}


class WritesIntoTheKnobs(Thermostat):
    def update(self, statistics: Statistics, knobs: Any, memory: dict[str, Any]) -> Any:
        knobs.update(super().update(statistics, knobs, memory))
        return {}


class GuessesTheGain(Thermostat):
    def gain(self, memory: dict[str, Any]) -> float:
        return super().gain(memory) * random.random()


class RemembersByItself(Thermostat):
    def gain(self, memory: dict[str, Any]) -> float:
        steps = getattr(self, "steps", 0) + 1
        object.__setattr__(self, "steps", steps)
        return super().gain(memory) / steps


class RemembersAnArray(Thermostat):
    def gain(self, memory: dict[str, Any]) -> float:
        memory["array"] = np.zeros(2)
        return super().gain(memory)


class RemembersByNumber(Thermostat):
    """A whole number as a key comes back from JSON as a string."""

    def gain(self, memory: dict[str, Any]) -> float:
        seen: Any = memory.setdefault("seen", {})
        seen[0] = seen.get(0, 0) + 1
        return super().gain(memory) / int(seen[0])


class WorksTheWrongWay(Thermostat):
    def gain(self, memory: dict[str, Any]) -> float:
        return -super().gain(memory)


class DoesNothing(Thermostat):
    def gain(self, memory: dict[str, Any]) -> float:
        return 0.0


CONTROLLERS: list[tuple[type[Thermostat], set[str]]] = [
    (RunsAway, {"bounds"}),
    (GoesAsFarAsTheKnob, {"bounds"}),
    (DeclaresMoreThanTheKnob, {"composes"}),
    (ReturnsNaN, {"bounds"}),
    (MovesAnother, {"moves"}),
    (MovesWhatIsNotThere, {"composes"}),
    (WritesIntoTheKnobs, {"moves"}),
    (GuessesTheGain, {"deterministic"}),
    (RemembersByItself, {"memory"}),
    (RemembersAnArray, {"memory"}),
    (RemembersByNumber, {"memory"}),
    (WorksTheWrongWay, {"direction"}),
    (DoesNothing, {"direction"}),
]


@pytest.mark.parametrize(("broken", "expected"), CONTROLLERS)
def test_a_broken_controller_is_found_out(broken: Any, expected: set[str]) -> None:
    report = check_controller(broken(), recipe("grpo"))
    assert expected <= failed(report), str(report)


def test_a_right_controller_raises_no_alarm() -> None:
    check_controller(Thermostat(), recipe("grpo")).raise_for_failures()


def test_a_knob_of_which_more_means_less_entropy_is_named() -> None:
    report = check_controller(WorksTheWrongWay(), recipe("grpo"), lowering=["objective.eps_high"])
    report.raise_for_failures()
    report = check_controller(Thermostat(), recipe("grpo"), lowering=["objective.eps_high"])
    assert {"direction"} == failed(report)


def test_a_recipe_to_try_on_is_for_controllers_alone() -> None:
    with pytest.raises(ConfigError, match="on names the recipe that a controller is tried on"):
        isentrope.testing.check("repo-r", on="grpo")


def test_a_class_that_cannot_be_imported_is_not_an_environment_with_faults() -> None:
    with pytest.raises(
        isentrope.PluginError, match=r"'no.such:Env' \(no.such:Env\) failed to import"
    ):
        isentrope.testing.check("no.such:Env")


def test_a_controller_without_a_target_has_no_direction() -> None:
    class Aimless(WorksTheWrongWay):
        def target_entropy(self, statistics: Statistics) -> None:
            return None

    report = check_controller(Aimless(), recipe("grpo"))
    assert report.ok, str(report)
    assert "no target" in message(report, "direction")


def controlled() -> list[Algorithm]:
    names = [row.id for row in registry().rows if row.kind == "recipe"]
    return [a for a in map(recipe, names) if a.controllers]


@pytest.mark.parametrize("algorithm", controlled())
def test_the_controllers_of_our_recipes_pass(algorithm: Algorithm) -> None:
    for controller in algorithm.controllers:
        others = tuple(c for c in algorithm.controllers if c is not controller)
        assert controller not in others
        check_controller(controller, algorithm).raise_for_failures()


def test_the_recipes_have_controllers_to_check() -> None:
    assert controlled()


# ---------------------------------------------------------------- engines


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Return a random model that is sure of little; its tokenizer is never asked."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.3,
        )
        return LanguageModel(Qwen3ForCausalLM(config).train(False), None)  # type: ignore[arg-type]


@frozen
class Bent:
    """Builds our engine with a defect: a class that wraps it."""

    defect: Any

    def build(self, model: LanguageModel, use: EngineUse) -> Any:
        return self.defect(component("engine", "transformers").build(model, use), model)


class Honest:
    """No defect."""

    def __init__(self, engine: Any, model: LanguageModel) -> None:
        self.engine, self.model = engine, model
        self.in_flight = self.calls = 0

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        self.calls += 1
        self.in_flight += 1
        try:
            return self.bend(await self.engine.generate(prompt, self.sampling(sampling)), sampling)
        finally:
            self.in_flight -= 1

    def sampling(self, sampling: Sampling) -> Sampling:
        return sampling

    def bend(self, completion: Completion, sampling: Sampling) -> Completion:
        return completion

    async def publish(self, weights: WeightsRef) -> None:
        await self.engine.publish(weights)

    async def close(self) -> None:
        await self.engine.close()


class CountsCalls(Honest):
    def sampling(self, sampling: Sampling) -> Sampling:
        return attrs.evolve(sampling, seed=sampling.seed + self.calls)


class HasOneSeed(Honest):
    def sampling(self, sampling: Sampling) -> Sampling:
        return attrs.evolve(sampling, seed=0)


class MindsItsCompany(Honest):
    def sampling(self, sampling: Sampling) -> Sampling:
        return attrs.evolve(sampling, seed=sampling.seed + 50 * (self.in_flight > 1))


class ReportsAtTemperatureOne(Honest):
    def bend(self, completion: Completion, sampling: Sampling) -> Completion:
        # logp / T is what the logits were, up to a constant
        logp = [v * sampling.temperature for v in completion.logp]
        return attrs.evolve(completion, logp=logp)


class ReportsProbabilities(Honest):
    def bend(self, completion: Completion, sampling: Sampling) -> Completion:
        return attrs.evolve(completion, logp=np.exp(completion.logp).tolist())


class DropsTheStop(Honest):
    def bend(self, completion: Completion, sampling: Sampling) -> Completion:
        if completion.finish_reason == "length":
            return completion
        return attrs.evolve(completion, ids=completion.ids[:-1], logp=completion.logp[:-1])


class IgnoresStops(Honest):
    def sampling(self, sampling: Sampling) -> Sampling:
        return attrs.evolve(sampling, stop_ids=())


class SaysLengthAlways(Honest):
    def bend(self, completion: Completion, sampling: Sampling) -> Completion:
        return attrs.evolve(completion, finish_reason="length")


class GoesOneFurther(Honest):
    def sampling(self, sampling: Sampling) -> Sampling:
        return attrs.evolve(sampling, max_tokens=sampling.max_tokens + 1)


class LosesALogProb(Honest):
    def bend(self, completion: Completion, sampling: Sampling) -> Completion:
        return attrs.evolve(completion, logp=completion.logp[:-1])


class CountsItsOwnVersions(Honest):
    def bend(self, completion: Completion, sampling: Sampling) -> Completion:
        return attrs.evolve(completion, version=min(completion.version, 1))


class IgnoresPublications(Honest):
    version = 0

    async def publish(self, weights: WeightsRef) -> None:
        await self.engine.publish(attrs.evolve(weights, tensors=self.model.model.state_dict()))


class TakesAnyTensor(Honest):
    async def publish(self, weights: WeightsRef) -> None:
        known = self.model.model.state_dict().keys()
        kept = {k: v for k, v in weights.tensors.items() if k in known}
        await self.engine.publish(attrs.evolve(weights, tensors=kept))


class RefusesRudely(Honest):
    async def publish(self, weights: WeightsRef) -> None:
        try:
            await self.engine.publish(weights)
        except EngineError as error:
            raise KeyError("no.such.weight") from error


class KeepsTheTensors(Honest):
    """Publishes what the tensors are when it is next asked."""

    kept: WeightsRef | None = None

    async def publish(self, weights: WeightsRef) -> None:
        await self.engine.publish(weights)
        self.kept = weights

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        if self.kept is not None:
            await self.engine.publish(self.kept)
        return await super().generate(prompt, sampling)


class MakesUpAPrompt(Honest):
    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        return await super().generate(prompt or (0,), sampling)


class ClosesOnceOnly(Honest):
    closed = False

    async def close(self) -> None:
        await super().close()
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


ENGINES: list[tuple[Any, set[str]]] = [
    (CountsCalls, {"deterministic"}),
    (HasOneSeed, {"deterministic"}),
    (MindsItsCompany, {"independent"}),
    (ReportsAtTemperatureOne, {"logp"}),
    (ReportsProbabilities, {"logp"}),
    (DropsTheStop, {"stop"}),
    (IgnoresStops, {"stop"}),
    (SaysLengthAlways, {"stop"}),
    (GoesOneFurther, {"length"}),
    (LosesALogProb, {"completion"}),
    (CountsItsOwnVersions, {"publish"}),
    (IgnoresPublications, {"publish"}),
    (TakesAnyTensor, {"unknown-tensor"}),
    (RefusesRudely, {"unknown-tensor"}),
    (KeepsTheTensors, {"copies"}),
    (MakesUpAPrompt, {"empty-prompt"}),
    (ClosesOnceOnly, {"close"}),
    (lambda engine, model: object(), {"builds"}),
]


@pytest.mark.parametrize(("broken", "expected"), ENGINES)
def test_a_broken_engine_is_found_out(
    broken: Any, expected: set[str], model: LanguageModel
) -> None:
    report = check_engine(Bent(broken), model)
    assert expected <= failed(report), str(report)


@pytest.mark.parametrize("config", [component("engine", "transformers"), Bent(Honest)])
def test_a_right_engine_raises_no_alarm(config: Any, model: LanguageModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    report = check_engine(config, model)
    report.raise_for_failures()
    assert 12 == len(report.findings)
    after = model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the model is as it was"


def test_the_kit_is_in_the_facade() -> None:
    assert check_env is isentrope.testing.check_env


# ---------------------------------------------------------------- in a process of its own


class Hangs(Parrot):
    def step(self, action):
        while "emoji" in self.name_of(action):
            time.sleep(1)
        return super().step(action)

    @staticmethod
    def name_of(action: str) -> str:
        return "emoji" if action.startswith("\U0001f98a") else ""


class Crashes(Parrot):
    def step(self, action):
        if action == "\0":
            os._exit(3)
        return super().step(action)


class Leaves(Parrot):
    """Starts a process that it never ends."""

    def __init__(self, words: int = 3) -> None:
        super().__init__(words)
        self.helper = subprocess.Popen(["sleep", "60"], start_new_session=True)


class CloseHangs(Parrot):
    def close(self) -> None:
        time.sleep(60)


class HashOrder(Parrot):
    """What it says depends on how strings hash."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return f"{observation} {' '.join({'one', 'two', 'three', 'four', 'five'})}", info


@pytest.mark.parametrize(
    ("env", "check", "said"),
    [
        (Hangs, "answers", "emoji as an action: No answer to step() within 2 s"),
        (Crashes, "answers", "NUL as an action: It died in step(). Its process left with exit c"),
        (Leaves, "answers", "close() left 1 processes behind"),
        (CloseHangs, "answers", "close() did not come back"),
        (HashOrder, "across-processes", "went another way in another process: the observation"),
    ],
)
def test_what_only_another_process_can_tell(env: Any, check: str, said: str) -> None:
    report = check_env(env, deadline=2.0)
    assert check == report.failures[0].check
    assert said in report.failures[0].message
    assert (check == "answers") == (len(report.findings) == 1), "nothing else can be risked"


class Named(Parrot):
    """It has an option that the check's own argument is called like."""

    def __init__(self, name: str) -> None:
        assert "polly" == name
        super().__init__()


def test_an_environment_may_have_an_option_called_name() -> None:
    from isentrope.testing import check

    assert check(f"{__name__}:Named", name="polly", deadline=None).ok


def test_components_are_checked_by_their_id() -> None:
    from isentrope.testing import check

    assert check("arithmetic", grading="derivation").ok
    assert check("repo-r", zeta=0.1).ok
    assert check("entropy-scale", knob="objective.eps_high", low=0.05, high=0.5).ok
    for name, said in (("grop", "'grop' does not exist"), ("repo-r", "'transfrom' does not exist")):
        with pytest.raises(UnknownNameError, match=said):
            check(name, "transfrom" if name == "repo-r" else None)


def test_a_component_that_needs_fields_asks_for_them_all() -> None:
    from isentrope.testing import check

    with pytest.raises(ConfigError) as caught:
        check("entropy-ladder", knob="objective.eps_high")
    assert (
        "The controller 'entropy-ladder' needs low, high to be checked: "
        "isentrope check entropy-ladder --set low=... --set high=..."
    ) == str(caught.value)
    with pytest.raises(UnknownNameError, match="Did you mean 'knob'"):
        check("entropy-ladder", nob=1)


def test_a_recipe_names_what_can_be_checked_of_it() -> None:
    from isentrope.testing import check

    with pytest.raises(ConfigError, match=r"'grpo' is a recipe, .* group-normalized, clipped"):
        check("grpo")
