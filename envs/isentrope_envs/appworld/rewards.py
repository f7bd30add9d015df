"""What an episode earns, by the engine's verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from isentrope import ConfigError

Verdict = Mapping[str, Any]
"""The engine's: success, difficulty, num_tests, passes and failures, each with a label."""
NO_OP_FAIL = "no_op_fail"
"""Label of the tests that somebody who does nothing fails."""


def fraction(verdict: Verdict) -> float:
    """Return the share of tests that pass (LOOP's reward); doing nothing earns up to a half."""
    return float(len(verdict["passes"]) / verdict["num_tests"])


def gated(verdict: Verdict) -> float:
    """Return the share of those that doing nothing fails, and 0 where another test fails."""
    failed = verdict["failures"]
    if any(test.get("label") != NO_OP_FAIL for test in failed):
        return 0.0
    passed = sum(test.get("label") == NO_OP_FAIL for test in verdict["passes"])
    every = passed + len(failed)
    return passed / every if every else float(verdict["success"])


def success(verdict: Verdict) -> float:
    """Return 1 where all tests pass, else 0."""
    return float(verdict["success"])


REWARDS: dict[str, Callable[[Verdict], float]] = {
    "fraction": fraction,
    "gated": gated,
    "success": success,
}


def reward(name: str) -> Callable[[Verdict], float]:
    """Return a reward; raises `ConfigError` for a name that there is not."""
    try:
        return REWARDS[name]
    except (KeyError, TypeError):
        raise ConfigError(f"reward must be one of {list(REWARDS)}; got {name!r}.") from None
