"""MLflow: its server, or its database in the present folder; ``MLFLOW_TRACKING_URI`` says which."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen, validators

from isentrope import TrackedRun
from isentrope.validation import text
from isentrope_plugins.trackers.keeping import kept_id, require

_LONGEST = 500
"""Characters of a parameter that every version and server takes."""


@frozen(kw_only=True)
class Mlflow:
    """One run of an experiment."""

    experiment: str = field(default="isentrope", validator=text())
    uri: str | None = field(default=None, validator=validators.optional(text()))
    """Where it is kept; None: as MLflow itself decides."""

    def check(self) -> None:
        """Raise `ConfigError` where MLflow is not installed."""
        require("mlflow", "mlflow", "isentrope[mlflow]")

    def start(self, run: TrackedRun) -> _MlflowRun:
        """Begin a run, or go on with it."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        run_id = kept_id(run, lambda: self._create(client, run))
        client.update_run(run_id, "RUNNING")
        return _MlflowRun(client, run_id)

    def _create(self, client: Any, run: TrackedRun) -> str:
        from mlflow.entities import Param

        found = client.get_experiment_by_name(self.experiment)
        at = client.create_experiment(self.experiment) if found is None else found.experiment_id
        created = client.create_run(at, run_name=run.name).info.run_id
        # Parameters cannot be changed later: a run that goes on keeps those that it began with.
        params = [Param(named(k), str(v)[:_LONGEST]) for k, v in run.flat_config.items()]
        for begin in range(0, len(params), 100):  # the most that it takes at a time
            client.log_batch(created, params=params[begin : begin + 100])
        return str(created)


class _MlflowRun:
    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.id = client, run_id

    def log(self, iteration: int, metrics: Mapping[str, float | int]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        values = [Metric(named(k), float(v), now, iteration) for k, v in metrics.items()]
        for begin in range(0, len(values), 1000):  # the most that it takes at a time
            self.client.log_batch(self.id, metrics=values[begin : begin + 1000])

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def named(name: str) -> str:
    """Return a name with the characters that MLflow takes: ``"eval/pass@8"`` has another."""
    return re.sub(r"[^\w. :/-]", "_", name)
