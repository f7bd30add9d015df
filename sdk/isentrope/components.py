"""From names to components, and back.

A component is written as ``{"id": "clipped", "eps_low": 0.2}``, or just ``"clipped"``: the id is
looked up among the plugins, the other keys fill the class's fields. An id may also be
``"package.module:Class"``, for a class that no plugin brings.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import attrs

from isentrope import parts
from isentrope.algorithms import Algorithm, name_slots
from isentrope.engines import EngineConfig
from isentrope.environments import Guard, TaskSet, TextEnv
from isentrope.errors import ConfigError, IsentropeError, PluginError, UnknownNameError, within
from isentrope.models import ModelConfig
from isentrope.plugins import load, registry
from isentrope.specs import EnvRef, EnvSpec, Kind
from isentrope.structuring import (
    build,
    edit,
    fields,
    register_reader,
    register_writer,
    strict,
    structure,
    structure_field,
    unstructure,
)
from isentrope.targets import EntropyTarget, Schedule
from isentrope.trackers import TrackerConfig
from isentrope.workers.cluster import RayPool
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.pool import Pool, WorkerPool
from isentrope.workers.remote import RemoteEnv
from isentrope.workers.shim import options_of
from isentrope.workers.worker import WorkerError

TYPE_OF: dict[str, type] = {
    "advantage": parts.AdvantageEstimator,
    "transform": parts.AdvantageTransform,
    "objective": parts.Objective,
    "controller": parts.Controller,
    "engine": EngineConfig,
    "model": ModelConfig,
    "tracker": TrackerConfig,
}
"""What each kind of configurable component must be an instance of."""


def make(env_id: str, **config: Any) -> TextEnv:
    """Make an environment by id, or ``"package.module:Class"``, with arguments for its class.

    The result checks everything that passes through it (`EnvironmentContractError`); the
    environment itself is ``.unwrapped``.

    Raises `UnknownNameError`, `PluginError` or `ConfigError` where it cannot be made.
    """
    spec = env_spec(env_id)
    arguments = {**spec.config, **config}
    if spec.python is not None:
        return _remote(spec, env_id, arguments)
    cls = load(spec.entry_point, f"environment {env_id!r}")
    try:
        env = cls(**arguments)
    except IsentropeError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's constructor
        options = options_of(cls) if isinstance(error, TypeError) else []
        raise _not_made(env_id, f"{type(error).__name__}: {error}", options) from error
    if not isinstance(env, TextEnv):
        raise PluginError(
            f"Environment {env_id!r} is a {type(env).__name__}; an EnvSpec must name a subclass "
            "of isentrope.TextEnv."
        )
    if not isinstance(getattr(env, "tasks", None), TaskSet):
        raise PluginError(f"Environment {env_id!r} has no tasks: set self.tasks to a TaskSet.")
    return Guard(env, env_id)


def make_apart(env_id: str, **config: Any) -> TextEnv:
    """Make an environment where its record says that it runs: in a worker with deadlines, or here.

    Of one in a worker, tasks are known by their ids alone, and what it does wrong is a
    ``WorkerError``. Raises what `make` raises.
    """
    spec = env_spec(env_id)
    if spec.isolation == "none" or sys.platform != "linux":
        return make(env_id, **config)
    return _remote(spec, env_id, {**spec.config, **config})


def _remote(spec: EnvSpec, env_id: str, config: Mapping[str, Any]) -> TextEnv:
    """Make an environment in a worker."""
    pool = pool_of(spec, env_id, config, WorkerConfig(count=1))
    try:
        return Guard(RemoteEnv(pool), env_id)
    except WorkerError as error:
        if (raised := error.raised) is None:
            raise _not_made(env_id, " ".join(_ends(str(error).splitlines()))) from error
        if "IsentropeError" in raised.names:
            raise ConfigError(raised.said) from error
        reason = f"{raised.names[0]}: {raised.said}"
        raise _not_made(env_id, reason, raised.options) from error


def _not_made(env_id: str, reason: str, options: Sequence[str] = ()) -> ConfigError:
    """Return the error for an environment that cannot be made; options: names of what it takes."""
    unexpected = re.match(r"TypeError: .* unexpected keyword argument '(\w+)'", reason)
    if unexpected and options and unexpected[1] not in options:
        return UnknownNameError(f"Option of environment {env_id!r}:", unexpected[1], options)
    return ConfigError(f"Environment {env_id!r} cannot be made: {reason}")


def _ends(lines: Sequence[str]) -> Sequence[str]:
    """Return the first line, and the last if that is another: what happened, and was printed."""
    return lines if len(lines) < 2 else (lines[0], lines[-1])


def pool_of(spec: EnvSpec, env_id: str, config: Mapping[str, Any], limits: WorkerConfig) -> Pool:
    """Return the workers of an environment.

    Raises `ConfigError` where its interpreter, Ray or its cluster is not there, or no Linux is.
    """
    if sys.platform != "linux":
        raise ConfigError(
            f"{env_id!r} runs in worker processes, which need Linux; elsewhere set "
            "rollout.workers.isolation = 'none', at the risk that it hangs or ends the run."
        )
    here = limits.ray is None
    if here and spec.python is not None and not Path(spec.python).is_file():
        setup = f" Set it up: {spec.setup}" if spec.setup else ""
        raise ConfigError(f"The interpreter of {env_id!r} is not there: {spec.python}.{setup}")
    if here and spec.python is not None and spec.fault:
        found = load(spec.fault, f"fault of {env_id!r}")(spec.python)
        if found is not None:
            raise ConfigError(f"Environment {env_id!r} cannot be made: {found}")
    pool: type[Pool] = WorkerPool if here else RayPool
    return pool(
        name=env_id,
        entry_point=spec.entry_point,
        config=config,
        limits=limits,
        python=spec.python,
        episodes=1 if (limits.isolation or spec.isolation) == "episode" else spec.episodes,
    )


def env_spec(env_id: str) -> EnvSpec:
    """Return the record of an environment, by id or ``"package.module:Class"``.

    Raises `UnknownNameError` or `PluginError` where there is none that can be used.
    """
    if ":" in env_id:
        # What a script or a notebook defines, only its own process can import.
        here = env_id.startswith("__main__:")
        return EnvSpec("env", env_id, "", isolation="none" if here else "process")
    spec = registry().find("environment", env_id)
    assert isinstance(spec, EnvSpec)  # the hook takes no other
    return spec


def recipe(name: str, **overrides: Any) -> Algorithm:
    """Return a named algorithm, with changes.

    overrides: the recipe's own parameters (``on="dapo"``), fields of `Algorithm` (``epochs=2``,
    ``objective=...``), or slots with changed fields (``objective={"eps_high": 0.28}``,
    ``repo_r={"zeta": 0.01}``).

    Raises `UnknownNameError` for a recipe, slot or field that does not exist, and `ConfigError` for
    a value that cannot be.
    """
    spec = registry().find("recipe", strict(name, str))
    compose = load(spec.entry_point, f"recipe {name!r}")
    parameters = inspect.signature(compose).parameters
    own = {key: overrides.pop(key) for key in parameters if key in overrides}
    try:
        made = compose(**own)
    except IsentropeError:
        raise
    except Exception as error:  # a stranger's function
        raise ConfigError(
            f"Recipe {name!r} cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Algorithm):
        raise PluginError(f"Recipe {name!r} returned a {type(made).__name__}, not an Algorithm.")
    made = _override(made, overrides, also=parameters)
    object.__setattr__(made, "recipe", name)  # a note on what never changes otherwise
    return made


def component(kind: Kind, name: str, **fields: Any) -> Any:
    """Make a component by kind and id, with values for its fields.

    So that a recipe can use another plugin's parts without importing it. Environments and recipes
    have `make` and `recipe`.
    """
    if kind not in TYPE_OF:
        raise UnknownNameError("Kind of component", kind, TYPE_OF)
    return structure({"id": name, **fields}, TYPE_OF[kind])


def id_of(instance: object) -> str:
    """Return the id by which plugins know this component's class, or its import path."""
    cls = type(instance)
    path = f"{cls.__module__}:{cls.__qualname__}"
    for row in registry().rows:
        if row.state == "ok" and row.spec is not None and row.spec.entry_point == path:
            return row.id
    return path


