"""The science: statistics against closed forms, studies that compose, a page that is a record's."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from dynamics import markdown, measuring, running, statistics, studies
from dynamics.results import Results
from dynamics.running import StudyError
from dynamics.studies import SEEDS, TASK, TUNING_SEEDS, Trial

import isentrope
from isentrope.config import read_config
from isentrope.episodes import Episode, Segment, StopReason
from isentrope.structuring import unstructure
from isentrope_envs.arithmetic import EQUATION

ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------- statistics


def test_an_interval_is_students() -> None:
    found = statistics.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445105 * math.sqrt(2.5 / 5)  # t(0.975, 4), from a printed table
    assert (3.0, 5) == (found.mean, found.seeds)
    assert (3 - half, 3 + half) == pytest.approx((found.low, found.high))


def test_one_seed_says_nothing_of_the_spread() -> None:
    found = statistics.estimate([0.3])
    assert (0.3, -math.inf, math.inf) == (found.mean, found.low, found.high)
    assert not found.differs


def test_a_paired_difference_takes_the_seeds_own_level_off() -> None:
    level = np.array([0.1, 0.9, 0.4, 0.7, 0.2])
    better = level + np.array([0.10, 0.11, 0.09, 0.10, 0.10])
    assert statistics.difference(better.tolist(), level.tolist()).differs
    alone = [statistics.estimate(x.tolist()) for x in (better, level)]
    assert alone[0].low < alone[1].high  # unpaired, nothing could be told


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.5, 0.1, (2000, 5))
    held = [(e := statistics.estimate(x.tolist())).low < 0.5 < e.high for x in drawn]
    assert 0.95 == pytest.approx(np.mean(held), abs=0.015)


def test_a_correlation_is_of_ranks_within_seeds() -> None:
    arms = np.arange(6.0)[:, None]
    seeds = np.array([0.0, 100.0, -50.0])
    found, p = statistics.correlation(arms + seeds, -np.exp(arms) + 7 * seeds)
    assert -1 == pytest.approx(found)
    assert p < 0.01  # two of 720 orders


def test_arms_that_have_nothing_to_do_with_one_another_are_seldom_said_to() -> None:
    # What an arm does, it does on every seed: shuffled seed by seed, a third would seem related.
    rng = np.random.default_rng(1)

    def drawn() -> Any:
        return rng.normal(size=(10, 1)) + 0.3 * rng.normal(size=(10, 5))

    ps = [statistics.correlation(drawn(), drawn())[1] for _ in range(60)]
    assert np.mean(np.array(ps) < 0.05) <= 0.15
    assert 0.5 == pytest.approx(np.mean(ps), abs=0.15)


# ---------------------------------------------------------------- studies


def test_no_constant_is_chosen_on_seeds_that_are_reported() -> None:
    assert not set(TUNING_SEEDS) & set(SEEDS)
    assert len(SEEDS) >= 5
    assert {*SEEDS} == {t.seed for t in studies.trials() if t.study in ("recipes", "sequence")}


def test_every_recipe_is_compared() -> None:
    from isentrope.plugins import registry

    ours = {n for n, spec in registry().specs("recipe").items() if "isentrope_" in spec.entry_point}
    assert ours == set(studies.RECIPES)


def test_every_trial_composes_and_none_is_another_of_its_study() -> None:
    trials = studies.trials()
    assert len({t.key for t in trials}) == len(trials)
    seen: dict[tuple[str, int, str], str] = {}
    for trial in trials:
        if trial.seed in (TUNING_SEEDS[0], SEEDS[0]):
            text = json.dumps(unstructure(running.config(trial, Path())))
            assert trial.key == seen.setdefault((trial.study, trial.seed, text), trial.key)


def test_a_seed_is_a_policy_an_order_of_tasks_and_a_sampling() -> None:
    for trial in studies.trials():
        if trial.start is None and trial.study in ("recipes", "tuning"):
            config = running.config(trial, Path())
            assert trial.seed == config.seed == config.model.seed  # type: ignore[attr-defined]
            assert read_config(TASK, {"algorithm": "grpo"}).rollout == config.rollout


def test_every_controlled_recipe_is_tuned_with_as_many_settings() -> None:
    assert {4} == {len(settings) for settings in studies.TUNING.values()}
    controlled = {n for n in studies.RECIPES if isentrope.recipe(n).controllers}
    assert controlled == set(studies.TUNING)
    tuned = [t for t in studies.trials() if t.study == "tuning"]
    assert {*TUNING_SEEDS} == {t.seed for t in tuned}
    assert len(TUNING_SEEDS) * sum(map(len, studies.TUNING.values())) == len(tuned)


def test_the_demo_is_that_of_the_examples() -> None:
    for name, settings in studies.DEMO.items():
        example = read_config(ROOT / "examples" / f"arithmetic-{name}.toml")
        ours = read_config(TASK, settings)
        for part in ("env", "algorithm", "rollout"):
            assert getattr(example, part) == getattr(ours, part)
        assert example.learner.lr == ours.learner.lr
        assert 900 == example.model.warmup_steps == ours.model.warmup_steps  # type: ignore[attr-defined]


def test_a_trial_comes_after_the_one_that_it_starts_from() -> None:
    trials = studies.trials()
    for trial in trials:
        if trial.start is not None:
            assert trials.index(trial.start) < trials.index(trial)
            assert trial.start.seed == trial.seed


# ---------------------------------------------------------------- measuring


class _Letters:
    """A tokenizer with a token for each of these."""

    pieces = ("7x=", "35", " so", " x=5", " th", "us", " ", "\\boxed{5}", ";")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids)


def _episode(
    ids: list[int], logp: list[float], text: str = "", success: bool = True, task: str = "a"
) -> Episode:
    prompt = 1
    segment = Segment(
        ids=[0] * prompt + ids,
        sampled=[False] * prompt + [True] * len(ids),
        logp=[0.0] * prompt + logp,
        turn=[0] * (prompt + len(ids)),
        version=[-1] * prompt + [0] * len(ids),
    )
    return Episode(
        task=task,
        seed=0,
        rollout=0,
        segments=(segment,),
        messages=({"role": "assistant", "content": text},),
        rewards=(1.0,),
        success=success,
        stop_reason=StopReason.TERMINATED,
    )


def test_wording_is_what_connects_two_steps_however_it_is_cut_into_tokens() -> None:
    # "7x=35 so x=5 thus \boxed{5}": " so", " th", "us", and the blanks that belong to them
    ids = [0, 1, 2, 3, 4, 5, 6, 7]
    logp = [-1.0, -2.0, -4.0, -8.0, -16.0, -32.0, -64.0, -128.0]
    # " so " ends with the blank that " x=5" begins with: a token of both is counted as wording
    assert 4 + 8 + 16 + 32 + 64 == measuring._of_wording(_episode(ids, logp), _Letters())


def test_different_right_answers_are_counted_per_problem() -> None:
    texts = ["7x=35 so x=5", "7x=35 thus x=5", "7x=35 so x=5", "x=5"]
    right = [_episode([1], [-1.0], text) for text in texts]
    wrong = [_episode([1], [-1.0], "x=6", success=False)]
    none = [_episode([1], [-1.0], "x=6", success=False, task="b")]
    episodes = [*right, *wrong, *none]
    assert 3 / 2 == measuring._distinct(episodes, lambda text: text)
    assert 2 / 2 == measuring._distinct(episodes, lambda text: tuple(EQUATION.findall(text)))


def _run(folder: Path, rows: list[Mapping[str, Any]], recipe: str = "adapo") -> isentrope.Run:
    toml = f'env = "arithmetic"\nalgorithm = "{recipe}"\n'
    run = isentrope.Run.create(folder, toml, "arithmetic")
    for row in rows:
        run.record(row, [])
    return run


def _rows(count: int, evaluations: Sequence[float]) -> list[Mapping[str, Any]]:
    """Metrics of iterations, of which every tenth is evaluated."""
    return [
        {
            "iteration": i,
            "entropy": 0.5 + 0.01 * i * (-1) ** i,
            "reward": 0.1 + i / 100,
            "success": i / 100,
            "env/right_answer": 0.5,
            "steps": 2 + i % 2,
            "objective.eps_low": 0.2,
            "objective.eps_high": 0.1 * (i + 1),
            **({"eval/success": evaluations[i // 10]} if i % 10 == 9 else {}),
        }
        for i in range(count)
    ]


def test_a_runs_course_is_summed_up(tmp_path: Path) -> None:
    rows = _rows(62, (0.1, 0.4, 0.4, 0.2, 0.0, 0.3))
    entropy = [row["entropy"] for row in rows]
    found = measuring.course(_run(tmp_path / "run", rows))
    expected = {
        "first_entropy": 0.5,
        "cumulative_entropy": sum(entropy),
        "mean_entropy": sum(entropy) / 62,
        "entropy_change": sum(entropy[42:]) / 20 / 0.5 - 1,
        "entropy_change_at_best": sum(entropy[15:20]) / 5 / 0.5 - 1,  # the first of two best
        "entropy_error": sum(abs(e / 0.5 - 1) for e in entropy) / 62,
        "dev_success": (0.4 + 0.4 + 0.2 + 0.0 + 0.3) / 5,
        "first_success": (0 + 1 + 2 + 3 + 4) / 500,
        "early_success": sum(range(50)) / 5000,
        "last_reward": 0.1 + sum(range(42, 62)) / 2000,
        "steps": 2.5,
    }
    assert expected == pytest.approx({k: found[k] for k in expected}, rel=1e-3, abs=1e-4)
    assert 12 == len(found["series"]["success"])  # two iterations of the last block are missing
    assert 0.02 == pytest.approx(found["series"]["success"][0])
    assert 0.0 == found["series"]["clip_high"][0]  # nothing was learnt there
    assert ["objective.eps_high"] == list(found["knobs"])
    assert [0.3, 0.8] == pytest.approx(found["knobs"]["objective.eps_high"][:2])


class _Evaluate:
    """Stands for `isentrope.evaluate`: says what it was asked, and likes other temperatures."""

    liked: ClassVar = {("dev", 1): 0.4, ("dev", 8): 1.4, ("test", 1): 0.8, ("test", 8): 0.8}

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, int]] = []

    def __call__(
        self, policy: Any, env: Any, *, split: str, k: int, rollout: Any
    ) -> SimpleNamespace:
        t = rollout["temperature"]
        self.asked.append((split, t, k))
        passed = {
            j: 1.0 - abs(t - self.liked.get((split, 1 if j == 1 else 8), 0))
            for j in range(1, k + 1)
        }
        return SimpleNamespace(pass_at=passed, failed=0, episodes=(_episode([1], [-1.0], "x=5"),))


def test_temperatures_are_chosen_on_dev_problems_and_tested_on_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluate = _Evaluate()
    monkeypatch.setattr(isentrope, "evaluate", evaluate)
    monkeypatch.setattr(measuring, "_surprisal", lambda episodes, policy: {})
    found = measuring.tested(tmp_path, isentrope.EnvRef("arithmetic"), search=True)
    assert 0.4 == found["best_1"]["temperature"]
    assert 1.4 == found["best_8"]["temperature"]
    assert 0.6 == pytest.approx(found["best_1"]["pass_at"]["1"])  # |0.4 - 0.8| off, on test
    assert 0.8 == pytest.approx(found["test"]["pass_at"]["8"])  # at temperature 1
    assert {t for split, t, _ in evaluate.asked if split == "test"} == {0.4, 1.0, 1.4}
    assert 0.9 == pytest.approx(found["temperatures"]["8"][-1], abs=0.11)  # 1.6, and 1.4 is liked
    assert [*measuring.TEMPERATURES] == [t for split, t, _ in evaluate.asked if split == "dev"]


# ---------------------------------------------------------------- results


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = {"s/b/3": {"x": 1.5}, "s/a b/2": {"knobs": {"o.eps": [1, 2]}}}
    Results(records).write(tmp_path / "record.json")
    assert records == Results.read(tmp_path / "record.json").records


def test_a_difference_is_of_the_seeds_that_both_have() -> None:
    records = {
        "s/a/1": {"v": 9.0},
        "s/a/2": {"v": 1.0},
        "s/a/3": {"v": 2.0},
        "s/b/2": {"v": 0.5},
        "s/b/3": {"v": 1.0},
        "s/b/4": {"v": 7.0},
        "s/bc/3": {"v": 100.0},
    }
    results = Results(records)
    assert 0.75 == results.change("s", "a", "b", "v").mean
    assert [2, 3, 4] == results.seeds("s", "b")


def test_a_path_goes_through_names_with_dots() -> None:
    results = Results({"s/a/1": {"knobs": {"objective.eps_high": 3}}})
    assert [3] == results.values("s", "a", "knobs.objective.eps_high")
    with pytest.raises(KeyError):
        results.values("s", "a", "knobs.objective.eps_low")


# ---------------------------------------------------------------- Markdown


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.1, 0.05, 0.15), "higher, +0.10 (+0.05 .. +0.15)"),
        ((-0.1, -0.15, -0.05), "lower, -0.10 (-0.15 .. -0.05)"),
        ((0.1, -0.05, 0.25), "no difference that could be seen, +0.10 (-0.05 .. +0.25)"),
    ],
)
def test_a_verdict_says_what_the_interval_allows(
    interval: tuple[float, float, float], expected: str
) -> None:
    assert expected == markdown.verdict(statistics.Estimate(*interval, seeds=5))


# ---------------------------------------------------------------- running


SMALL: studies.Settings = {
    **studies.recipe("grpo"),
    "model.warmup_steps": 1,
    "rollout.tasks": 2,
    "rollout.max_tokens": 4,
    "evaluation.every": 1,
    "evaluation.tasks": 2,
    "iterations": 5,
}
FIRST = Trial("small", "first", 0, SMALL)
SECOND = Trial(
    "small", "second", 0, {k: v for k, v in SMALL.items() if not k.startswith("model")}, FIRST
)


def _train(*trials: Trial, out: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        running.train_all(trials, out, pool, 1)


@pytest.mark.slow
def test_a_trial_is_trained_once_from_the_best_policy_of_its_start(tmp_path: Path) -> None:
    _train(SECOND, FIRST, out=tmp_path)
    best = isentrope.Run(running.folder(FIRST, tmp_path)).best
    config = isentrope.Run(running.folder(SECOND, tmp_path)).config
    assert str(best) == config.model.path  # type: ignore[attr-defined]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    _train(FIRST, SECOND, out=tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    found = measuring.measure(SECOND, tmp_path)
    assert found == measuring.measure(SECOND, tmp_path)
    assert {"test", "final", "series"} <= found.keys()


def test_a_run_that_was_stopped_is_not_finished_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = isentrope.train

    def stopped(*args: Any, **kwargs: Any) -> isentrope.Run:
        def interrupt(metrics: Mapping[str, Any]) -> None:
            if metrics["iteration"] == 1:
                signal.raise_signal(signal.SIGINT)

        return train(*args, **kwargs, on_iteration=interrupt)

    with monkeypatch.context() as patch:
        patch.setattr(isentrope, "train", stopped)
        with pytest.raises(StudyError, match="small/first/0: stopped before its end"):
            running.train_all([FIRST], tmp_path, _Here(), 1)
    assert not running.finished(FIRST, tmp_path)
    _train(FIRST, out=tmp_path)
    assert running.finished(FIRST, tmp_path)
    assert 5 == len(isentrope.Run(running.folder(FIRST, tmp_path)).metrics)


class _Here(Executor):
    """Runs what is submitted at once, in this thread, where Ctrl-C arrives."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def test_a_run_with_other_settings_is_not_taken_for_the_trials(tmp_path: Path) -> None:
    _train(FIRST, out=tmp_path)
    changed = Trial("small", "first", 0, {**SMALL, "learner.lr": 1e-3})
    with pytest.raises(StudyError, match="trained with other settings"):
        _train(changed, out=tmp_path)


def test_what_fails_stops_nothing_else_and_is_said_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = isentrope.train

    def failing(config: Any, **kwargs: Any) -> isentrope.Run:
        if config.algorithm.advantage == isentrope.recipe("loop").advantage:
            raise isentrope.TrainingError("it has diverged.")
        return train(config, **kwargs)

    monkeypatch.setattr(isentrope, "train", failing)
    bad = Trial("small", "bad", 0, {**SMALL, **studies.recipe("loop")})
    after = Trial("small", "after", 0, SECOND.settings, bad)
    with pytest.raises(StudyError) as caught:
        _train(bad, after, FIRST, out=tmp_path)
    assert "small/bad/0: it has diverged." in str(caught.value)
    assert "small/after/0: starts from a run that is not there" in str(caught.value)
    assert running.finished(FIRST, tmp_path)


def test_what_a_killed_run_left_before_its_configuration_is_no_obstacle(tmp_path: Path) -> None:
    path = running.folder(FIRST, tmp_path)
    path.mkdir(parents=True)
    (path / "run.json").write_text("{}")
    _train(FIRST, out=tmp_path)
    assert running.finished(FIRST, tmp_path)
