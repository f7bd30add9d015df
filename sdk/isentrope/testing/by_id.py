"""`check`: what a plugin brings, checked by its id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import NOTHING

from isentrope.components import component, id_of, recipe
from isentrope.errors import ConfigError, UnknownNameError
from isentrope.plugins import load, registry
from isentrope.specs import CHECKABLE
from isentrope.structuring import fields
from isentrope.testing._report import Listener, Report
from isentrope.testing.controllers import check_controller
from isentrope.testing.environments import check_env
from isentrope.testing.objectives import check_objective


def check(
    name: str,
    /,
    kind: str | None = None,
    *,
    on: str | None = None,
    on_finding: Listener | None = None,
    **config: Any,
) -> Report:
    """Check a component by its id, or an environment by ``"package.module:Class"``.

    kind: ``environment``, ``advantage``, ``transform``, ``objective`` or ``controller``, where
    several kinds have the id. on: the recipe whose knobs a controller is tried on; None: GRPO.
    on_finding: called with the outcome of each check as it ends. config: its fields.

    Raises `UnknownNameError` for an id or kind that does not exist, and `ConfigError` where kind is
    needed, or where the component cannot be made of `config`.
    """
    kind = _kind_of(name) if kind is None else kind
    if kind not in CHECKABLE:
        raise UnknownNameError("Kind to check", kind, CHECKABLE)
    if on is not None and kind != "controller":
        raise ConfigError(f"on names the recipe that a controller is tried on; {name!r} is none.")
    if kind == "environment":
        if ":" in name:
            load(name, f"environment {name!r}")  # whose fault is not the environment's
        return check_env(name, on_finding=on_finding, **config)
    made = _made(kind, name, config)
    if kind == "controller":
        return check_controller(made, recipe(on or "grpo"), on_finding=on_finding)
    return check_objective(made, on_finding=on_finding)


def _made(kind: str, name: str, config: Mapping[str, Any]) -> Any:
    """Make a component; what it needs and was not given is asked for."""
    try:
        return component(kind, name, **config)  # type: ignore[arg-type]  # one of CHECKABLE
    except UnknownNameError:
        raise
    except ConfigError as error:
        known = fields(registry().find(kind, name).load())
        needs = [key for key, a in known.items() if a.default is NOTHING and key not in config]
        if not needs:
            raise
        settings = " ".join(f"--set {key}=..." for key in needs)
        raise ConfigError(
            f"The {kind} {name!r} needs {', '.join(needs)} to be checked: "
            f"isentrope check {name} {settings}"
        ) from error


def _kind_of(name: str) -> str:
    found = [kind for kind in CHECKABLE if name in registry().specs(kind)]
    if ":" in name:
        found = ["environment"]
    if not found and name in registry().specs("recipe"):
        parts = ", ".join(dict.fromkeys(id_of(part) for part in recipe(name).slots().values()))
        raise ConfigError(
            f"{name!r} is a recipe, which is checked when it is made; what it is made of can be "
            f"checked by itself: {parts}."
        )
    if not found:
        known = {id_ for kind in CHECKABLE for id_ in registry().specs(kind)}
        raise UnknownNameError("Component", name, known)
    if len(found) > 1:
        raise ConfigError(f"There are several components {name!r}; choose a kind: {found}.")
    return found[0]
