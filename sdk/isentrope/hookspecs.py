"""The hooks: what a plugin may define. Each returns records; nothing else runs at start-up.

A plugin is a module (or object) named in the entry-point group ``isentrope``::

    # pyproject.toml:  [project.entry-points.isentrope]
    #                  acme = "acme_rl.plugin"
    from isentrope import EnvSpec, hookimpl

    @hookimpl
    def isentrope_environments():
        return [EnvSpec("acme/maze", "acme_rl.maze:Maze", "Find the way out of a maze of words")]

Keep the module light: it is imported to list what it brings. What the records name is imported
when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from isentrope.specs import ComponentSpec, EnvSpec

hookspec = pluggy.HookspecMarker("isentrope")
hookimpl = pluggy.HookimplMarker("isentrope")
"""Marks a function of a plugin as a hook: the decorator ``@hookimpl``."""

KINDS_OF_HOOK: dict[str, tuple[str, ...]] = {
    "isentrope_environments": ("environment",),
    "isentrope_objectives": ("advantage", "transform", "objective", "recipe"),
    "isentrope_controllers": ("controller",),
    "isentrope_engines": ("engine",),
    "isentrope_models": ("model",),
    "isentrope_trackers": ("tracker",),
    "isentrope_commands": ("command",),
    "isentrope_checks": ("check",),
}
"""Which kinds of record each hook may return."""


@hookspec
def isentrope_environments() -> Sequence[EnvSpec]:
    """Return the environments that this plugin brings; each names a `TextEnv` subclass."""
    return ()


@hookspec
def isentrope_objectives() -> Sequence[ComponentSpec]:
    """Return parts of algorithms, and whole recipes.

    Kinds: ``advantage`` (an `AdvantageEstimator`), ``transform`` (an `AdvantageTransform`),
    ``objective`` (an `Objective`), each a frozen attrs class; and ``recipe``, a function without
    arguments that returns an `Algorithm`.
    """
    return ()


@hookspec
def isentrope_controllers() -> Sequence[ComponentSpec]:
    """Return controllers (kind ``controller``); each names a `Controller` subclass."""
    return ()


@hookspec
def isentrope_engines() -> Sequence[ComponentSpec]:
    """Return engines (kind ``engine``); each names a frozen attrs `EngineConfig`."""
    return ()


@hookspec
def isentrope_models() -> Sequence[ComponentSpec]:
    """Return models (kind ``model``); each names a frozen attrs `ModelConfig`."""
    return ()


@hookspec
def isentrope_trackers() -> Sequence[ComponentSpec]:
    """Return trackers (kind ``tracker``); each names a frozen attrs `TrackerConfig`."""
    return ()


@hookspec
def isentrope_commands() -> Sequence[ComponentSpec]:
    """Return verbs of the command line (kind ``command``): each names a `typer.Typer`.

    ``isentrope ID ...`` then calls it; it is imported only then.
    """
    return ()


@hookspec
def isentrope_checks() -> Sequence[ComponentSpec]:
    """Return what ``isentrope doctor`` asks (kind ``check``).

    Each names a function without arguments that yields `Diagnosis` records; each of what is not ok
    has a fix.
    """
    return ()
