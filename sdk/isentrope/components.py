"""From names and plain data to components, and back.

A component is written as ``{"id": "clipped", "eps_low": 0.2}`` (or just ``"clipped"``): `structure`
looks the id up among the plugins and fills the class's fields; `unstructure` writes it back. An
id may also be ``"package.module:Class"``, for a class that no plugin brings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import attrs
import cattrs

from isentrope import parts
from isentrope.algorithms import Algorithm
from isentrope.engines import EngineConfig
from isentrope.environments import Guard, TextEnv
from isentrope.errors import ConfigError, IsentropeError, PluginError, UnknownNameError
from isentrope.models import ModelConfig
from isentrope.plugins import registry
from isentrope.specs import EnvRef, Kind, load_entry_point

T = TypeVar("T")

KIND_OF: dict[type, str] = {
    parts.AdvantageEstimator: "advantage",
    parts.AdvantageTransform: "transform",
    parts.Objective: "objective",
    parts.Controller: "controller",
    EngineConfig: "engine",
    ModelConfig: "model",
}
"""Which kind of component fills a field of each type."""


def make(env_id: str, **config: Any) -> TextEnv:
    """Make an environment by id, with keyword arguments for its class.

    The result checks everything that passes through it (`EnvironmentContractError`); the
    environment itself is ``.unwrapped``.

    Raises `UnknownNameError`, `PluginError` or `ConfigError` where it cannot be made.
    """
    spec = registry().find("environment", env_id)
    cls = _load(spec, "environment")
    arguments = {**getattr(spec, "config", {}), **config}
    signature = inspect.signature(cls)
    _check_keys(f"environment {env_id!r}", arguments, signature.parameters)
    try:
        signature.bind(**arguments)
        env = cls(**arguments)
    except IsentropeError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Environment {env_id!r} cannot be made: {error}") from error
    if not isinstance(env, TextEnv):
        raise PluginError(
            f"Environment {env_id!r} is a {type(env).__name__}; an EnvSpec must name a subclass "
            "of isentrope.TextEnv."
        )
    if not isinstance(getattr(env, "tasks", None), Mapping):
        raise PluginError(f"Environment {env_id!r} has no tasks: set self.tasks to a TaskSet.")
    return Guard(env, env_id)


def recipe(name: str, **overrides: Any) -> Algorithm:
    """Return a named algorithm, with changes.

    overrides: fields of `Algorithm` (``epochs=2``, ``objective=...``), or slots with changed fields
    (``objective={"eps_high": 0.28}``, ``repo_r={"zeta": 0.01}``).

    Raises `UnknownNameError` for a recipe, slot or field that does not exist, and `ConfigError` for
    a value that cannot be.
    """
    made = _load(registry().find("recipe", name), "recipe")()
    if not isinstance(made, Algorithm):
        raise PluginError(f"Recipe {name!r} returned a {type(made).__name__}, not an Algorithm.")
    return _override(made, overrides, f"recipe {name!r}")


def component(kind: Kind, name: str, **fields: Any) -> Any:
    """Make a component by kind and id, with values for its fields.

    So that a recipe can use another plugin's parts without importing it.
    """
    kind_type = next(t for t, k in KIND_OF.items() if k == kind)
    return structure({"id": name, **fields}, kind_type)


def id_of(instance: object) -> str:
    """Return the id by which plugins know this component's class, or its import path."""
    cls = type(instance)
    path = f"{cls.__module__}:{cls.__qualname__}"
    for row in registry().rows:
        if row.state == "ok" and row.spec is not None and row.spec.entry_point == path:
            return row.id
    return path


def structure(value: Any, kind_type: type[T]) -> T:
    """Turn plain data into an instance of an attrs class or a kind of component.

    Raises `ConfigError` (often `UnknownNameError`) that names the place in the data.
    """
    try:
        return _converter.structure(value, kind_type)
    except cattrs.BaseValidationError as group:
        _raise_first(group)


