"""Records by which plugins say what they bring. Light: reading one imports nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import field, frozen, validators

Kind = Literal[
    "environment", "advantage", "transform", "objective", "recipe", "controller", "engine", "model"
]
KINDS: tuple[str, ...] = get_args(Kind)

_entry_point = validators.matches_re(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_id = validators.matches_re(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@frozen
class ComponentSpec:
    """One component that a plugin brings: an objective, a controller, an engine, ..."""

    kind: Kind = field(validator=validators.in_(KINDS))
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
    splits: tuple[str, ...] = field(default=(), converter=tuple)
    """Names of its task splits, for listing without an import."""
    config: Mapping[str, Any] = field(factory=dict)
    """Keyword arguments of the class that this id stands for; a user's override them."""

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
