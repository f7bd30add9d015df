"""`check_controller`: what a controller must do, carried out over many imagined iterations."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence

import attrs
import numpy as np
from attrs import define, field, frozen

from isentrope.algorithms import Algorithm, AlgorithmState
from isentrope.parts import Controller, Statistics
from isentrope.testing._report import Inspection, Listener, Report, require

ITERATIONS = 300
SETTLED = 60
"""Iterations on one side of the target after which a knob should have moved."""


def check_controller(
    controller: Controller,
    algorithm: Algorithm,
    *,
    lowering: Collection[str] = (),
    on_finding: Listener | None = None,
) -> Report:
    """Check a controller against the knobs of an algorithm, in place of the algorithm's own.

    lowering: paths of the knobs that it moves of which more means less entropy; of all others more
    must mean more. on_finding: called with the outcome of each check as it ends.
    """
    inspection = Inspection(type(controller).__name__, on_finding)
    probe = _Probe(copy.deepcopy(controller), algorithm, frozenset(lowering))
    if not inspection.run("composes", probe.composes):
        return inspection.report()
    checks: dict[str, Callable[[], str | None]] = {
        "moves": probe.moves,
        "bounds": probe.bounds,
        "deterministic": probe.deterministic,
        "memory": probe.memory,
        "direction": probe.direction,
    }
    for check, method in checks.items():
        inspection.run(check, method)
    return inspection.report()


@define
class _Rehearsal:
    """A controller at work; entropies are imagined, in nats per token."""

    controller: Controller
    knobs: dict[str, float]
    initial_entropy: float
    memory: dict[str, object] = field(factory=dict)
    iteration: int = 0

    def step(self, entropy: float) -> dict[str, float]:
        """Run one iteration; return what the controller moved."""
        statistics = Statistics(
            iteration=self.iteration,
            entropy=entropy,
            initial_entropy=self.initial_entropy,
            exact_entropy=entropy,
            initial_exact_entropy=self.initial_entropy,
            reward=0.5,
            success=0.5,
        )
        given = dict(self.knobs)
        moved = dict(self.controller.update(statistics, given, self.memory))
        require(given == self.knobs, "it changed the mapping of knobs; return the new values")
        self.knobs.update({path: float(value) for path, value in moved.items()})
        self.iteration += 1
        return moved

    def run(self, entropies: Sequence[float]) -> list[dict[str, float]]:
        """Run an iteration for each entropy; return all knobs after each."""
        return [dict(self.knobs) for entropy in entropies if self.step(entropy) is not None]


@frozen
class _Probe:
    """The checks, by name."""

    pristine: Controller
    algorithm: Algorithm
    lowering: frozenset[str]

    def rehearsal(self, initial_entropy: float = 1.0) -> _Rehearsal:
        """Return a fresh copy of the controller before its first iteration."""
        state: AlgorithmState = self.algorithm.initial_state()
        return _Rehearsal(copy.deepcopy(self.pristine), dict(state.knobs), initial_entropy)

    def composes(self) -> None:
        """The algorithm accepts it: its knobs exist, and may go as far as it says."""
        attrs.evolve(self.algorithm, controllers=(self.pristine,))

    def moves(self) -> None:
        """It moves only what it declares."""
        declared = set(self.pristine.moves)
        for entropies in _histories():
            rehearsal = self.rehearsal(entropies[0])
            for entropy in entropies:
                extra = sorted(rehearsal.step(entropy).keys() - declared)
                require(
                    not extra,
                    f"it moved {extra} in iteration {rehearsal.iteration - 1}, but declares "
                    f"{sorted(declared)}",
                )

    def bounds(self) -> None:
        """It keeps every knob within the range that it declares, wherever entropy goes."""
        declared = self.pristine.moves
        for entropies in _histories():
            rehearsal = self.rehearsal(entropies[0])
            for entropy in entropies:
                for path, value in rehearsal.step(entropy).items():
                    require(
                        path not in declared or (math.isfinite(value) and value in declared[path]),
                        f"it moved {path} to {value!r} in iteration {rehearsal.iteration - 1}, "
                        f"outside {declared.get(path)}",
                    )

    def deterministic(self) -> None:
        """The same entropies move the knobs the same way."""
        for entropies in _histories():
            first, second = (self.rehearsal(entropies[0]).run(entropies) for _ in range(2))
            require(first == second, "the same entropies moved the knobs another way")

    def memory(self) -> None:
        """A run resumed from a checkpoint goes on as if it had never stopped.

        Knobs and memory pass through JSON, everything else begins anew.
        """
        for entropies in _histories():
            through, stopped = self.rehearsal(entropies[0]), self.rehearsal(entropies[0])
            half = len(entropies) // 2
            expected = through.run(entropies)[half:]
            stopped.run(entropies[:half])
            resumed = self.rehearsal(entropies[0])
            resumed.iteration = half
            resumed.knobs = json.loads(json.dumps(stopped.knobs))
            resumed.memory = json.loads(json.dumps(stopped.memory, allow_nan=False))
            require(
                resumed.run(entropies[half:]) == expected,
                "after a resume it moved the knobs another way; what it must remember belongs "
                "in memory, as JSON can write it",
            )

    def direction(self) -> str | None:
        """Entropy below the target moves the knobs to where there is more of it."""
        target = self.pristine.target_entropy(
            Statistics(
                iteration=0,
                entropy=1.0,
                initial_entropy=1.0,
                exact_entropy=1.0,
                initial_exact_entropy=1.0,
                reward=0.5,
                success=0.5,
            )
        )
        if target is None:
            return "it has no target"
        low, high = self.rehearsal(), self.rehearsal()
        low.run([0.5 * target] * SETTLED)
        high.run([1.5 * target + 0.1] * SETTLED)
        for path in sorted(self.pristine.moves):
            gain = low.knobs[path] - high.knobs[path]
            require(
                (-gain if path in self.lowering else gain) >= 0,
                f"{path} is {low.knobs[path]:g} after {SETTLED} iterations below the target "
                f"entropy, and {high.knobs[path]:g} after as many above it",
            )
        require(
            low.knobs != high.knobs,
            f"after {SETTLED} iterations below its target or above, its knobs are the same",
        )
        return None


def _histories() -> Iterator[list[float]]:
    """Yield courses that entropy might take, in nats per token; the first value is H_0."""
    rng = np.random.default_rng(0)
    yield np.abs(1 + np.cumsum(rng.normal(0, 0.05, ITERATIONS))).tolist()
    yield rng.exponential(1.0, ITERATIONS).tolist()
    yield [1.0] + [0.0] * ITERATIONS
    yield [1.0] + [12.0] * ITERATIONS
    yield [0.0] * ITERATIONS
    yield [1.0] + [0.0, 5.0] * (ITERATIONS // 2)
    yield [0.5] * 3 + [1e-9] * (ITERATIONS // 2) + [3.0] * (ITERATIONS // 2)