def _override(
    algorithm: Algorithm, overrides: Mapping[str, Any], also: Iterable[str] = ()
) -> Algorithm:
    """Apply overrides of fields, then of slots in what that makes; `also` names other keys."""
    own = fields(Algorithm)
    values = {name: getattr(algorithm, name) for name in own}
    for key, value in overrides.items():
        if key in ("advantage", "objective"):
            with within(key):
                values[key] = _replace(values[key], value)
        elif key in own:
            values[key] = structure_field(own[key], value)
    groups = {name: list(_items(values[name])) for name in _GROUPS}
    slots = name_slots(values["advantage"], values["objective"], chain(*groups.values()))
    for key, value in overrides.items():
        if key in own:
            continue
        if key not in slots:
            raise UnknownNameError("Key", key, [*own, *slots, *also])
        with within(key):
            slots[key] = _replace(slots[key], value)
    changed = iter(list(slots.values())[2:])  # without advantage and objective
    for name, parts_of_group in groups.items():
        values[name] = [next(changed) for _ in parts_of_group]
    return attrs.evolve(algorithm, **values)


_GROUPS = ("transforms", "regularizers", "controllers")  # in the order of slots


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _replace(part: Any, value: Any) -> Any:
    """Edit a part's fields, or put another component in its place."""
    if isinstance(value, Mapping) and "id" not in value:
        return edit(part, value)
    return structure(value, next(t for t in TYPE_OF.values() if _is_a(part, t)))


