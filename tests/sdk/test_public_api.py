"""What users may rely on, frozen: the names in `isentrope`, what they take and what hooks exist.

The frozen text is ``public_api.txt`` beside this file. After a change made on purpose::

    python tests/sdk/test_public_api.py --update
"""

from __future__ import annotations

import ast
import difflib
import enum
import inspect
import sys
import types
from collections.abc import Iterator
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, is_typeddict

import attrs
import pytest

import isentrope
from isentrope import hookspecs

SNAPSHOT = Path(__file__).with_name("public_api.txt")
FROZEN = [
    *isentrope.__all__,
    *(f"testing.{name}" for name in isentrope.testing.__all__),
    *(f"hook {hook}" for hook in hookspecs.KINDS_OF_HOOK),
]
METHODS = (classmethod, staticmethod)
ON_PURPOSE = (
    "The public API changed. If that is on purpose, say so in CHANGELOG.md (with a line on how to "
    "migrate) and run: python tests/sdk/test_public_api.py --update"
)


class _Bare(str):
    """An annotation that prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _bare(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def signature(function: Any) -> str:
    found = inspect.signature(function)
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in found.parameters.values()]
    answer = _bare(found.return_annotation)
    return str(found.replace(parameters=parameters, return_annotation=answer))


def describe(name: str) -> list[str]:
    """Return the lines that describe a public name, the first at the margin."""
    if name.startswith("hook "):
        hook = name.removeprefix("hook ")
        kinds = ", ".join(hookspecs.KINDS_OF_HOOK[hook])
        return [name + signature(getattr(hookspecs, hook)), f"    kinds: {kinds}"]
    if name == "__version__":
        return ["__version__: str"]
    value = attrgetter(name)(isentrope)
    if isinstance(value, types.ModuleType):
        return [f"{name}: module"]
    if inspect.isclass(value):
        return _describe_class(name, value)
    if inspect.isroutine(value):
        return [f"{name}{signature(value)}"]
    if get_args(value):
        return [f"{name}: {value}".replace("typing.", "")]
    return [f"{name}: {type(value).__name__}"]


def _describe_class(name: str, cls: type) -> list[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    lines = [f"{name}({bases})" if bases else name]
    if issubclass(cls, enum.Enum):
        return lines + [f"    {member.name} = {member.value!r}" for member in cls]
    if is_typeddict(cls):
        optional = "optional" if not cls.__total__ else "required"
        keys = inspect.get_annotations(cls)
        return lines + [f"    {key}: {_forward(t)} ({optional})" for key, t in keys.items()]
    return lines + [f"    {line}" for line in _members(cls)]


def _forward(annotation: Any) -> str:
    return getattr(annotation, "__forward_arg__", str(annotation))


def _members(cls: type) -> Iterator[str]:
    if attrs.has(cls):
        for a in attrs.fields(cls):
            kind = "" if a.init else "  # not in the constructor"
            kind = "  # by keyword" if a.init and a.kw_only else kind
            yield f"{a.alias}: {_written_type(cls, a.name)}{_default(a)}{kind}"
    elif "__init__" in vars(cls) and not getattr(cls, "_is_protocol", False):
        yield f"__init__{signature(cls.__init__)}"
    for name, annotation in inspect.get_annotations(cls).items():
        if not attrs.has(cls) and not name.startswith("_"):
            yield f"{name}: {annotation}"
    fields = {a.name for a in attrs.fields(cls)} if attrs.has(cls) else set()
    for name, member in sorted(vars(cls).items()):
        if (name.startswith("_") and name != "__call__") or name in fields:
            continue
        abstract = "abstract " if getattr(member, "__isabstractmethod__", False) else ""
        if isinstance(member, property):
            yield f"{abstract}property {name}{signature(member.fget)}"
        elif isinstance(member, cached_property):
            yield f"property {name}{signature(member.func)}"
        elif inspect.isroutine(member):
            asynchronous = "async " if inspect.iscoroutinefunction(member) else ""
            bound = f"{type(member).__name__} " if isinstance(member, METHODS) else ""
            yield f"{abstract}{bound}{asynchronous}def {name}{signature(getattr(cls, name))}"


def _written_type(cls: type, field: str) -> str:
    """Return a field's type as the source has it; attrs' own copy may have been resolved since."""
    written = [inspect.get_annotations(owner).get(field) for owner in cls.__mro__]
    return next(str(annotation) for annotation in written if annotation is not None)


def _default(attribute: attrs.Attribute[Any]) -> str:
    if attribute.default is attrs.NOTHING:
        return ""
    made = isinstance(attribute.default, attrs.Factory)  # type: ignore[arg-type]  # attrs' stub
    return " = (made)" if made else f" = {attribute.default!r}"


def frozen() -> dict[str, list[str]]:
    """Return the frozen description, by name."""
    entries = [e.splitlines() for e in SNAPSHOT.read_text(encoding="utf-8").strip().split("\n\n")]
    return {_name_of(lines[0]): lines for lines in entries}


def _name_of(head: str) -> str:
    return head.partition("(")[0].partition(":")[0].strip()


def update() -> None:
    text = "\n\n".join("\n".join(describe(name)) for name in FROZEN)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")


def test_the_public_names_are_the_frozen_ones() -> None:
    assert FROZEN == list(frozen()), ON_PURPOSE


@pytest.mark.parametrize("name", FROZEN)
def test_a_public_name_means_what_was_frozen(name: str) -> None:
    expected, now = frozen().get(name, []), describe(name)
    difference = "\n".join(difflib.unified_diff(expected, now, "frozen", "now", lineterm="", n=99))
    assert expected == now, f"{ON_PURPOSE}\n\n{difference}"


# ---------------------------------------------------------------- the facade agrees with itself


def _imported_for_types() -> dict[str, str]:
    """Return what the facade imports under ``if TYPE_CHECKING``: public name to module."""
    tree = ast.parse(Path(isentrope.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(block.body) == len(imports)
    renamed = [a.name for node in imports for a in node.names if a.asname != a.name]
    assert [] == renamed, "a re-export for type checkers is written `import x as x`"
    return {a.name: str(node.module) for node in imports for a in node.names}


def test_type_checkers_see_the_names_that_the_facade_gives() -> None:
    lazy = {name: f"isentrope.{module}" for name, module in isentrope._MODULE_OF.items()}
    modules = dict.fromkeys(isentrope._MODULES, "isentrope")
    assert {**lazy, **modules} == _imported_for_types()


def test_all_lists_every_name_once_and_sorted() -> None:
    assert sorted({*_imported_for_types(), "__version__"}) == isentrope.__all__
    assert isentrope.__all__ == dir(isentrope)


def test_no_name_is_given_by_two_modules() -> None:
    listed = [name for names in isentrope._HOME.values() for name in names.split()]
    assert sorted(isentrope._MODULE_OF) == sorted(listed)


@pytest.mark.parametrize("name", sorted(isentrope._MODULE_OF))
def test_a_name_comes_from_the_module_that_defines_it(name: str) -> None:
    home = f"isentrope.{isentrope._MODULE_OF[name]}"
    value = getattr(isentrope, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert home == value.__module__


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'isentrope' has no attribute 'Objektive'"):
        _ = isentrope.Objektive


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(f"usage: python {Path(__file__).name} --update")
    update()
    print(f"wrote {SNAPSHOT}")
