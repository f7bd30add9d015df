"""Stopping, killing and resuming: a run goes on as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import tomli_w

import isentrope
from isentrope import ConfigError, Run, TrainingError
from isentrope.seeding import derive
from tests.conftest import MEASURED, SMALL_MODEL

ITERATIONS = 6
TINY = {
    "env": "arithmetic",
    "iterations": ITERATIONS,
    "checkpoint_every": 2,
    "evaluation": {"every": 2, "k": 2, "tasks": 8},
    "algorithm": {"recipe": "repo-r", "minibatch": 16},
    "model": SMALL_MODEL,
    "rollout": {"tasks": 4, "group": 8, "max_tokens": 24},
}


def left_behind(run: Run) -> tuple[object, ...]:
    """All that a run comes to, apart from the clock's readings."""
    policies = [(p / "model.safetensors").read_bytes() for p in (run.policy, run.best)]
    tokens = {path.name: path.read_bytes() for path in (run.path / "tokens").iterdir()}
    return lasting(run), run.episodes, tokens, policies


def lasting(run: Run) -> list[dict[str, object]]:
    """Metrics without the clock's."""
    return [{k: v for k, v in m.items() if not k.startswith(MEASURED)} for m in run.metrics]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Run:
    return isentrope.train(TINY, out=tmp_path_factory.mktemp("whole") / "run")


def command(tmp_path: Path, *arguments: object) -> list[str]:
    config = tmp_path / "config.toml"
    config.write_text(tomli_w.dumps(TINY))
    return [sys.executable, "-m", "isentrope", "train", *map(str, arguments or (config,))]


def start(tmp_path: Path, *settings: str, **options) -> tuple[subprocess.Popen[str], Path]:
    folder = tmp_path / "run"
    changes = [part for setting in settings for part in ("--set", setting)]
    process = subprocess.Popen(
        [*command(tmp_path), "--out", str(folder), *changes],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    return process, folder


def wait_for_lines(folder: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4.0}])
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, lora) -> None:
    options = {**TINY, "learner": {"lora": lora} if lora else {}}
    whole = isentrope.train(options, out=tmp_path / "whole")
    run = isentrope.train(options, out=tmp_path / "parts", iterations=3)
    resumed = isentrope.train(resume=run, iterations=ITERATIONS)
    assert left_behind(whole) == left_behind(resumed)


@pytest.mark.parametrize("lines", [1, 3, 5])
def test_a_run_killed_anywhere_resumes_to_the_same_end(tmp_path, uninterrupted, lines) -> None:
    process, folder = start(tmp_path)
    wait_for_lines(folder, lines, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = isentrope.train(resume=folder)
    assert left_behind(uninterrupted) == left_behind(resumed)


def test_a_kill_while_a_checkpoint_is_written_resumes_to_the_same_end(
    tmp_path, uninterrupted
) -> None:
    for attempt in range(5):  # a busy machine may look away from all six checkpoints of a run
        (tmp_path / str(attempt)).mkdir()
        process, folder = start(tmp_path / str(attempt), "checkpoint_every=1")
        while process.poll() is None and not list(folder.glob("checkpoints/.draft-0*")):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        if list(folder.glob("checkpoints/.draft-0*")):
            break
    else:
        pytest.fail("no checkpoint was caught being written")
    assert left_behind(uninterrupted) == left_behind(isentrope.train(resume=folder))
    assert all(name.isdigit() for name in os.listdir(folder / "checkpoints"))


def test_a_kill_inside_a_checkpoint_leaves_the_one_before(tmp_path, uninterrupted) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=3)
    draft = run.checkpoints / ".draft-killed"  # what a kill between write and rename leaves
    draft.mkdir()
    (draft / "__0_0.distcp").write_bytes(b"half of it")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "rew')  # and half a line
    assert left_behind(uninterrupted) == left_behind(
        isentrope.train(resume=run, iterations=ITERATIONS)
    )


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "unread"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    tmp_path, uninterrupted, damage
) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=5)
    older, newest = sorted(p for p in run.checkpoints.iterdir())
    assert ("00000004", "00000005") == (older.name, newest.name)
    victim = newest / "__0_0.distcp"
    content = victim.read_bytes()
    if damage == "truncate":
        victim.write_bytes(content[:-7])
    elif damage == "flip":
        victim.write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])
    elif damage == "remove":
        victim.unlink()
    else:
        (newest / "sha256.json").write_text("{")
    with pytest.warns(UserWarning, match=r"00000005 is damaged .* Going on from 00000004"):
        resumed = isentrope.train(resume=run, iterations=ITERATIONS)
    assert left_behind(uninterrupted) == left_behind(resumed)


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=2)
    for victim in run.checkpoints.glob("*/__0_0.distcp"):
        victim.write_bytes(b"")
    with pytest.raises(TrainingError, match="None is left to resume from"):
        isentrope.train(resume=run, iterations=ITERATIONS)
    assert 2 == len(run.metrics)


