"""What the tests share: a small policy, and how a tiny run is configured."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: see TrainConfig.threads
os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before transformers: a wrong name fails at once, not by retries
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its background jobs ignore Ctrl-C, and tests of that could not be run from one.
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("isentrope", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("isentrope")

SMALL_MODEL = {
    "id": "tiny-qwen3",
    "hidden_size": 32,
    "layers": 1,
    "warmup_steps": 150,
    "warmup_batch": 64,
    "warmup_lr": 8e-3,
}
"""Warms up in a few seconds; right one time in ten, so that groups differ in reward."""


MEASURED = ("seconds/", "performance/", "workers/", "trackers/")
"""How metrics begin that are of the clock, processes or observers, and differ from run to run."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    """Load what is installed now: a test may put broken distributions on the path."""
    from isentrope.plugins import registry

    registry()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Warm-up policies go to a cache of the tests' own, shared by pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    os.environ["ISENTROPE_CACHE"] = str(shared / "isentrope-cache")


@pytest.fixture
def tiny_run(tmp_path: Path) -> dict[str, object]:
    """Keyword arguments of a run that takes about a second after its first warm-up."""
    return {
        "env": "arithmetic",
        "algorithm": {"recipe": "grpo", "epochs": 1, "minibatch": 16},
        "model": SMALL_MODEL,
        "rollout": {"tasks": 4, "group": 8, "max_tokens": 24},
        "iterations": 3,
        "out": tmp_path / "run",
    }
