"""Names in docstrings: `Run.tokens`, and in type hints ``isentrope.runs.Run``, lead to one place.

Users know one name of each thing, the facade's; docstrings and type hints know the module's. A name
of the thing that is described (an argument, a field) is shown and not linked, and so is what is not
ours (torch, numpy, the standard library): their sites are elsewhere. Anything else is a warning.
"""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import attrs
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

import isentrope

MODULES = ("isentrope", *(f"isentrope.{name}" for name in isentrope._MODULES))
OTHERS = frozenset(sys.stdlib_module_names | set(dir(builtins))) | {
    "attrs",
    "gymnasium",
    "numpy",
    "pluggy",
    "torch",
    "transformers",
    "typer",
    # Imported for type checkers alone, so shown as they are written:
    "Path",
    "PreTrainedConfig",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "Tensor",
    # Ours, in public signatures, but not for users to name:
    "Cells",
    "ChatTemplate",
    "Component",
    "T",
    "Validator",
}


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find what a name stands for, or let it be; None, which is a warning, if it is nothing."""
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.domains["py"]
    for name in _public(target, node.get("py:class")):
        if entry := domain.objects.get(name):
            place = (node["refdoc"], entry.docname, entry.node_id)
            return make_refnode(app.builder, *place, [content], name)
    first, last = target.partition(".")[0], target.rpartition(".")[2]
    known = first in OTHERS or last in OTHERS or target in _described(node)
    return content if known else None


def _public(target: str, scope: str | None) -> Iterator[str]:
    """Return under which names of the reference a name may stand; scope: the class around it."""
    parts = target.split(".")
    if parts[0] == "isentrope":
        tails = [".".join(parts[i:]) for i, part in enumerate(parts) if part in isentrope.__all__]
    else:
        tails = [target]
        cls = getattr(isentrope, scope.rpartition(".")[2], None) if scope else None
        if inspect.isclass(cls):
            tails += [f"{base.__name__}.{target}" for base in cls.__mro__]
    return (f"{module}.{tail}" for tail in tails for module in MODULES)


def _described(node: Any) -> set[str]:
    """Return the arguments of what a name stands in the description of."""
    names = set()
    while (node := node.parent) is not None:
        if isinstance(node, addnodes.desc):
            for parameter in node.findall(addnodes.desc_parameter):
                names.add(parameter.astext().lstrip("*").partition(":")[0].partition("=")[0])
    return names


def show_bases(app: Any, name: str, cls: type, options: Any, bases: list[type]) -> None:
    """Leave out bases that are not public: what they define is shown with the class."""
    del app, name, cls, options
    bases[:] = [base for base in bases if is_public(base)]


def show_fields(
    app: Any, what: str, name: str, cls: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Show the constructor of an attrs class by its fields, whose types follow below it."""
    del app, name, options, signature
    if getattr(cls, "_is_protocol", False):
        return "", returned
    if what != "class" or not attrs.has(cls):
        return None
    shown, keyword_only = [], False
    for field in filter(lambda field: field.init, attrs.fields(cls)):
        if field.kw_only and not keyword_only:
            shown.append("*")
            keyword_only = True
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a function for mypy
            default = "..." if default.takes_self else default.factory()
        shown.append(field.alias if default is attrs.NOTHING else f"{field.alias}={default!r}")
    return f"({', '.join(shown)})", returned


def is_public(base: Any) -> bool:
    """Say whether a class is a stranger's, or has a name in the facade."""
    module, _, _ = getattr(base, "__module__", "").partition(".")
    return module != "isentrope" or base.__name__ in isentrope.__all__


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-bases", show_bases)
    app.connect("autodoc-process-signature", show_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