@pytest.mark.parametrize("sums", ["[]", "null", "{"])
def test_a_checkpoint_whose_sums_are_damaged_is_passed_over(tmp_path, uninterrupted, sums) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=4)
    newest = max(run.checkpoints.iterdir())
    (newest / "sha256.json").write_text(sums)
    (run.checkpoints / ".draft-file").write_text("left by somebody")
    (run.checkpoints / "00000099").write_text("no folder")
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        resumed = isentrope.train(resume=run, iterations=ITERATIONS)
    assert left_behind(uninterrupted) == left_behind(resumed)


def test_where_checkpoints_are_gone_nothing_is_overwritten(tmp_path) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=5)
    before = run.metrics
    shutil.rmtree(run.checkpoints)
    with pytest.raises(TrainingError, match="no checkpoint, though 5 iterations are recorded"):
        isentrope.train(resume=run, iterations=ITERATIONS)
    assert before == run.metrics


def test_a_run_cannot_be_shortened_below_what_it_has(tmp_path) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=2)
    with pytest.raises(ConfigError, match="has 2 iterations already; got iterations = 1"):
        isentrope.train(resume=run, iterations=1)
    assert 2 == run.config.iterations


def test_ctrl_c_stops_at_the_iterations_end_and_says_how_to_go_on(tmp_path, uninterrupted) -> None:
    process, folder = start(tmp_path)
    wait_for_lines(folder, 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert 130 == process.returncode
    assert "Stopping at the end of this iteration" in err
    assert f"isentrope train --resume {folder}" in out.replace("\n", " ")
    assert "Traceback" not in err
    done = len(Run(folder).metrics)
    assert 1 <= done < ITERATIONS
    assert left_behind(uninterrupted) == left_behind(isentrope.train(resume=folder))


@attrs.frozen
class AskedToStop:
    """A model whose first build meets a SIGTERM."""

    met: ClassVar[list[int]] = []

    def build(self, env: isentrope.EnvRef) -> isentrope.LanguageModel:
        if not self.met:
            self.met.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        fields = {key: value for key, value in SMALL_MODEL.items() if key != "id"}
        return isentrope.component("model", "tiny-qwen3", **fields).build(env)


def test_a_signal_before_the_first_iteration_waits_for_none(tmp_path, capsys) -> None:
    run = isentrope.train({**TINY, "model": AskedToStop()}, out=tmp_path / "run")
    assert "Stopping at the end of this iteration, or before the first" in capsys.readouterr().err
    assert [] == run.metrics
    assert isentrope.report(run).is_file()
    assert 1 == len(isentrope.train(resume=run, iterations=1).metrics)


def test_ctrl_c_twice_stops_at_once_and_loses_no_checkpoint(tmp_path, uninterrupted) -> None:
    process, folder = start(tmp_path)
    wait_for_lines(folder, 2, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert 130 == process.returncode
    assert "Traceback" not in err
    assert left_behind(uninterrupted) == left_behind(isentrope.train(resume=folder))


def test_a_full_disk_is_one_sentence_and_what_was_written_is_whole(tmp_path, uninterrupted) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process, folder = start(tmp_path, preexec_fn=small_files)
    _, err = process.communicate(timeout=90)
    assert 3 == process.returncode
    assert "Traceback" not in err
    assert f"Run folder {folder} cannot be written" in err
    assert f"--resume {folder}" in err
    assert len(Run(folder).metrics) < ITERATIONS
    assert left_behind(uninterrupted) == left_behind(isentrope.train(resume=folder))


def test_two_processes_cannot_train_in_one_folder(tmp_path) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=1)
    with run.locked(), pytest.raises(ConfigError, match="Another process is training"):
        isentrope.train(resume=run, iterations=2)
    assert 1 == len(run.metrics)
    assert 1 == run.config.iterations  # the other process's configuration was left alone


def test_a_run_of_another_format_is_refused_with_both_versions(tmp_path) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=1)
    about = json.loads((run.path / "run.json").read_text())
    assert f"isentrope {isentrope.__version__}" == about["environment"]
    about["format"], about["packages"]["isentrope"] = 99, "9.0"
    (run.path / "run.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"format 99, written by isentrope 9\.0.*reads format 1"):
        isentrope.train(resume=run.path)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"learner": {"lr": 1e-3}}])
