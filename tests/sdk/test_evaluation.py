"""Evaluations: what counts, what is kept, how one goes on. Their mathematics: test_estimates."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import isentrope
from isentrope import (
    ConfigError,
    Episode,
    Evaluation,
    Run,
    Status,
    StopReason,
    Task,
    TaskSet,
    scoreboard,
)
from isentrope.evaluation.plan import Plan, digest
from isentrope.evaluation.records import EvaluationFolder
from isentrope.evaluation.result import summarize
from isentrope.evaluation.run import requests
from isentrope.models import LanguageModel
from isentrope.scoreboard import print_evaluation
from tests.conftest import SMALL_MODEL

HERE = {"workers": {"isolation": "none"}}


class Parity(isentrope.TextEnv):
    """A turn or two, and success where what was said has an even length."""

    def __init__(
        self, broken: str = "", says: bool = True, tasks: int = 6, offset: int = 0
    ) -> None:
        self.tasks = TaskSet({"test": [Task(f"t{i}", {"n": i + offset}) for i in range(tasks)]})
        self.broken, self.says = broken, says

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed, options=options)
        if self.broken and Path(self.broken).exists() and self.task.id in ("t1", "t2"):
            raise RuntimeError("no server")
        self.left = 1 + self.task.data["n"] % 2
        return f"Solve {self.task.data['n']}x=2", info

    def step(self, action):
        self.left -= 1
        info = {"success": len(action) % 2 == 0} if self.says else {}
        return "go on", float(len(action) % 2 == 0), self.left == 0, False, info


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return isentrope.train(
        env="arithmetic",
        algorithm={"recipe": "grpo", "epochs": 1, "minibatch": 16},
        model=SMALL_MODEL,
        rollout={"tasks": 4, "group": 8, "max_tokens": 24},
        iterations=1,
        out=tmp_path_factory.mktemp("evaluated") / "run",
    )


@pytest.fixture
def evaluate(run: Run) -> Callable[..., Evaluation]:
    def call(**options):
        changes = {**HERE, **options.pop("rollout", {})}
        return isentrope.evaluate(run, options.pop("env", Parity), rollout=changes, **options)

    return call


def episode(
    task: str,
    rollout: int,
    *,
    success: bool = False,
    status: Status = Status.OK,
    judged: bool = True,
    stop: StopReason = StopReason.TERMINATED,
    seed: int = 0,
) -> Episode:
    return Episode(
        task=task,
        seed=seed,
        rollout=rollout,
        segments=(),
        messages=(),
        rewards=(float(success),),
        success=success,
        judged=judged,
        stop_reason=stop if status is Status.OK else StopReason.FAILED,
        status=status,
    )


def of_outcomes(outcomes: dict[str, str], seed: int = 0) -> Evaluation:
    """Make an evaluation of the attempts at each task: 1 right, 0 wrong, x failed."""
    episodes = [
        episode(
            task,
            i,
            success=sign == "1",
            status=Status.ENV_ERROR if sign == "x" else Status.OK,
            seed=seed,
        )
        for task, signs in outcomes.items()
        for i, sign in enumerate(signs)
    ]
    return summarize(episodes, env="e", split="test", k=max(map(len, outcomes.values())))


# ---------------------------------------------------------------- what counts


def test_every_task_weighs_the_same_however_many_attempts_failed() -> None:
    result = of_outcomes({"a": "1111", "b": "0xxx"})
    assert (0.5, 0.5) == (result.success, result.reward)


def test_failures_are_apart_from_wrong_answers() -> None:
    result = of_outcomes({"a": "1x", "b": "xx"})
    assert (3, 1, 1.0) == (result.failed, result.tasks, result.success)
    assert 1.0 == result.pass_at[1]
    assert math.isnan(result.pass_at[2])  # no task has two attempts that did not fail
    assert {"terminated": 1, "env_error": 3} == result.counts()
    assert any("3 of 4 attempts failed (3 env_error)" in note for note in result.notes())
    assert any("2 of 2 tasks have fewer than 2" in note for note in result.notes())


def test_pass_at_j_is_over_the_tasks_that_have_j_attempts() -> None:
    result = of_outcomes({"a": "100", "b": "1xx", "c": "000"})
    assert {1: 3, 2: 2, 3: 2} == {j: result.estimates[f"pass@{j}"].tasks for j in (1, 2, 3)}
    assert ((1 / 3 + 1) / 3, 1 / 3) == pytest.approx((result.pass_at[1], result.pass_at[2]))
    assert {1: (1 / 3 + 1) / 3, 2: 0.0, 3: 0.0} == pytest.approx(result.pass_all)


def test_success_is_the_first_of_both_curves_and_each_is_monotone() -> None:
    result = of_outcomes({"a": "1100", "b": "0001", "c": "1111", "d": "0000"})
    assert result.success == pytest.approx(result.pass_at[1]) == pytest.approx(result.pass_all[1])
    assert [*result.pass_at.values()] == sorted(result.pass_at.values())
    assert [*result.pass_all.values()] == sorted(result.pass_all.values(), reverse=True)


def test_what_a_limit_cut_off_is_counted_and_is_no_success() -> None:
    cut = [episode("a", 0, stop=StopReason.MAX_TOKENS), episode("a", 1, success=True)]
    result = summarize(cut, env="e", split="test", k=2)
    assert (1, 0.5) == (result.truncated, result.success)
    assert any(
        "1 of 2 attempts were cut off by a limit (1 max_tokens)" in n for n in result.notes()
    )


def test_an_environment_that_never_says_success_has_no_pass_at_k() -> None:
    unsaid = [episode("a", i, judged=False) for i in range(2)]
    result = summarize(unsaid, env="mute", split="test", k=2)
    assert (False, 2, 0.0) == (result.says_success, result.unjudged, result.reward)
    assert math.isnan(result.success)
    assert all(map(math.isnan, result.pass_at.values()))
    assert any("mute never says info['success']" in note for note in result.notes())


def test_an_environment_that_sometimes_says_success_is_told_of() -> None:
    mixed = [episode("a", 0, judged=False), episode("a", 1, success=True)]
    result = summarize(mixed, env="e", split="test", k=2)
    assert (True, 0.5) == (result.says_success, result.success)
    assert any("1 of 2 attempts ended without info['success']" in note for note in result.notes())


def test_where_a_limit_cut_all_off_that_is_no_success_and_not_an_unknown_one() -> None:
    cut = [episode("a", i, stop=StopReason.MAX_TOKENS) for i in range(2)]
    assert 0.0 == summarize(cut, env="e", split="test", k=2).success


def test_the_summary_is_strict_json_with_null_for_what_is_unknown() -> None:
    text = json.dumps(of_outcomes({"a": "xx", "b": "xx"}).summary(), allow_nan=False)
    told = json.loads(text)
    assert {"value": None, "low": None, "high": None, "tasks": 0} == told["estimates"]["pass@2"]
    assert (0, 4, 4, None) == tuple(
        told[key] for key in ("tasks", "attempts", "failed", "tokens_per_episode")
    )


# ---------------------------------------------------------------- comparing


def test_a_difference_is_the_mean_over_common_tasks_of_differences() -> None:
    ours = of_outcomes({"a": "11", "b": "10", "only ours": "11"})
    theirs = of_outcomes({"a": "01", "b": "00", "c": "11", "failed": "xx"})
    found = ours.against(theirs)
    assert (2, 1, 1) == (found.tasks, found.only_first, found.only_second)
    assert 0.5 == found.differences["success"].value
    assert (0 + 1) / 2 == found.differences["pass@2"].value  # a: 1 - 1, b: 1 - 0
    assert (1 + 0) / 2 == found.differences["pass^2"].value
    assert found.same_seeds
    assert [
        "Tasks that only x has, which are left out: 1.",
        "Tasks that only y has, which are left out: 1.",
    ] == found.notes("x", "y")


def test_pairing_narrows_a_difference_where_tasks_differ_more_than_policies() -> None:
    rng = np.random.default_rng(0)
    chances = rng.choice([0.05, 0.95], 60)
    rows = {
        name: {f"t{i}": "".join(map(str, rng.binomial(1, p, 8))) for i, p in enumerate(chances)}
        for name in "ab"
    }
    ours, theirs = of_outcomes(rows["a"]), of_outcomes(rows["b"])
    paired = ours.against(theirs).differences["success"]
    alone = ours.estimates["success"]
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_other_seeds_are_told_of() -> None:
    found = of_outcomes({"a": "1"}).against(of_outcomes({"a": "0"}, seed=1))
    assert not found.same_seeds
    assert any("seeded differently" in note for note in found.notes())


def test_evaluations_of_other_tasks_are_not_compared() -> None:
    ours = of_outcomes({"a": "1"})
    with pytest.raises(ConfigError, match="e / test cannot be compared with one on f / test"):
        ours.against(summarize([episode("a", 0)], env="f", split="test", k=1))
    with pytest.raises(ConfigError, match="no task in common"):
        ours.against(of_outcomes({"b": "1"}))


# ---------------------------------------------------------------- evaluating


def test_a_run_is_evaluated_as_it_was_trained_and_the_same_each_time(run) -> None:
    first, again = (isentrope.evaluate(run, split="dev", k=3, tasks=20) for _ in range(2))
    assert (20, 3, 60, 60) == (first.tasks, first.k, len(first.attempts), len(first.episodes))
    assert 0 < first.success < 0.6
    assert first.pass_at[1] <= first.pass_at[2] <= first.pass_at[3]
    assert first == again
    assert first != isentrope.evaluate(str(run.path), split="dev", k=3, tasks=20, seed=1)


def test_seeds_of_attempts_are_what_recorded_results_were_made_with() -> None:
    """Benchmarks keep results by their protocol: other seeds would make them wrong in silence."""
    first, *_, last = requests(["a", "b"], 2, seed=3)
    assert ("a", 0, 1377670501, 6847291320243164419) == (
        first.task, first.rollout, first.seed, first.sampling_seed,
    )  # fmt: skip
    assert ("b", 1, 523692890, 8454220766885468386) == (
        last.task, last.rollout, last.seed, last.sampling_seed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 0}, "k must be a whole number, at least 1; got 0"),
        ({"tasks": 0}, "tasks must be a whole number, at least 1; got 0"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"policy": "runs/nope"}, "neither a run folder nor the folder of a model"),
        ({"env": None}, "env is missing"),
        ({"env": "guss"}, "Did you mean 'guess'"),
        ({"split": "tests"}, "Did you mean 'test'"),
        ({"policy": "tiny-qwen"}, "Did you mean 'tiny-qwen3'"),
        ({"engine": "transformer"}, "Did you mean 'transformers'"),
        ({"rollout": {"temprature": 1.0}}, "Did you mean 'temperature'"),
    ],
)
def test_wrong_names_and_numbers_are_one_sentence(options, told) -> None:
    arguments = {"policy": "tiny-qwen3", "env": "arithmetic", **options}
    with pytest.raises(ConfigError, match=told):
        isentrope.evaluate(arguments.pop("policy"), arguments.pop("env"), **arguments)


def test_a_table_without_an_id_changes_keys_of_the_runs_own(run) -> None:
    plan = Plan.of(run, env={"grading": "answer"}, engine={"max_batch": 7})
    assert ("arithmetic", {"grading": "answer"}) == (plan.env.id, plan.env.config)
    assert 7 == plan.engine.max_batch


def test_an_environment_is_heard_whether_it_says_success_or_not(evaluate) -> None:
    heard, unheard = evaluate(k=2), evaluate(env={"id": f"{__name__}:Parity", "says": False}, k=2)
    assert (True, 0) == (heard.says_success, heard.unjudged)
    assert not unheard.says_success
    assert heard.reward == unheard.reward


# ---------------------------------------------------------------- going on


def interrupted(evaluate, after: int, **options) -> KeyboardInterrupt:
    """Evaluate until so many attempts have ended, and press Ctrl-C."""

    def stop(attempt, done, wanted):
        if done == after:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate(on_attempt=stop, **options)
    return caught.value


def told(evaluate, **options) -> tuple[Evaluation, list[tuple[str, int, int]]]:
    """Evaluate, and return also what the listener was told: task, done, wanted."""
    heard: list[tuple[str, int, int]] = []
    result = evaluate(on_attempt=lambda a, d, w: heard.append((a.task, d, w)), **options)
    return result, heard


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_an_interrupted_evaluation_goes_on_to_the_result_of_an_uninterrupted_one(
    evaluate, tmp_path
) -> None:
    whole = evaluate(k=4, out=tmp_path / "whole")
    stopped = interrupted(evaluate, 9, k=4, out=tmp_path / "parts")
    kept = len(lines(tmp_path / "parts"))
    assert 9 <= kept < 24
    assert [
        f"{kept} of 24 attempts are kept in {tmp_path / 'parts'}; evaluating again goes on with "
        "the others."
    ] == stopped.__notes__
    assert not (tmp_path / "parts" / "result.json").exists()
    assert isentrope.report(tmp_path / "parts").is_file()  # of what there is by now
    so_far = Evaluation.read(tmp_path / "parts")
    assert not so_far.finished
    assert f"It is not finished: the numbers are those of the {kept} attempts" in so_far.notes()[0]
    assert "that one is not finished: evaluating it again goes on." in so_far.against(whole).notes(
        "that one", "the whole"
    )
    resumed = evaluate(k=4, out=tmp_path / "parts")
    assert (24, 24 - kept) == (len(lines(tmp_path / "parts")), len(resumed.episodes))
    assert whole.attempts == resumed.attempts
    assert (tmp_path / "whole" / "result.json").read_text() == (
        tmp_path / "parts" / "result.json"
    ).read_text()


def test_one_that_more_is_added_to_is_not_finished_until_that_is(evaluate, tmp_path) -> None:
    evaluate(k=2, tasks=3, out=tmp_path / "e")
    assert Evaluation.read(tmp_path / "e").finished
    interrupted(evaluate, 9, k=3, out=tmp_path / "e")
    assert not Evaluation.read(tmp_path / "e").finished
    evaluate(k=3, out=tmp_path / "e")
    assert Evaluation.read(tmp_path / "e").finished


def test_a_finished_evaluation_is_only_read(evaluate, tmp_path) -> None:
    first = evaluate(k=2, out=tmp_path / "e")
    before = (tmp_path / "e" / "episodes.jsonl").read_bytes()
    again, heard = told(evaluate, k=2, out=tmp_path / "e")
    assert first.attempts == again.attempts
    assert before == (tmp_path / "e" / "episodes.jsonl").read_bytes()
    assert ((), 12, ("t5", 12, 12)) == (again.episodes, len(heard), heard[-1])


def test_more_attempts_and_more_tasks_add_to_what_is_there(evaluate, tmp_path) -> None:
    few = evaluate(k=2, tasks=3, out=tmp_path / "e")
    more = evaluate(k=3, out=tmp_path / "e")
    assert (6, 18, 12) == (len(few.attempts), len(more.attempts), len(more.episodes))
    assert few.attempts == tuple(
        a for a in more.attempts if a.rollout < 2 and a.task in ("t0", "t1", "t2")
    )
    fewer = evaluate(k=1, tasks=2, out=tmp_path / "e")
    assert (2, 1, ()) == (len(fewer.attempts), fewer.k, fewer.episodes)
    assert (18, 3) == (len(Evaluation.read(tmp_path / "e").attempts), 3)


def test_what_a_kill_left_of_a_line_is_dropped_and_made_again(evaluate, tmp_path) -> None:
    whole = evaluate(k=2, out=tmp_path / "e")
    file = tmp_path / "e" / "episodes.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    again = evaluate(k=2, out=tmp_path / "e")
    assert (whole.attempts, 1, 12) == (again.attempts, len(again.episodes), len(lines(file.parent)))


def test_failed_attempts_are_made_anew_and_the_later_counts(evaluate, tmp_path) -> None:
    flag = tmp_path / "broken"
    flag.touch()
    env = {"id": f"{__name__}:Parity", "broken": str(flag)}
    first = evaluate(env=env, k=2, out=tmp_path / "e")
    assert (4, 4, 12) == (first.failed, first.tasks, len(lines(tmp_path / "e")))
    assert "no server" in next(a.error for a in first.attempts if a.failed)
    flag.unlink()
    second = evaluate(env=env, k=2, out=tmp_path / "e")
    assert (0, 6, 4, 16) == (
        second.failed, second.tasks, len(second.episodes), len(lines(tmp_path / "e")),
    )  # fmt: skip
    assert second.attempts == evaluate(env=env, k=2, out=tmp_path / "e").attempts


def test_a_folder_of_another_evaluation_is_refused_and_the_difference_named(
    evaluate, tmp_path
) -> None:
    evaluate(tasks=1, out=tmp_path / "e")
    with pytest.raises(ConfigError, match=r"rollout.temperature was 1.0, is 0.5.*another `out`"):
        evaluate(tasks=1, out=tmp_path / "e", rollout={"temperature": 0.5})
    with pytest.raises(ConfigError, match=r"seed was 0, is 1"):
        evaluate(tasks=1, out=tmp_path / "e", seed=1)


def test_a_folder_of_something_else_is_refused(evaluate, tmp_path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no evaluation"):
        evaluate(tasks=1, out=tmp_path)


def test_a_line_that_is_no_attempt_is_named(evaluate, tmp_path) -> None:
    evaluate(tasks=1, out=tmp_path / "e")
    with (tmp_path / "e" / "episodes.jsonl").open("a") as file:
        file.write('{"task": "t9"}\n')
    with pytest.raises(ConfigError, match=r"episodes.jsonl, line 2 is no attempt"):
        evaluate(tasks=2, out=tmp_path / "e")


def test_two_processes_do_not_write_to_one_folder(evaluate, tmp_path) -> None:
    result = evaluate(tasks=1, out=tmp_path / "e")
    with (
        EvaluationFolder(tmp_path / "e").writing(dict(result.about), "it"),
        pytest.raises(ConfigError, match="Another process is evaluating into"),
    ):
        evaluate(tasks=1, out=tmp_path / "e")


@contextmanager
def file_size_limited_to(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_what_was_written_is_whole(evaluate, tmp_path) -> None:
    result = evaluate(tasks=2, out=tmp_path / "e")
    file = tmp_path / "e" / "episodes.jsonl"
    full = file.stat().st_size + 30
    with EvaluationFolder(tmp_path / "e").writing(dict(result.about), "it") as append:  # noqa: SIM117
        with (
            file_size_limited_to(full),
            pytest.raises(ConfigError, match=r"cannot be written \(File too large\)"),
        ):
            append(result.attempts[0])
    assert full == file.stat().st_size  # half a line
    assert result.attempts == evaluate(tasks=2, out=tmp_path / "e").attempts


def test_the_placeholders_of_a_folder_are_filled_in(evaluate, tmp_path) -> None:
    result = evaluate(env="arithmetic", tasks=1, out=tmp_path / "{env}-{split}-{key}")
    key = json.loads((result.path / "evaluation.json").read_text())["key"]
    assert tmp_path / f"arithmetic-test-{key}" == result.path


def test_the_key_is_of_all_that_changes_results_and_of_nothing_else(run) -> None:
    model = LanguageModel.load(run.policy)

    def about(env=Parity, split="test", seed=0, **changes):
        plan = Plan.of(run, env, {**HERE, **changes})
        return plan.about(model, plan.tasks(split), split, seed)

    same = about()
    assert same == about(group=4, tasks=9, retries=3, workers={"count": 1})
    others = [
        about(temperature=0.5),
        about(max_tokens=7),
        about(max_turns=3),
        about(seed=1),
        about(env={"id": f"{__name__}:Parity", "offset": 1}),
        about(env="arithmetic"),
        about(env="arithmetic", split="dev"),
    ]
    assert all(same != other for other in others)
    weights = digest(model)
    assert weights == digest(LanguageModel.load(run.policy))
    model.model.config.rms_norm_eps *= 2  # the same weights, and another policy
    assert weights != digest(model)
    model.model.config.rms_norm_eps /= 2
    next(model.model.parameters()).data.view(-1)[0] += 1e-3
    assert weights != digest(model)


def test_a_task_whose_data_changed_is_another_evaluation(run) -> None:
    class Moved(Parity):
        pass

    model = LanguageModel.load(run.policy)
    plan = Plan.of(run, Parity, HERE)
    before = plan.about(model, Parity().tasks["test"], "test", 0)
    after = plan.about(model, Parity(offset=2).tasks["test"], "test", 0)
    assert {"tasks"} == {key for key in before if before[key] != after[key]}


def test_objects_in_a_configuration_count_by_what_they_are_called(run) -> None:
    """Their addresses would make each evaluation another one."""
    model = LanguageModel.load(run.policy)
    tasks = [Task("a", {"solve": print, "limits": {1: float("inf"), "b": object()}})]
    plan = Plan.of(run, isentrope.EnvRef("arithmetic", {"rng": np.random.default_rng}), HERE)
    first, again = (plan.about(model, tasks, "test", 0) for _ in range(2))
    assert first == again == json.loads(json.dumps(first))
    assert first["env"]["config"]["rng"].endswith(":default_rng")


def test_a_model_by_id_is_evaluated_and_kept_too(tmp_path) -> None:
    model = isentrope.component("model", SMALL_MODEL["id"], **{
        key: value for key, value in SMALL_MODEL.items() if key != "id"
    })  # fmt: skip
    result = isentrope.evaluate(
        model, "arithmetic", split="dev", tasks=2, rollout={"max_tokens": 24}, out=tmp_path / "e"
    )
    assert ("tiny-qwen3", result.attempts) == (
        result.policy, Evaluation.read(tmp_path / "e").attempts,
    )  # fmt: skip


# ---------------------------------------------------------------- what a person sees


def printed(show: Callable[[Console], object]) -> str:
    console = Console(record=True, width=120, file=io.StringIO())
    show(console)
    return console.export_text()


def test_the_table_says_what_each_number_is_the_mean_of() -> None:
    text = printed(lambda c: print_evaluation(c, of_outcomes({"a": "10", "b": "1x", "c": "00"})))
    rows = {line.split("\u2502")[1].strip(): line for line in text.splitlines() if "\u2502" in line}
    assert ["success (avg@2)", "reward", "pass@2", "pass^2"] == list(rows)
    cells = [cell.strip() for cell in rows["pass@2"].split("\u2502")]
    assert ("0.500", "2") == (cells[2], cells[4])  # b has but one attempt that did not fail
    assert "1 of 6 attempts failed (1 env_error)" in text


def test_the_table_of_a_mute_environment_has_its_reward_alone() -> None:
    mute = summarize([episode(t, 0, judged=False) for t in "ab"], env="mute", split="test", k=1)
    text = printed(lambda c: print_evaluation(c, mute))
    assert "reward" in text
    assert "success (avg" not in text
    assert "mute never says info['success']" in text


def test_progress_is_told_line_by_line_where_there_is_no_terminal(monkeypatch) -> None:
    monkeypatch.setattr(scoreboard, "_SECONDS", -1.0)
    attempts = of_outcomes({"a": "10", "b": "x1"}).attempts

    def show(console: Console) -> None:
        with scoreboard.EvaluationView(console) as view:
            for done, attempt in enumerate(attempts, start=1):
                view(attempt, done, 4)

    assert [
        "1 of 4 attempts  success 1.000",
        "2 of 4 attempts  success 0.500",
        "3 of 4 attempts  success 0.500  1 failed",
        "4 of 4 attempts  success 0.667  1 failed",
    ] == printed(show).splitlines()


# ---------------------------------------------------------------- the command line


def command(*arguments: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "isentrope", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_keeps_an_evaluation_in_the_runs_folder_and_goes_on(run, tmp_path) -> None:
    first = command("eval", run.path, "--split", "dev", "--tasks", 3, "--k", 2, cwd=tmp_path)
    assert (0, "") == (first.returncode, first.stderr)
    (folder,) = (run.path / "evals").iterdir()
    assert folder.name.startswith("arithmetic-dev-")
    assert {"evaluation.json", "episodes.jsonl", "result.json", "report.html"} <= {
        file.name for file in folder.iterdir()
    }
    told = json.loads((folder / "result.json").read_text())
    assert (3, 6, 0) == (told["tasks"], told["attempts"], told["failed"])
    mean = told["estimates"]["success"]
    assert f"{mean['value']:.3f}" in first.stdout
    assert f"{mean['low']:.3f} to {mean['high']:.3f}" in first.stdout
    more = command("eval", run.path, "--split", "dev", "--tasks", 3, "--k", 4, cwd=tmp_path)
    assert [folder] == [*(run.path / "evals").iterdir()]
    assert "pass^4" in more.stdout
    assert 12 == len(lines(folder))


@pytest.mark.slow
def test_the_command_compares_evaluations_task_by_task(run, tmp_path) -> None:
    for name, temperature in (("warm", 1.0), ("cold", 0.2)):
        done = command(
            "eval", run.path, "--split", "dev", "--tasks", 4, "--k", 2, "--out", name,
            "--set", f"rollout.temperature={temperature}", cwd=tmp_path,
        )  # fmt: skip
        assert (0, "") == (done.returncode, done.stderr)
    done = command("compare", "warm", "cold", cwd=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert "cold minus warm: 4 common tasks" in done.stdout
    warm, cold = (Evaluation.read(tmp_path / name) for name in ("warm", "cold"))
    expected = cold.against(warm).differences["pass@2"]
    assert f"{expected.value:+.3f}" in done.stdout
    mixed = command("compare", "warm", run.path, cwd=tmp_path)
    assert (2, True) == (mixed.returncode, "runs or evaluations, and not both" in mixed.stderr)


ENV = """
import time
from isentrope import Task, TaskSet, TextEnv

