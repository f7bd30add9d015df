"""What the libraries themselves have of a run, offline; run where they are (test_trackers).

The run is told in two parts: five iterations, then from iteration 3 on again, as after a kill.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isentrope import component
from isentrope.config import TrainConfig, read_config
from isentrope.structuring import unstructure
from isentrope.tracking import Tracking, check_trackers

REWOUND, END = 3, 7


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)


def metrics(iteration: int, part: int) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "reward": iteration + 100.0 * part,
        "groups": iteration,
        "repo_r.zeta": 0.5,
        "mismatch_max": 1.0,
        "mismatch_max/128": math.nan,
        "eval/pass@8": 0.25,
        "entropy_target": None,
        "stopped": "a sentence",
    }


def tell(folder: Path, name: str) -> TrainConfig:
    tracker = component("tracker", name)
    config = read_config({"env": "arithmetic", "algorithm": "repo-r", "trackers": [tracker]})
    check_trackers(config.trackers)
    for part, (first, last) in enumerate(((0, 5), (REWOUND, END))):
        with Tracking(folder, config, config.trackers) as told:
            told.start(first)
            for i in range(first, last):
                told.log(metrics(i, part))
        log = (folder / "trackers" / f"{name}.log").read_text()
        assert 0 == told.failed, log
        assert "Traceback" not in log
    return config


ONCE = [(i, float(i) if i < 5 else i + 100.0) for i in range(END)]
"""What a tracker has that keeps what it was told first."""


def test_tensorboard_drops_what_is_told_again_and_groups_by_prefix(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    tell(tmp_path, "tensorboard")
    read = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"))
    read.Reload()
    assert {
        "run/reward", "run/groups", "repo_r/repo_r.zeta", "run/mismatch_max", "mismatch_max/128",
        "eval/pass_8",
    } == set(read.Tags()["scalars"])  # fmt: skip
    rewound = [(i, float(i) if i < REWOUND else i + 100.0) for i in range(END)]
    assert rewound == [(e.step, e.value) for e in read.Scalars("run/reward")]
    assert all(math.isnan(e.value) for e in read.Scalars("mismatch_max/128"))
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    parameters = parse_session_start_info_plugin_data(content).hparams
    assert 8 == parameters["rollout.group"].number_value
    assert "arithmetic" == parameters["env.id"].string_value


def wandb_records(file: Path) -> Iterator[Any]:
    """Read W&B's offline file: leveldb's log format after 7 bytes, of records of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if left < 7 or kind == 0:
            at += left
            continue
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_one_run_with_each_iteration_once(tmp_path: Path) -> None:
    import json

    config = tell(tmp_path, "wandb")
    files = sorted(tmp_path.glob("trackers/wandb/wandb/offline-run-*/*.wandb"))
    records = [r for file in files for r in wandb_records(file)]
    runs = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert {(tmp_path / "trackers/wandb/id").read_text()} == {r.run_id for r in runs}
    assert {("isentrope", tmp_path.name)} == {(r.project, r.display_name) for r in runs}
    rows = [
        {
            ".".join([i.key, *i.nested_key]).strip("."): json.loads(i.value_json)
            for i in r.history.item
        }
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    assert ONCE == [(row["_step"], row["reward"]) for row in rows]
    assert {k for k in rows[0] if not k.startswith("_")} == {
        "reward", "groups", "repo_r.zeta", "mismatch_max", "mismatch_max/128", "eval/pass@8"
    }  # fmt: skip
    assert all(math.isnan(row["mismatch_max/128"]) for row in rows)
    kept = {u.key: json.loads(u.value_json) for u in runs[0].config.update if u.key != "_wandb"}
    assert unstructure(config)["rollout"] == kept["rollout"]


def test_trackios_database_has_one_run_with_each_iteration_once(
    tmp_path: Path, monkeypatch
) -> None:
    tell(tmp_path, "trackio")
    from trackio.sqlite_storage import SQLiteStorage  # reads TRACKIO_DIR when it is imported

    (name,) = SQLiteStorage.get_runs("isentrope")
    assert name.startswith(f"{tmp_path.name}-")
    rows = SQLiteStorage.get_logs("isentrope", name)
    assert ONCE == [(row["step"], row["reward"]) for row in rows]
    assert all(math.isnan(row["mismatch_max/128"]) for row in rows)
    assert {"entropy_target", "stopped"}.isdisjoint(rows[0])
    assert 8 == SQLiteStorage.get_run_config("isentrope", name)["rollout"]["group"]


def test_mlflow_has_one_run_with_each_iteration_once(tmp_path: Path) -> None:
    tell(tmp_path, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("isentrope")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert ("FINISHED", tmp_path.name) == (run.info.status, run.info.run_name)
    assert "8" == run.data.params["rollout.group"]
    history = client.get_metric_history(run.info.run_id, "reward")
    assert ONCE == [(m.step, m.value) for m in history]
    not_numbers = client.get_metric_history(run.info.run_id, "mismatch_max/128")
    assert END == len(not_numbers)
    assert all(math.isnan(m.value) for m in not_numbers)
    assert 0.25 == run.data.metrics["eval/pass_8"]
    assert {"entropy_target", "stopped"}.isdisjoint(run.data.metrics)