def test_resuming_refuses_to_be_another_run(tmp_path, changes) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=1)
    with pytest.raises(ConfigError, match="only `iterations` and `trackers` may be changed"):
        isentrope.train(resume=run, **changes)


def test_resuming_what_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        isentrope.train(resume=tmp_path)


def test_evaluations_are_recorded_and_the_best_policy_is_kept(uninterrupted) -> None:
    scores = {
        m["iteration"]: m["eval/success"] for m in uninterrupted.metrics if "eval/success" in m
    }
    assert {1, 3, 5} == set(scores)
    assert all(m["eval/pass@1"] <= m["eval/pass@2"] for m in uninterrupted.metrics[1::2])
    best = isentrope.evaluate(
        isentrope.component("model", "pretrained", path=str(uninterrupted.best)),
        "arithmetic", split="dev", k=2, tasks=8, rollout={"max_tokens": 24},
        seed=derive(0, "evaluation"),
    )  # fmt: skip
    assert max(scores.values()) == best.success
    entropies = [m["entropy"] for m in uninterrupted.metrics]
    assert pytest.approx(sum(entropies)) == uninterrupted.cumulative_entropy


def test_a_second_task_starts_from_the_best_policy_with_its_own_entropy(
    tmp_path, uninterrupted
) -> None:
    options = {**TINY, "env": "guess", "iterations": 1, "evaluation": None}
    del options["model"]
    second = isentrope.train(options, init=uninterrupted.best, out=tmp_path / "second")
    kept = isentrope.train(
        options, init=uninterrupted.best, out=tmp_path / "kept", initial_entropy=0.5
    )
    (own,), (held,) = second.metrics, kept.metrics
    assert own["entropy"] == own["entropy_target"] == held["entropy"]
    assert 0.5 == held["entropy_target"]
    assert str(uninterrupted.best) == second.config.model.path


EXACT = {"entropy_ladder": {"target": {"estimator": "exact"}}}
SCHEDULED = {"id": "schedule", "knob": "objective.eps_high", "schedule": [[1, 0.3], [3, 0.1]]}
CONTROLLED = {
    "adapo": ({"recipe": "adapo"}, "objective.eps_high"),
    "grpo-bonus": ({"recipe": "grpo-bonus"}, "entropy_bonus.coef"),
    "repo-d": ({"recipe": "repo-d"}, "repo_d.zeta"),
    "repo-r, exact": ({"recipe": "repo-r", **EXACT}, "repo_r.zeta"),
    "schedule": ({"recipe": "grpo", "controllers": [SCHEDULED]}, "objective.eps_high"),
    "repo-d on dapo, exact": ({"recipe": "repo-d", "on": "dapo", **EXACT}, "repo_d.zeta"),
}
SHORT = {
    **{k: v for k, v in TINY.items() if k not in ("algorithm", "evaluation")},
    "iterations": 4,
    "checkpoint_every": 10,
    "learner": {"lr": 3e-3},
}


