"""Runs laid over one another: seeds as one band, and what they evaluated, task by task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import stats

import isentrope
from isentrope import Evaluation, Run
from isentrope.reporting import _charts
from isentrope.reporting._history import History
from isentrope.reporting._seeds import pooled
from isentrope.reporting._series import smooth, window
from isentrope_envs.arithmetic import Arithmetic
from tests.conftest import SMALL_MODEL
from tests.sdk.test_reporting import REPO, Page, command, iteration, write_run

LENGTH = 30


def write_seed(
    path: Path,
    seed: int,
    entropies: Sequence[float] = (1.0, 0.9),
    parts: str | None = None,
    evaluated: Mapping[int, Mapping[str, str]] | None = None,
) -> Path:
    """Write a run of a seed; evaluated: by iteration, of each task 1 for right and 0 for wrong."""
    metrics = [iteration(i, entropy=entropy) for i, entropy in enumerate(entropies)]
    run = write_run(path, metrics, **({} if parts is None else {"parts": parts}))
    config = (run / "config.toml").read_text().replace("seed = 7", f"seed = {seed}")
    (run / "config.toml").write_text(config + '[evaluation]\nevery = 1\nsplit = "test"\nk = 2\n')
    lines = [
        json.dumps(attempt(i, task, rollout, sign == "1", seed)) + "\n"
        for i, tasks in (evaluated or {}).items()
        for task, signs in tasks.items()
        for rollout, sign in enumerate(signs)
    ]
    (run / "evaluations.jsonl").write_text("".join(lines))
    return run


def attempt(i: int, task: str, rollout: int, right: bool, seed: int) -> dict[str, Any]:
    return {
        "iteration": i, "task": task, "rollout": rollout, "seed": seed, "reward": 2.0 * right,
        "success": right, "judged": True, "status": "ok", "stop_reason": "terminated", "turns": 1,
        "tokens": 3, "metrics": {}, "report": "", "messages": [], "error": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def curves() -> np.ndarray:
    """Entropies of two runs of three seeds each."""
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 3, LENGTH))
    return 1.0 + noise + np.linspace(0, 0.3, LENGTH) * np.array([-1, 1])[:, None, None]


@pytest.fixture
def six(curves: np.ndarray, tmp_path: Path) -> list[Path]:
    return [
        write_seed(tmp_path / f"{name}-s{seed}", seed, curves[i, seed].tolist(), parts)
        for i, (name, parts) in enumerate((("plain", None), ("repo", REPO)))
        for seed in range(3)
    ]


# ---------------------------------------------------------------- seeds as bands


def test_the_line_of_seeds_is_their_mean_and_the_band_holds_each(curves, six) -> None:
    runs = pooled([History.read(run) for run in six])
    assert ["plain", "repo"] == [run.name for run in runs]
    (chart,) = [c for c in _charts.of_runs(runs) if c.title == "Entropy"]
    for line, seeds in zip(chart.series, curves, strict=True):
        averages = np.array([smooth(seed.tolist(), window(LENGTH)) for seed in seeds])
        assert seeds.mean(0) == pytest.approx(line.y)
        assert averages.min(0) == pytest.approx(line.low)
        assert averages.max(0) == pytest.approx(line.high)
        drawn = averages.mean(0)  # smoothing is linear: of the mean it is the mean
        (trace,) = [t for t in chart.figure["data"] if t["name"] == line.name and "fill" not in t
                    and t["line"]["width"]]  # fmt: skip
        assert drawn == pytest.approx(trace["y"], rel=1e-4)


def test_a_comparison_of_seeds_has_a_row_and_a_colour_for_each_configuration(six) -> None:
    page = Page(isentrope.compare(*six, out=six[0].parent / "c.html"))
    assert "plain against repo" in page.text
    assert 3 == len(page.tables["runs"])  # with its head
    assert "3 seeds (0, 1, 2). 30 of 60 iterations: unfinished" in page.text
    assert ["plain", "repo"] == page.tables["differences"][0][1:]
    assert "seed" not in [row[0] for row in page.tables["differences"]]
    assert "A band holds every seed; its line is their mean." in page.text


def test_the_ends_of_seeds_are_the_lowest_and_the_highest(curves, six) -> None:
    page = Page(isentrope.compare(*six, out=six[0].parent / "c.html"))
    lasts = curves[0, :, -10:].mean(1)
    told = f"{curves[0, :, -10:].mean():.3g}{lasts.min():.3g} to {lasts.max():.3g}"
    assert told == page.tables["runs"][1][5].split("→ ")[1]


def test_seeds_go_as_far_as_all_have_come(tmp_path: Path) -> None:
    lengths = {"a-0": 5, "a-1": 3}
    runs = [write_seed(tmp_path / n, i, [1.0 + i] * c) for i, (n, c) in enumerate(lengths.items())]
    other = write_seed(tmp_path / "b", 0, [1.0] * 5, REPO)
    mean = pooled([History.read(run) for run in (*runs, other)])[0]
    assert [1.5, 1.5, 1.5] == mean.values("entropy")
    page = Page(isentrope.compare(*runs, other, out=tmp_path / "c.html"))
    assert "2 seeds (0, 1). 5 of 60 iterations: unfinished; 3 of 60 iterations" in page.text


def test_runs_that_differ_in_the_seed_alone_are_compared_if_there_is_nothing_else(six) -> None:
    page = Page(isentrope.compare(*six[:3], out=six[0].parent / "c.html"))
    assert [["Key", "plain-s0", "plain-s1", "plain-s2"], ["seed", "0", "1", "2"]] == (
        page.tables["differences"]
    )
    assert "A band" not in page.text


def test_the_same_seed_twice_is_not_two_seeds(six, curves, tmp_path: Path) -> None:
    again = write_seed(tmp_path / "again", 0, curves[0, 0].tolist())
    runs = pooled([History.read(run) for run in (*six[:3], again)])
    assert [("plain", 3), ("again", 0)] == [(run.name, len(run.seeds)) for run in runs]


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (("x/grpo-s1", "x/grpo-s10"), "grpo"),
        (("x/arithmetic-grpo", "x/arithmetic-grpo-2"), "arithmetic-grpo"),
        (("x/grpo/0", "x/grpo/1"), "grpo"),
        (("x/first", "y/second"), "first and others"),
    ],
)
def test_seeds_are_called_by_what_they_have_in_common(folders, name, tmp_path: Path) -> None:
    runs = [write_seed(tmp_path / folder, i) for i, folder in enumerate(folders)]
    other = write_seed(tmp_path / "other", 0, parts=REPO)
    assert name == pooled([History.read(run) for run in (*runs, other)])[0].name


# ---------------------------------------------------------------- evaluations during training


def test_a_run_keeps_the_attempts_of_its_evaluations(tiny_run) -> None:
    evaluation = {"every": 2, "split": "test", "tasks": 6, "k": 2}
    run = isentrope.train(**tiny_run | {"iterations": 4}, evaluation=evaluation)
    found = Evaluation.during(run)
    assert [1, 3] == list(found)
    for i, one in found.items():
        metrics = run.metrics[i]
        assert 12 == len(one.attempts)
        assert metrics["eval/success"] == one.success
        assert metrics["eval/reward"] == pytest.approx(one.reward)
        success = one.estimates["success"]
        assert (success.low, success.high) == (
            metrics["eval/success_low"], metrics["eval/success_high"]
        )  # fmt: skip
    assert [] == [a.task for a in found[1].attempts if a.task not in found[3].by_task]


def test_what_is_run_again_is_evaluated_again_once(tiny_run) -> None:
    run = isentrope.train(**tiny_run, evaluation={"every": 1, "tasks": 3})
    before = run.evaluations
    run.rewind(1)
    assert [line for line in before if line["iteration"] < 1] == run.evaluations
    assert {0} == Evaluation.during(run).keys()


class Flaky(Arithmetic):
    """Breaks down at the first attempt at each task of the test split."""

    broken: ClassVar[set[str]] = set()

    def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
        begun = super().reset(**options)
        held_out = {task.id for task in self.tasks["test"]}
        if self.task.id in held_out and self.task.id not in self.broken:
            self.broken.add(self.task.id)
            raise RuntimeError("not yet")
        return begun


def test_what_an_evaluation_counted_is_in_its_iteration(tiny_run) -> None:
    evaluation = {"every": 3, "tasks": 5, "k": 1, "split": "test"}
    model = {**SMALL_MODEL, "warmup_env": {"id": "arithmetic"}}
    run = isentrope.train(**tiny_run | {"env": Flaky, "model": model}, evaluation=evaluation)
    assert [0, 0, 5] == [m["episodes_retried"] for m in run.metrics]


def test_a_run_that_evaluated_nothing_has_none(tiny_run) -> None:
    assert {} == Evaluation.during(isentrope.train(**tiny_run))


def outcomes(rng: np.random.Generator, chance: float, tasks: int = 12) -> dict[str, str]:
    return {f"t{i}": "".join(map(str, rng.binomial(1, chance, 2))) for i in range(tasks)}


def test_evaluations_of_runs_are_paired_by_task_over_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    plain = [outcomes(rng, 0.3) for _ in range(2)]
    repo = [outcomes(rng, 0.6) for _ in range(2)]
    runs = [
        *(write_seed(tmp_path / f"a-{s}", s, evaluated={1: plain[s]}) for s in range(2)),
        *(write_seed(tmp_path / f"b-{s}", s, evaluated={1: repo[s]}, parts=REPO) for s in range(2)),
    ]

    def shares(seeds: list[dict[str, str]]) -> np.ndarray:
        return np.array([[np.mean([int(c) for c in signs]) for signs in one.values()]
                         for one in seeds])  # fmt: skip

    difference = shares(repo).mean(0) - shares(plain).mean(0)
    half = stats.t.ppf(0.975, 11) * difference.std(ddof=1) / np.sqrt(12)
    page = Page(isentrope.compare(*runs, out=tmp_path / "c.html"))
    rows = {row[0]: row[1] for row in page.tables["compared"]}
    middle = difference.mean()
    assert f"{middle:+.3f} ({middle - half:+.3f} to {middle + half:+.3f})" == rows["success"]
    assert rows["reward"].startswith(f"{2 * middle:+.3f}")
    told = {row[0]: row[1:] for row in page.tables["evaluations"]}
    assert f"{shares(plain).mean():.3f}" == told["success"][0].split()[0]
    assert f"{shares(repo).mean():.3f}" == told["success"][1].split()[0]
    pass_at_2 = np.mean([[signs != "00" for signs in one.values()] for one in repo])
    assert f"{pass_at_2:.3f}" == told["pass@2"][1].split()[0]
    assert "seeded differently" not in page.text  # seed by seed they are alike


def test_runs_are_compared_at_the_last_evaluation_that_both_have(tmp_path: Path) -> None:
    wrong, right = {"a": "00", "b": "00"}, {"a": "11", "b": "10"}
    one = write_seed(tmp_path / "one", 0, evaluated={0: wrong, 1: right})
    two = write_seed(tmp_path / "two", 0, evaluated={0: right}, parts=REPO)
    page = Page(isentrope.compare(one, two, out=tmp_path / "c.html"))
    rows = {row[0]: row[1] for row in page.tables["compared"]}
    assert rows["success"].startswith("+0.750")
    assert "iteration 0, 2 common tasks" in page.tables["compared"][0][1]


def test_evaluations_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    one = write_seed(tmp_path / "one", 0, evaluated={0: {"a": "01"}})
    two = write_seed(tmp_path / "two", 0, evaluated={1: {"a": "01"}}, parts=REPO)
    three = write_seed(tmp_path / "three", 0, evaluated={0: {"b": "01"}}, parts=REPO)
    page = Page(isentrope.compare(one, two, three, out=tmp_path / "c.html"))
    assert "two and one share no iteration with an evaluation." in page.text
    assert "The evaluations have no task in common" in page.text


def test_the_command_line_prints_what_is_compared(tmp_path: Path) -> None:
    write_seed(tmp_path / "one", 0, evaluated={1: {"a": "00", "b": "01"}})
    write_seed(tmp_path / "two", 0, evaluated={1: {"a": "11", "b": "01"}}, parts=REPO)
    done = command("compare", "one", "two", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert "two minus one at iteration 1: 2 common tasks" in done.stdout
    assert "+0.500" in done.stdout


def test_evaluations_of_a_run_can_be_subtracted_in_python(tmp_path: Path) -> None:
    one = Run(write_seed(tmp_path / "one", 0, evaluated={1: {"a": "00", "b": "01"}}))
    two = Run(write_seed(tmp_path / "two", 0, evaluated={1: {"a": "11", "b": "01"}}))
    found = Evaluation.during(two)[1].against(Evaluation.during(one)[1])
    assert 0.5 == found.differences["success"].value


def test_the_same_run_twice_is_no_comparison(tmp_path: Path) -> None:
    run = write_seed(tmp_path / "one", 0)
    with pytest.raises(isentrope.ConfigError, match=r"compare got .*/one twice"):
        isentrope.compare(run, tmp_path / "." / "one")
