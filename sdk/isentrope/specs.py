"""Records by which plugins say what they bring. Light: reading one imports nothing."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from attrs import Attribute, field, frozen, validators

from isentrope.errors import ConfigError, UnknownNameError

Kind = Literal[
    "environment",
    "advantage",
    "transform",
    "objective",
    "recipe",
    "controller",
    "engine",
    "model",
    "tracker",
    "command",
    "check",
]
KINDS: tuple[str, ...] = get_args(Kind)
CHECKABLE = ("environment", "advantage", "transform", "objective", "controller")
"""Kinds that can be checked by id; an engine needs a model: `isentrope.testing.check_engine`."""
Isolation = Literal["none", "process", "episode"]
"""Where an environment runs: in the run's own process, in a worker's, or in a worker of its own for
each episode."""


def _looks_like(pattern: str, example: str) -> Callable[[object, Attribute[str], object], None]:
    """Return a validator for strings; attrs' own would show the pattern and the whole attribute."""

    def check(instance: object, attribute: Attribute[str], value: object) -> None:
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            where = f"{type(instance).__name__}.{attribute.name}"
            raise ConfigError(f"{where} must look like {example}; got {value!r}.")

    return check


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _known_kind(instance: object, _: Attribute[Kind], value: object) -> None:
    if value not in KINDS:
        raise UnknownNameError(f"{type(instance).__name__}.kind", str(value), KINDS)


def _known_isolation(instance: object, _: Attribute[Isolation], value: object) -> None:
    if value not in get_args(Isolation):
        where = f"{type(instance).__name__}.isolation"
        raise UnknownNameError(where, str(value), get_args(Isolation))


_entry_point = _looks_like(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", "'package.module:Name'")
_id = _looks_like(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", "'name' or 'maker/name'")


@frozen
class ComponentSpec:
    """One component that a plugin brings: an objective, a controller, an engine, ..."""

    kind: Kind = field(validator=_known_kind)
    """What it is; a hook accepts only the kinds it documents."""
    id: str = field(validator=_id)
    """Its name in configs and on the command line; unique among its kind."""
    entry_point: str = field(validator=_entry_point)
    """``"package.module:Name"``, imported only when the component is used."""
    summary: str = field(validator=validators.instance_of(str))
    """One line for ``isentrope plugins``."""

    def load(self) -> Any:
        """Import and return what the entry point names."""
        return load_entry_point(self.entry_point)


@frozen
class EnvSpec:
    """One environment that a plugin brings; enough to rebuild it anywhere."""

    id: str = field(validator=_id)
    entry_point: str = field(validator=_entry_point)
    """``"package.module:Class"`` of a `TextEnv`."""
    summary: str = field(validator=validators.instance_of(str))
    splits: tuple[str, ...] = field(default=(), converter=_strings)
    """Names of its task splits, for listing without an import."""
    config: Mapping[str, Any] = field(factory=dict)
    """Keyword arguments of the class that this id stands for; a user's override them."""
    isolation: Isolation = field(default="process", validator=_known_isolation)
    """``"none"`` only for what is fast and cannot hang: it can take the run with it."""
    episodes: int | None = None
    """How many a worker serves before it is replaced, for what leaks; None: any number."""
    python: str | None = None
    """Path of another interpreter to run it in, for dependencies that clash with ours; it needs no
    Isentrope. None: this one."""
    setup: str = ""
    """What makes that interpreter, for the error where it is not there: a command, say."""
    fault: str = ""
    """``"package.module:function"``, called here with that path before the interpreter is started:
    returns a sentence, what is wrong with it and how to mend that, or None."""

    kind: Kind = field(default="environment", init=False)

    def load(self) -> Any:
        """Import and return the environment's class."""
        return load_entry_point(self.entry_point)


@frozen
class EnvRef:
    """An environment by id, with keyword arguments for its class."""

    id: str
    config: Mapping[str, Any] = field(factory=dict)


def load_entry_point(entry_point: str) -> Any:
    """Import ``"package.module:Name"``."""
    module, _, name = entry_point.partition(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target
