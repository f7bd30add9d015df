"""Plain data to attrs classes and back, strictly: a wrong key or type says where and what instead.

Built on cattrs; `register_reader` and `register_writer` add types whose data needs more than their
fields to be understood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import attrs
import cattrs

from isentrope.errors import ConfigError, PluginError, UnknownNameError, within

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def structure(value: Any, kind: type[T]) -> T:
    """Turn plain data into an instance of `kind`; what is one already passes through.

    Raises `ConfigError` (often `UnknownNameError`) that names the place in the data.
    """
    try:
        return _converter.structure(value, kind)
    except cattrs.BaseValidationError as group:
        _raise_first(group)
    except cattrs.StructureHandlerNotFoundError as error:
        if isinstance(kind, type) and isinstance(value, kind):
            return value
        raise PluginError(f"A field of type {error.type_} cannot be read from a config.") from error


def unstructure(instance: Any) -> Any:
    """Turn an instance into plain data that `structure` reads back."""
    return _converter.unstructure(instance)


def register_reader(kind: Any, read: Callable[[Any], Any]) -> None:
    """Let `read` make instances of `kind` from plain data."""
    _converter.register_structure_hook(kind, lambda value, _: read(value))


def register_writer(applies: Callable[[Any], bool], write: Callable[[Any], Any]) -> None:
    """Let `write` make plain data of instances whose class `applies`."""
    _converter.register_unstructure_hook_func(applies, write)


def build(cls: type[T], table: Any) -> T:
    """Make an attrs class from a table of its fields."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"must be a table with keys {', '.join(fields(cls))}; got {table!r}.")
    known = fields(cls)
    for key in table:
        if key not in known:
            raise UnknownNameError("Key", str(key), known)
    arguments = {key: structure_field(known[key], item) for key, item in table.items()}
    missing = [k for k, a in known.items() if a.default is attrs.NOTHING and k not in arguments]
    if missing:
        raise ConfigError(f"{missing[0]} is missing, and has no default.")
    return _call(cls, arguments)


def edit(instance: T, changes: Mapping[str, Any]) -> T:
    """Return an attrs instance with some fields changed; a table changes fields of a field."""
    known = fields(type(instance))
    changed: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            raise UnknownNameError("Key", str(key), known)
        present = getattr(instance, key)
        known_inside = fields(type(present)) if attrs.has(type(present)) else {}
        if isinstance(value, Mapping) and value.keys() <= known_inside.keys():
            with within(key):
                changed[key] = edit(present, value)
        else:
            changed[key] = structure_field(known[key], value)
    return _call(lambda **arguments: attrs.evolve(instance, **arguments), changed)  # type: ignore[misc]  # attrs


def fields(cls: Any) -> dict[str, attrs.Attribute[Any]]:
    """Return the fields of an attrs class that its constructor takes, their types resolved."""
    try:
        attrs.resolve_types(cls)
    except NameError as error:
        raise PluginError(
            f"The field types of {cls.__module__}.{cls.__qualname__} cannot be read ({error}): "
            "import them outside `if TYPE_CHECKING`."
        ) from error
    return {k: a for k, a in attrs.fields_dict(cls).items() if a.init}


def structure_field(attribute: attrs.Attribute[Any], value: Any) -> Any:
    """Turn plain data into the value of one field."""
    with within(attribute.name):
        return structure(value, attribute.type if attribute.type is not None else Any)


def strict(value: Any, kind: type[T]) -> T:
    """Accept exactly the type: 3.7 is no int, "3" no number; an int does for a float."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"must be {_WORDS[kind]}, not {value!r}.")
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError("must be a number, not NaN.")
    return value


def _call(make: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    try:
        return make(**arguments)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        # attrs' validators raise (message, attribute, ...): the message is the sentence.
        raise ConfigError(str(error.args[0]) if error.args else str(error)) from error


def _structure_attrs(value: Any, cls: Any) -> Any:
    return value if isinstance(value, cls) else build(cls, value)


def _structure_path(value: Any, _: Any) -> Path:
    return value if isinstance(value, Path) else Path(strict(value, str))


def _structure_literal(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise UnknownNameError("Value", str(value), get_args(kind))
    return value


def _structure_pair(value: Any, kind: Any) -> tuple[Any, ...]:
    kinds = get_args(kind)
    if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
        raise ConfigError(f"must be a list of {len(kinds)} values, not {value!r}.")
    return tuple(structure(item, kind) for item, kind in zip(value, kinds, strict=True))


def _structure_items(value: Any, kind: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(structure(item, get_args(kind)[0]) for item in items)


def _structure_list(value: Any, kind: Any) -> list[Any]:
    return list(_structure_items(value, kind))


def _structure_dict(value: Any, kind: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a table, not {value!r}.")
    of_key, of_item = get_args(kind)
    return {structure(k, of_key): structure(v, of_item) for k, v in value.items()}


def _origin_is(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) is origin


def _is_open_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1:] == (...,)


def _raise_first(group: BaseExceptionGroup[Any]) -> NoReturn:
    """Raise the first leaf of cattrs' exception tree as one sentence."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, (ConfigError, PluginError)):
        raise error
    raise ConfigError(str(error)) from error


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind in _WORDS:
        converter.register_structure_hook(kind, strict)
    converter.register_structure_hook(Path, _structure_path)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_func(attrs.has, _structure_attrs)
    converter.register_structure_hook_func(_origin_is(Literal), _structure_literal)
    converter.register_structure_hook_func(_origin_is(tuple), _structure_pair)
    converter.register_structure_hook_func(_origin_is(list), _structure_list)
    converter.register_structure_hook_func(_origin_is(dict), _structure_dict)
    converter.register_structure_hook_func(_is_open_tuple, _structure_items)
    return converter


_converter = _make_converter()
