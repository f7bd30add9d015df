"""Playing episodes for `check_env`: where instances come from, and who acts."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from attrs import define, field, frozen
from gymnasium.utils.env_checker import data_equivalence

from isentrope.components import env_spec, make
from isentrope.environments import Guard, TextEnv
from isentrope.errors import IsentropeError
from isentrope.testing._report import UnmetError, describe

TURNS = 64
"""Steps after which an episode that has not ended is left, unless a solver plays."""
SOLVER_TURNS = 1000
WORDS = ("yes", "7", "", "I think it is 12.", "no")

Actor = Callable[[TextEnv], str | None]
"""What acts: given the environment, the next action; None where it has nothing to say."""


@frozen
class Source:
    """Where fresh instances of the environment under test come from."""

    name: str
    make: Callable[[], Any]
    entry_point: str | None = None
    """What another process could import; None where there is nothing."""
    config: Mapping[str, Any] = field(factory=dict)
    apart: bool = False
    """Whether instances are workers' of another interpreter."""

    def fresh(self) -> Guard:
        """Return a new instance that checks what passes through it."""
        env = self.make()
        if not isinstance(env, TextEnv):
            raise UnmetError(f"a TextEnv was expected, not {describe(env)}")
        return env if isinstance(env, Guard) else Guard(env, self.name)


def source_of(env: Any, config: dict[str, Any]) -> Source:
    """Read what `check_env` was given.

    Raises `TypeError` where it is nothing that instances could come from.
    """
    if isinstance(env, str):
        spec = env_spec(env) if is_known(env) else None
        if spec is None or spec.python is not None:
            return Source(env, lambda: make(env, **config), apart=spec is not None)
        everything = {**spec.config, **config}
        return Source(env, lambda: make(env, **config), spec.entry_point, everything)
    if isinstance(env, TextEnv):
        if config:
            raise TypeError("An instance is configured already; give an id or a class with config.")
        pristine = _copy(env.inner if isinstance(env, Guard) else env)
        return Source(type(pristine).__name__, lambda: _copy(pristine))
    if callable(env):
        name = getattr(env, "__name__", repr(env))
        return Source(name, lambda: env(**config), _entry_point(env), config)
    raise TypeError(f"An id, a TextEnv or a factory was expected, not {describe(env)}.")


def is_known(env_id: str) -> bool:
    """Say whether an environment's id can be looked up."""
    try:
        env_spec(env_id)
    except IsentropeError:
        return False
    return True


def _entry_point(target: Any) -> str | None:
    """Return the import path of a class or function, if it has one."""
    module, name = (getattr(target, n, "") for n in ("__module__", "__qualname__"))
    found = None if module == "__main__" else sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is target else None


def _copy(env: TextEnv) -> TextEnv:
    """Copy all of an environment but its tasks, which may be many and never change."""
    tasks = getattr(env, "tasks", None)
    return copy.deepcopy(env, {id(tasks): tasks})


@define
class Trace:
    """An episode as it went."""

    task: str
    steps: list[tuple[Any, ...]] = field(factory=list)
    """What reset returned, then what each step returned."""
    actions: list[str] = field(factory=list)

    @property
    def ended(self) -> bool:
        """Whether the environment ended it."""
        return bool(self.actions) and (self.steps[-1][2] or self.steps[-1][3])

    @property
    def total(self) -> float:
        """The return."""
        return float(sum(step[1] for step in self.steps[1:]))

    @property
    def succeeded(self) -> bool:
        """Whether any step said so."""
        return any(step[4].get("success", False) for step in self.steps[1:])

    def difference(self, other: Trace) -> str:
        """Return where two traces part, or nothing."""
        if self.actions != other.actions:
            return "the scripted solver acted differently, given an equal random generator"
        names = ("observation", "reward", "terminated", "truncated", "info")
        for index, (mine, theirs) in enumerate(zip(self.steps, other.steps, strict=False)):
            for name, a, b in zip(names if index else names[::4], mine, theirs, strict=True):
                if not data_equivalence(a, b, exact=True):
                    where = f"step {index}" if index else "reset"
                    return f"the {name} of {where} was {describe(a, 60)}, then {describe(b, 60)}"
        return "" if len(self.steps) == len(other.steps) else "one went on longer than the other"


def words() -> Actor:
    """Return an actor that says a fixed list of words over and over."""
    script = cycle(WORDS)
    return lambda _: next(script)


def says(action: str) -> Actor:
    """Return an actor that says one thing only."""
    return lambda _: action


def solver(noise: float, seed: int = 0) -> Actor:
    """Return the environment's own solver; words where it has none."""
    rng = np.random.default_rng(seed)
    return lambda env: env.demonstrate(rng, noise)


def moves(env: TextEnv, task: str, seed: int, actor: Actor, limit: int = TURNS) -> Iterator[Trace]:
    """Play an episode, stopping after reset and after every step; always yields the same trace."""
    trace = Trace(task)
    trace.steps.append(copy.deepcopy(env.reset(seed=seed, options={"task": task})))
    yield trace
    while not trace.ended and len(trace.actions) < limit:
        action = actor(env)
        trace.actions.append("yes" if action is None else action)
        # A copy: an environment may go on writing to the info that it returned.
        trace.steps.append(copy.deepcopy(env.step(trace.actions[-1])))
        yield trace


def play(env: TextEnv, task: str, seed: int, actor: Actor, limit: int = TURNS) -> Trace:
    """Play an episode to its end, or for `limit` steps."""
    trace = Trace(task)
    for trace in moves(env, task, seed, actor, limit):  # noqa: B007  the last one is wanted
        pass
    return trace