def unstructure(instance: Any) -> Any:
    """Turn a config, or a component, into plain data that `structure` reads back."""
    return _converter.unstructure(instance)


def _load(spec: Any, kind: str) -> Any:
    try:
        return spec.load()
    except (Exception, SystemExit) as error:  # a plugin's module may do anything at import
        raise PluginError(
            f"The {kind} {spec.id!r} ({spec.entry_point}) failed to import: "
            f"{type(error).__name__}: {error}"
        ) from error


def _check_keys(what: str, given: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    if any(getattr(p, "kind", None) is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in given:
        if key not in parameters:
            raise UnknownNameError(f"Option of {what}:", key, parameters)


def _override(algorithm: Algorithm, overrides: Mapping[str, Any], what: str) -> Algorithm:
    """Apply field and slot overrides to a composition."""
    slots = algorithm.slots()
    own = _fields(Algorithm)
    changed: dict[str, Any] = {}
    for key, value in overrides.items():
        edits = isinstance(value, Mapping) and "id" not in value and key in slots
        if edits:
            with _place(key):
                changed[key] = _edit(slots[key], value, what)
        elif key in own:
            changed[key] = _structure_field(own[key], value)
        else:
            raise UnknownNameError(f"Option of {what}:", key, {**own, **slots})

    def now(slot: str) -> Any:
        return changed.pop(slot, slots[slot])

    replaced: dict[str, Any] = {
        name: tuple(
            now(s) for s, p in slots.items() if any(p is q for q in getattr(algorithm, name))
        )
        for name in ("transforms", "controllers")
        if name not in changed
    }
    return attrs.evolve(algorithm, **replaced, **changed)


def _edit(part: Any, changes: Mapping[str, Any], what: str) -> Any:
    fields = _fields(type(part))
    _check_keys(what, changes, fields)
    return attrs.evolve(part, **{k: _structure_field(fields[k], v) for k, v in changes.items()})


def _fields(cls: Any) -> dict[str, attrs.Attribute[Any]]:
    """Return the fields of an attrs class that its constructor takes, their types resolved."""
    try:
        attrs.resolve_types(cls)
    except NameError as error:
        raise PluginError(
            f"The field types of {cls.__module__}.{cls.__qualname__} cannot be read ({error}): "
            "import them outside `if TYPE_CHECKING`."
        ) from error
    return {k: a for k, a in attrs.fields_dict(cls).items() if a.init}


def _structure_field(attribute: attrs.Attribute[Any], value: Any) -> Any:
    with _place(attribute.name):
        return structure(value, attribute.type if attribute.type is not None else Any)


@contextmanager
def _place(key: str) -> Iterator[None]:
    """Say in a `ConfigError` that passes through where it happened."""
    try:
        yield
    except ConfigError as error:
        error.place = f"{key}.{error.place}" if error.place else key
        raise


# ---------------------------------------------------------------- the converter


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, omit_if_default=False)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict)
    converter.register_structure_hook_func(_is_literal, _structure_literal)
    converter.register_structure_hook(Path, _structure_path)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_func(attrs.has, _structure_attrs)
    converter.register_unstructure_hook_func(_is_component_instance, _unstructure_component)
    for kind_type, component_kind in KIND_OF.items():
        converter.register_structure_hook(kind_type, _structure_component_of(component_kind))
    converter.register_structure_hook(Algorithm, _structure_algorithm)
    converter.register_structure_hook(EnvRef, _structure_env)
    converter.register_unstructure_hook(EnvRef, lambda ref: {"id": ref.id, **ref.config})
    converter.register_structure_hook_func(_is_tuple_of_parts, _structure_parts)
    return converter