class Slow(TextEnv):
    def __init__(self, fail=False):
        self.tasks = TaskSet({"test": [Task(f"t{i}") for i in range(40)]})
        self.fail = fail

    def reset(self, *, seed=None, options=None):
        if self.fail:
            raise RuntimeError("no server")
        return "Solve x=2", super().reset(seed=seed, options=options)[1]

    def step(self, action):
        time.sleep(0.3)
        return "", 0.0, True, False, {"success": False}
"""


@pytest.mark.slow
def test_ctrl_c_and_a_kill_keep_what_is_done(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "slowly.py").write_text(ENV)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    arguments = ["eval", run.path, "--env", "slowly:Slow", "--out", "e", "--set"]
    arguments += ["rollout.workers.count=2"]
    kept = tmp_path / "e" / "episodes.jsonl"
    for number, least in ((signal.SIGINT, 8), (signal.SIGKILL, 16)):
        process = subprocess.Popen(
            [sys.executable, "-m", "isentrope", *map(str, arguments)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        until = time.monotonic() + 90
        while not kept.exists() or len(kept.read_bytes().splitlines()) < least:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert (130 if number == signal.SIGINT else -signal.SIGKILL) == process.returncode
        assert ("of 40 attempts are kept in e" in output) == (number == signal.SIGINT)
        assert "Traceback" not in output
    done = command(*arguments, cwd=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert 40 == len(lines(tmp_path / "e"))
    assert 40 == len({line["task"] for line in lines(tmp_path / "e")})


@pytest.mark.slow
def test_where_every_attempt_failed_the_command_fails_and_says_why(
    run, tmp_path, monkeypatch
) -> None:
    (tmp_path / "slowly.py").write_text(ENV)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    done = command(
        "eval", run.path, "--env", "slowly:Slow", "--tasks", 2, "--set", "env.fail=true",
        "--out", "e", cwd=tmp_path,
    )  # fmt: skip
    assert 1 == done.returncode
    assert "2 of 2 attempts failed (2 env_error)" in done.stdout
    assert "RuntimeError: no server" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "rollut.temperature=1"], "Did you mean 'rollout'?"),
        (["--set", "rollout=1"], "rollout: must be a table with keys"),
        (["--set", "rollout.workers=1", "--set", "rollout.workers.count=2"], "rollout"),
        (["--set", "rollout.temprature=1"], "Did you mean 'temperature'?"),
        (["--lm-eval", "gsm8k", "--k", "4"], "lm-eval has tasks and attempts of its own"),
    ],
)
def test_a_wrong_setting_is_one_sentence(run, tmp_path, arguments, told) -> None:
    done = command("eval", run.path, *arguments, cwd=tmp_path)
    assert (2, 1) == (done.returncode, len(done.stderr.strip().splitlines()))
    assert told in done.stderr