@pytest.mark.parametrize(
    "case",
    [
        case if case == "repo-r, exact" else pytest.param(case, marks=pytest.mark.slow)
        for case in CONTROLLED
    ],
)
def test_a_controller_stopped_in_mid_flight_goes_on_where_it_was(tmp_path, case) -> None:
    algorithm, knob = CONTROLLED[case]
    options = {**SHORT, "algorithm": {**algorithm, "minibatch": 16}}
    whole = isentrope.train(options, out=tmp_path / "whole")
    run = isentrope.train(options, out=tmp_path / "parts", iterations=2)
    (folder,) = run.checkpoints.iterdir()
    state = json.loads((folder / "progress.json").read_text())["state"]
    first, second = run.metrics
    exact = first["entropy_exact"]
    assert (case in ("adapo", "schedule")) == (exact is None)
    assert (first["entropy"], exact) == (state["initial_entropy"], state["initial_exact_entropy"])
    assert second[knob] == state["knobs"][knob]
    resumed = isentrope.train(resume=run, iterations=4)
    assert (lasting(whole), whole.episodes) == (lasting(resumed), resumed.episodes)
    policies = [(r.policy / "model.safetensors").read_bytes() for r in (whole, resumed)]
    assert policies[0] == policies[1]
    assert 1 < len({m[knob] for m in resumed.metrics})  # it did move


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_a_kept_initial_entropy_is_the_target_by_either_estimator(tmp_path, estimator) -> None:
    target = {"of_initial": 0.5, "estimator": estimator}
    algorithm = {"recipe": "repo-r", "minibatch": 16, "entropy_ladder": {"target": target}}
    options = {**SHORT, "algorithm": algorithm, "initial_entropy": 3.0}
    run = isentrope.train(options, out=tmp_path / "run", iterations=1)
    resumed = isentrope.train(resume=run, iterations=2)
    held = "entropy_exact_target" if estimator == "exact" else "entropy_target"
    assert [1.5, 1.5] == [m[held] for m in resumed.metrics]
    assert [0.02, 0.04] == [m["repo_r.zeta"] for m in resumed.metrics]  # all entropies are below
    assert all(m["entropy"] < 1.5 for m in resumed.metrics)
    assert (estimator == "exact") == all(m["entropy_exact"] for m in resumed.metrics)
    state = json.loads((resumed.checkpoints / "00000002" / "progress.json").read_text())["state"]
    assert (3.0, 3.0) == (state["initial_entropy"], state["initial_exact_entropy"])


def test_an_initial_entropy_of_zero_is_kept(tmp_path) -> None:
    algorithm = {"recipe": "repo-r", "minibatch": 16}
    options = {**SHORT, "algorithm": algorithm, "initial_entropy": 0.0, "iterations": 1}
    (metrics,) = isentrope.train(options, out=tmp_path / "run").metrics
    assert (0.0, -0.01) == (metrics["entropy_target"], metrics["repo_r.zeta"])


def test_a_run_without_evaluation_has_no_best_and_says_so(tmp_path) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=1)
    with pytest.raises(ConfigError, match="has no best policy"):
        _ = run.best


def test_a_finished_run_resumed_is_finished(tmp_path) -> None:
    run = isentrope.train(TINY, out=tmp_path / "run", iterations=2)
    before = left_behind(run)
    assert before == left_behind(isentrope.train(resume=run))
    assert {"00000002"} == set(os.listdir(run.checkpoints))