def _strict(value: Any, kind: type) -> Any:
    """Accept exactly the type: 3.7 is no int, "3" no number; an int does for a float."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError("must be a number, not NaN")
        return value
    raise ConfigError(f"must be {_words(kind)}, not {value!r}")


def _structure_path(value: Any, _: Any) -> Path:
    return value if isinstance(value, Path) else Path(_strict(value, str))


def _words(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[kind]


def _is_literal(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _structure_literal(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise UnknownNameError("Value", str(value), get_args(kind))
    return value


def _structure_attrs(value: Any, cls: Any) -> Any:
    """Fill an attrs class from a table, field by field, naming the place of what is wrong."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a table with keys {', '.join(attrs.fields_dict(cls))}")
    fields = _fields(cls)
    for key in value:
        if key not in fields:
            raise UnknownNameError("Key", key, fields)
    arguments = {key: _structure_field(fields[key], item) for key, item in value.items()}
    missing = [k for k, a in fields.items() if a.default is attrs.NOTHING and k not in arguments]
    if missing:
        raise ConfigError(f"{missing[0]} is missing, and has no default")
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(_attrs_sentence(error)) from error


def _attrs_sentence(error: Exception) -> str:
    """Attrs' validators carry (message, attribute, ...): the message is the sentence."""
    return str(error.args[0]) if error.args else str(error)


def _structure_component_of(kind: str) -> Callable[[Any, Any], Any]:
    def structure_component(value: Any, kind_type: Any) -> Any:
        if _is_instance_of_kind(value, kind_type):
            return value
        table = {"id": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or not isinstance(table.get("id"), str):
            raise ConfigError(f"must name a component: an id, or a table with one; got {value!r}")
        name = table["id"]
        cls = load_entry_point(name) if ":" in name else _load(registry().find(kind, name), kind)
        if not attrs.has(cls):
            raise PluginError(f"The {kind} {name!r} is no attrs class, so it has no config.")
        made = _structure_attrs({k: v for k, v in table.items() if k != "id"}, cls)
        if not _is_instance_of_kind(made, kind_type):
            raise PluginError(
                f"The {kind} {name!r} is a {cls.__name__}, which is no isentrope."
                f"{kind_type.__name__}."
            )
        return made

    return structure_component


def _is_instance_of_kind(value: Any, kind_type: type) -> bool:
    if kind_type in (EngineConfig, ModelConfig):  # protocols: a config that can build
        return attrs.has(type(value)) and callable(getattr(value, "build", None))
    return isinstance(value, kind_type)


def _is_component_instance(cls: Any) -> bool:
    built = inspect.isclass(cls) and attrs.has(cls) and callable(getattr(cls, "build", None))
    return built or (inspect.isclass(cls) and issubclass(cls, (parts.Component, parts.Controller)))


def _unstructure_component(instance: Any) -> dict[str, Any]:
    fields = attrs.fields(type(instance))
    values = {a.name: unstructure(getattr(instance, a.name)) for a in fields if a.init}
    return {"id": id_of(instance), **values}


def _is_tuple_of_parts(kind_type: Any) -> bool:
    args = get_args(kind_type)
    return get_origin(kind_type) is tuple and len(args) == 2 and args[0] in KIND_OF


def _structure_parts(value: Any, kind_type: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(structure(item, get_args(kind_type)[0]) for item in items)


def _structure_algorithm(value: Any, _: Any) -> Algorithm:
    if isinstance(value, Algorithm):
        return value
    table = {"recipe": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ConfigError(f"must be a recipe's name or a table; got {value!r}")
    if "recipe" in table:
        name = _strict(table["recipe"], str)
        return recipe(name, **{k: v for k, v in table.items() if k != "recipe"})
    made: Algorithm = _structure_attrs(table, Algorithm)
    return made


def _structure_env(value: Any, _: Any) -> EnvRef:
    if isinstance(value, EnvRef):
        return value
    table = {"id": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("id"), str):
        raise ConfigError(f"must name an environment: an id, or a table with one; got {value!r}")
    registry().find("environment", table["id"])
    return EnvRef(table["id"], {k: v for k, v in table.items() if k != "id"})


def _raise_first(group: BaseExceptionGroup[Any]) -> NoReturn:
    """Raise the first leaf of cattrs' exception tree as one sentence."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ConfigError):
        raise error
    raise ConfigError(str(error)) from error


_converter = _make_converter()
