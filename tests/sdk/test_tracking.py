"""Trackers: what they are told, and that nothing they do reaches the run."""

from __future__ import annotations

import json
import math
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import isentrope
from isentrope import ConfigError, Run, TrackedRun, UnknownNameError, tracking
from isentrope.config import parse_settings, read_config, read_toml
from isentrope.tracking import Tracking
from tests.conftest import MEASURED
from tests.sdk.observers import Notes, RewindingNotes, Rogue, Wanting
from tests.sdk.test_loop import lasting
from tests.sdk.test_ranks import train as train_on_ranks
from tests.sdk.test_resume import TINY, start, wait_for_lines

NOTES, REWINDING = "tests.sdk.observers:Notes", "tests.sdk.observers:RewindingNotes"
CONFIG = read_config({"env": "arithmetic", "algorithm": "grpo"})
STEPS = ("start", "log", "close")


def notes(run: Path, tracker: str = NOTES) -> list[dict[str, Any]]:
    folder = run / "trackers" / tracker.replace(".", "-").replace(":", "-")
    return [json.loads(line) for line in (folder / "notes.jsonl").read_text().splitlines()]


def iterations(told: list[dict[str, Any]]) -> list[int]:
    return [note["iteration"] for note in told if "iteration" in note]


def track(
    folder: Path, *trackers: Any, first: int = 0, last: int = 3, error: RuntimeError | None = None
) -> Tracking:
    """Tell trackers of iterations as a run does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_MARGIN", 1.0)
        with suppress(RuntimeError), Tracking(folder, CONFIG, trackers) as told:
            told.start(first)
            for i in range(first, last):
                told.metrics()
                told.log({"iteration": i, "reward": i / 2})
            if error is not None:
                raise error
    return told


# ---------------------------------------------------------------- composition


def test_trackers_are_the_same_from_python_toml_and_the_command_line(tmp_path: Path) -> None:
    base = {"env": "arithmetic", "algorithm": "grpo"}
    table = {"id": "wandb", "project": "p"}
    (tmp_path / "c.toml").write_text('trackers = ["tensorboard", {id = "wandb", project = "p"}]')
    settings = parse_settings(['trackers=["tensorboard", {id = "wandb", project = "p"}]'])
    made = [
        read_config({**base, "trackers": ["tensorboard", table]}),
        read_config({**base, **read_toml(tmp_path / "c.toml")}),
        read_config(base, settings),
        read_config({**base, "trackers": [isentrope.component("tracker", "tensorboard"), table]}),
    ]
    assert all(made[0] == other for other in made[1:])
    assert ["TensorBoard", "Wandb"] == [type(t).__name__ for t in made[0].trackers]
    assert () == read_config(base).trackers
    assert (
        made[0].trackers[:1] == read_config(base, parse_settings(["trackers=tensorboard"])).trackers
    )


@pytest.mark.parametrize(
    ("trackers", "error", "told"),
    [
        ("wandbb", UnknownNameError, "trackers: The tracker 'wandbb' does not exist. Did you mean"),
        ({"id": "wandb", "projct": "p"}, UnknownNameError, "Did you mean 'project'"),
        ({"id": "wandb", "project": 3}, ConfigError, "project: must be a string"),
        ({"id": "wandb", "project": ""}, ConfigError, "not empty"),
        (["trackio", "trackio"], ConfigError, "trackers names 'trackio' 2 times"),
        (Wanting(), ConfigError, "trackers: The tracker 'wanting' wants for much"),
        ("collections:Counter", isentrope.PluginError, "TrackerConfig"),
    ],
)
def test_a_tracker_that_cannot_be_is_an_error_before_anything_is_loaded(
    tiny_run, trackers, error, told
) -> None:
    with pytest.raises(error, match=told):
        isentrope.train(**tiny_run, trackers=trackers)
    assert not tiny_run["out"].exists()


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "tensorboard"])
def test_a_library_that_is_not_there_is_one_sentence_with_what_to_install(
    tiny_run, name, monkeypatch
) -> None:
    monkeypatch.setattr("isentrope_plugins.trackers.keeping.find_spec", lambda _: None)
    extra = "tensorboardX" if name == "tensorboard" else rf"isentrope\[{name}\]"
    with pytest.raises(ConfigError, match=f"is not installed: pip install '{extra}'"):
        isentrope.train(**tiny_run, trackers=name)


def test_a_tracker_that_no_other_process_can_import_is_refused(tiny_run) -> None:
    class Local(Notes):
        pass

    with pytest.raises(ConfigError, match="move it into a module, or use on_iteration"):
        isentrope.train(**tiny_run, trackers=[Local()])


# ---------------------------------------------------------------- what they are told


def test_a_tracker_is_told_of_the_run_of_each_iteration_and_of_the_end(tiny_run) -> None:
    run = isentrope.train(**tiny_run, trackers=NOTES, evaluation={"every": 3, "k": 2, "tasks": 8})
    begin, *told, end = notes(run.path)
    assert (0, "run") == (begin["start"], begin["name"])
    assert 24 == begin["config"]["rollout.max_tokens"]
    assert {"failed": False} == end
    assert [0, 1, 2] == iterations(told)
    for note, recorded in zip(told, run.metrics, strict=True):
        numbers = {k: v for k, v in recorded.items() if isinstance(v, (int, float))}
        del numbers["iteration"]
        assert numbers == {k: v for k, v in note["metrics"].items() if math.isfinite(v)}
    assert "eval/success" in told[2]["metrics"]
    assert [0, 0, 0] == [m["trackers/failed"] for m in run.metrics]


def test_none_and_sentences_are_left_out_and_nan_is_handed_on(tmp_path: Path) -> None:
    with Tracking(tmp_path, CONFIG, [Notes()]) as told:
        told.start(0)
        told.log({"iteration": 0, "a": None, "b": math.nan, "c": "stop", "d": 2, "e": math.inf})
    metrics = notes(tmp_path)[1]["metrics"]
    assert ["b", "d", "e"] == list(metrics)
    assert math.isnan(metrics["b"])
    assert (2, math.inf) == (metrics["d"], metrics["e"])


def test_the_flat_config_has_dotted_paths_and_nothing_that_is_none() -> None:
    config = {"a": {"b": 1, "c": None}, "d": [{"e": "x"}, {"e": True}], "f": []}
    run = TrackedRun(name="r", folder=Path(), config=config, iteration=0)
    assert {"a.b": 1, "d.0.e": "x", "d.1.e": True} == run.flat_config


def test_a_run_that_failed_is_told_as_one(tmp_path: Path) -> None:
    track(tmp_path, Notes(), error=RuntimeError())
    assert {"failed": True} == notes(tmp_path)[-1]


# ---------------------------------------------------------------- going on


def test_a_run_that_goes_on_is_told_without_doubles(tmp_path: Path) -> None:
    for first, last in ((0, 5), (3, 7)):
        track(tmp_path, Notes(), RewindingNotes(), first=first, last=last)
    assert [0, 1, 2, 3, 4, 5, 6] == iterations(notes(tmp_path))
    assert [0, 5] == [note["start"] for note in notes(tmp_path) if "start" in note]
    assert [0, 1, 2, 3, 4, 3, 4, 5, 6] == iterations(notes(tmp_path, REWINDING))
    assert [0, 3] == [n["start"] for n in notes(tmp_path, REWINDING) if "start" in n]


def test_a_run_that_was_killed_goes_on_in_the_same_tracked_run(tmp_path: Path) -> None:
    process, folder = start(tmp_path, f"trackers={NOTES}")
    wait_for_lines(folder, 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = isentrope.train(resume=folder)
    told = notes(folder)
    assert list(range(TINY["iterations"])) == iterations(told)
    assert [True, False] == [note["failed"] for note in told if "failed" in note]
    assert TINY["iterations"] == len(run.metrics)


def test_a_run_may_go_on_with_other_trackers(tiny_run) -> None:
    run = isentrope.train(**{**tiny_run, "iterations": 1}, trackers=NOTES)
    isentrope.train(resume=run, iterations=2, trackers=REWINDING)
    assert [0] == iterations(notes(run.path))
    assert [1] == iterations(notes(run.path, REWINDING))
    assert ["RewindingNotes"] == [type(t).__name__ for t in run.config.trackers]


@pytest.mark.slow
def test_of_two_ranks_the_first_alone_has_a_tracker(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(tomli_w.dumps({**TINY, "iterations": 2, "trackers": [NOTES]}))
    train_on_ranks(2, tmp_path, config, "--out", tmp_path / "run")
    begin, *told = notes(tmp_path / "run")
    assert "0" == begin["rank"]
    assert [0, 1] == iterations(told)
    assert [0, 0] == [m["trackers/failed"] for m in Run(tmp_path / "run").metrics]


# ---------------------------------------------------------------- isolation


@pytest.mark.parametrize("how", ["raise", "exit", "die"])
@pytest.mark.parametrize("at", STEPS)
def test_a_tracker_that_fails_is_warned_of_once_and_no_other_is_the_worse(
    tmp_path: Path, at: str, how: str
) -> None:
    reason = {
        "raise": "it raised RuntimeError: the network is gone.",
        "exit": "it raised SystemExit: enough.",
        "die": "its process ended with status 7.",
    }[how]
    with pytest.warns(UserWarning, match="is left out") as warned:
        told = track(tmp_path, Rogue(at, how), Notes())
    assert 1 == len(warned) == told.failed
    known = {"start": 0, "log": 1, "close": 3}[at]
    assert f"left out from now on, with {known} iterations tracked: {reason}" in str(
        warned[0].message
    )
    assert [0, 1, 2] == iterations(notes(tmp_path))
    log = tmp_path / "trackers" / "tests-sdk-observers-Rogue.log"
    assert ("Traceback" in log.read_text()) == (how != "die")


def test_a_failure_is_counted_in_the_metrics_from_when_it_is_known(tmp_path: Path) -> None:
    counted = []

    def run() -> None:
        deadline = time.monotonic() + 30
        with Tracking(tmp_path, CONFIG, [Rogue("start")]) as told:
            told.start(0)
            while counted[-1:] != [1] and time.monotonic() < deadline:
                counted.append(told.metrics()["trackers/failed"])
                told.log({"iteration": len(counted)})
            counted.append(told.metrics()["trackers/failed"])

    with pytest.warns(UserWarning, match="is left out") as warned:
        run()
    assert 1 == len(warned)
    assert 0 == counted[0]
    assert [1, 1] == counted[-2:]


@pytest.mark.parametrize("at", STEPS)
def test_a_tracker_that_hangs_for_a_moment_holds_nothing_up_and_loses_nothing(
    tmp_path: Path, at: str
) -> None:
    with Tracking(tmp_path, CONFIG, [Rogue(at, "hang", 2.0)]) as told:
        begun = time.monotonic()
        told.start(0)
        for i in range(200):  # more than the pipe holds
            told.log({"iteration": i, **{f"metric-{n}": 0.5 for n in range(100)}})
        assert time.monotonic() - begun < 1.5
    found = notes(tmp_path, "tests.sdk.observers:Rogue")
    assert list(range(200)) == iterations(found)
    assert 0 == told.failed


@pytest.mark.parametrize("at", STEPS)
def test_a_tracker_that_hangs_for_good_is_given_up_some_time_after_the_end(
    tmp_path: Path, at: str, monkeypatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)
    begun = time.monotonic()
    with pytest.warns(UserWarning, match="it had not finished 1 s after the run's end"):
        track(tmp_path, Rogue(at, "hang"), Notes())
    assert time.monotonic() - begun < 8
    assert [0, 1, 2] == iterations(notes(tmp_path))


@pytest.mark.parametrize("for_good", [False, True])
def test_a_process_that_stands_still_is_not_waited_for_while_the_run_lasts(
    tmp_path: Path, monkeypatch, for_good: bool
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 1.0 if for_good else 60.0)
    monkeypatch.setattr(tracking, "_MARGIN", 0.5)

    def run() -> None:
        with Tracking(tmp_path, CONFIG, [Notes()]) as told:
            told.start(0)
            process = told._at_work[0]._process
            assert process is not None
            process.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            for i in range(200):  # more than the pipe holds
                told.log({"iteration": i, **{f"metric-{n}": 0.5 for n in range(100)}})
            assert time.monotonic() - begun < 1
            if not for_good:
                process.send_signal(signal.SIGCONT)

    if for_good:
        with pytest.warns(UserWarning, match="it had not finished 1 s after the run's end"):
            run()
        return
    run()
    assert list(range(200)) == iterations(notes(tmp_path))


def test_whatever_trackers_do_a_run_comes_to_the_same_to_the_bit(tiny_run, capfd) -> None:
    out = tiny_run.pop("out")
    plain = isentrope.train(**tiny_run, out=out / "plain")
    capfd.readouterr()
    meddler = {"id": "tests.sdk.observers:Rogue", "how": "meddle"}
    tracked = isentrope.train(**tiny_run, out=out / "tracked", trackers=[meddler, NOTES])
    assert lasting(plain.metrics) == lasting(tracked.metrics)
    assert plain.episodes == tracked.episodes
    weights = [(run.policy / "model.safetensors").read_bytes() for run in (plain, tracked)]
    assert weights[0] == weights[1]
    assert "trackers/failed" in tracked.metrics[0]
    assert "trackers/failed".startswith(MEASURED)


def test_what_a_tracker_prints_goes_to_its_log(tmp_path: Path, capfd) -> None:
    track(tmp_path, Rogue("log", "print"))
    assert ("", "") == capfd.readouterr()
    log = tmp_path / "trackers" / "tests-sdk-observers-Rogue.log"
    assert "x" * 1_000_000 + "\n" == log.read_text()


def test_a_run_whose_tracker_cannot_even_be_started_goes_on(tmp_path: Path) -> None:
    (tmp_path / "trackers").write_text("in the way")
    with pytest.warns(UserWarning, match="it cannot be started"):
        told = track(tmp_path, Notes())
    assert 1 == told.failed