def _is_a(value: Any, kind_type: type) -> bool:
    if kind_type in _METHOD_OF:
        return _can(_METHOD_OF[kind_type], type(value))
    return isinstance(value, kind_type)


_METHOD_OF: dict[type, str] = {EngineConfig: "build", ModelConfig: "build", TrackerConfig: "start"}
"""Configs that are protocols: any attrs class that has this method."""


def _can(method: str, cls: Any) -> bool:
    return isinstance(cls, type) and attrs.has(cls) and callable(getattr(cls, method, None))


def _is_component(cls: Any) -> bool:
    own = isinstance(cls, type) and issubclass(cls, (parts.Component, parts.Controller))
    return own or any(_can(method, cls) for method in set(_METHOD_OF.values()))


def _reader(kind: str, kind_type: type) -> Callable[[Any], Any]:
    """Return what reads a component of one kind: an instance, an id, or a table with one."""

    def read(value: Any) -> Any:
        if _is_a(value, kind_type):
            return value
        table = _table(value, kind)
        name = table.pop("id")
        path = name if ":" in name else registry().find(kind, name).entry_point
        cls = load(path, f"{kind} {name!r}")
        if not attrs.has(cls) and table:
            raise PluginError(f"The {kind} {name!r} is no attrs class, so it has no config.")
        made = build(cls, table) if attrs.has(cls) else cls()
        if not _is_a(made, kind_type):
            raise PluginError(
                f"The {kind} {name!r} is a {cls.__name__}, which is no "
                f"isentrope.{kind_type.__name__}."
            )
        return made

    return read


def _write(instance: Any) -> dict[str, Any]:
    cls: Any = type(instance)
    names = fields(cls) if attrs.has(cls) else ()
    values = {name: unstructure(getattr(instance, name)) for name in names}
    return {"id": id_of(instance), **values}


def _read_algorithm(value: Any) -> Algorithm:
    """Read a recipe's name, or a table of fields and slots, on a recipe or by itself."""
    if isinstance(value, Algorithm):
        return value
    if isinstance(value, str):
        return recipe(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a recipe's name or a table; got {value!r}.")
    if "recipe" in value:
        with within("recipe"):
            name = strict(value["recipe"], str)
            registry().find("recipe", name)
        return recipe(name, **{k: v for k, v in value.items() if k != "recipe"})
    own = fields(Algorithm)
    made = build(Algorithm, {k: v for k, v in value.items() if k in own})
    return _override(made, {k: v for k, v in value.items() if k not in own})


def _read_env(value: Any) -> EnvRef:
    if isinstance(value, EnvRef):
        return value
    if isinstance(value, type) and issubclass(value, TextEnv):
        if "<locals>" in value.__qualname__:
            raise ConfigError(
                f"The environment {value.__qualname__} is defined in a function, where nothing "
                "else can find it: define it at the top of its module."
            )
        value = f"{value.__module__}:{value.__qualname__}"
    table = _table(value, "environment")
    if ":" not in table["id"]:
        registry().find("environment", table["id"])
    return EnvRef(table.pop("id"), table)


def _table(value: Any, what: str) -> dict[str, Any]:
    table = {"id": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("id"), str):
        raise ConfigError(f"must name the {what}: an id, or a table with one; got {value!r}.")
    return dict(table)


for _kind, _type in TYPE_OF.items():
    register_reader(_type, _reader(_kind, _type))
register_writer(_is_component, _write)
register_reader(Algorithm, _read_algorithm)
register_reader(Schedule, Schedule.read)
register_writer(lambda cls: cls is Schedule, Schedule.plain)
register_reader(EntropyTarget, EntropyTarget.read)
register_reader(EnvRef, _read_env)
register_writer(lambda cls: cls is EnvRef, lambda ref: {"id": ref.id, **ref.config})
