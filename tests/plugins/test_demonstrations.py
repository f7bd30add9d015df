"""Demonstrations for a warm-up: an environment that misbehaves is no end of the process."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isentrope import ConfigError, EnvRef, IsentropeError, Task, TaskSet, TextEnv
from isentrope_plugins.tiny.demonstrations import demonstrations
from isentrope_plugins.tiny.model import TinyQwen3


class Misbehaving(TextEnv):
    """Does with its process what it is told."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.tasks = TaskSet({"train": [Task("a")]})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        return "go", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.how == "exits":
            os._exit(3)
        if self.how == "raises":
            raise LookupError("nothing is here")
        return "", 1.0, True, False, {"success": True}

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        return "wrong" if rng.random() < noise else "right"


def played(how: str) -> Any:
    ref = EnvRef(f"{__name__}:Misbehaving", {"how": how})
    return demonstrations(ref, 4, 32, 0.5, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exits", r"Misbehaving' failed: It died in step\(\).*exit code 3"),
        ("raises", r"^Environment .*Misbehaving' failed: LookupError in step\(\): nothing is here"),
    ],
)
def test_an_environment_that_fails_is_an_error_that_says_how(how: str, said: str) -> None:
    start = time.monotonic()
    with pytest.raises(IsentropeError, match=said):
        played(how)
    assert time.monotonic() - start < 30


class Unsolved(TextEnv):
    """It has no demonstrations."""

    def __init__(self) -> None:
        self.tasks = TaskSet({"train": [Task("a")]})


def test_without_a_warm_up_no_demonstrations_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISENTROPE_CACHE", str(tmp_path))
    ref = EnvRef(f"{__name__}:Unsolved")
    cold = TinyQwen3(hidden_size=16, layers=1, warmup_steps=0).build(ref)
    assert "caf\u00e9 7" == cold.tokenizer.decode(cold.tokenizer("caf\u00e9 7")["input_ids"])
    with pytest.raises(ConfigError, match="has no demonstrations to warm up on"):
        TinyQwen3(hidden_size=16, layers=1, warmup_steps=1).build(ref)


def test_the_solvers_noise_is_the_same_every_time() -> None:
    first = played("well")
    assert first == played("well")
    assert {"right", "wrong"} >= {conversation[1]["content"] for conversation in first}


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_a_model_that_cannot_be_warmed_up_says_that_it_was_at_that() -> None:
    ref = EnvRef(f"{__name__}:Misbehaving", {"how": "raises"})
    with pytest.raises(IsentropeError, match=r"warm-up failed, before the run .*LookupError"):
        TinyQwen3(warmup_steps=1, hidden_size=16).build(ref)
