"""What a page takes from the code when the site is built, so that no copy of it grows old.

A comment in a page, invisible where Markdown is shown as it is, is replaced before it is parsed:

- ``<!-- page: CONTRIBUTING.md -->``: a page that lies elsewhere in the repository;
- ``<!-- names: Algorithm recipe -->``: these names of `isentrope`, from their docstrings;
- ``<!-- module: isentrope.testing -->``: a public module and its names;
- ``<!-- hooks -->``: every hook, from `isentrope.hookspecs`;
- ``<!-- commands -->``: the command line, from the program itself;
- ``<!-- components: transform -->``: all that the plugins of this project bring of a kind.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import typer
from names import is_public
from sphinx.errors import SphinxError
from sphinx.pycode import ModuleAnalyzer

import isentrope
from isentrope import hookspecs
from isentrope.cli import app as program
from isentrope.plugins import registry

MARK = re.compile(r"^<!-- (names|module|hooks|commands|components)(?:: (.*?))? -->$", re.M | re.S)
PAGE = re.compile(r"^<!-- page: (.+) -->$", re.M)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
DOCS = Path(__file__).parents[1]
OUTSIDE = {
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    "RELEASING": "releasing",
    "examples/README": "examples",
    "isentrope-example-algorithm/README": "plugins/isentrope-example-algorithm",
    "isentrope-example-env/README": "plugins/isentrope-example-env",
    "isentrope-peers/README": "plugins/isentrope-peers",
}
"""Pages that lie elsewhere in the repository, and where the site shows them."""


def fill(app: Any, docname: str, source: list[str]) -> None:
    """Replace the comments of a page, and lead its links to where the site shows a page."""
    del app
    page = PAGE.sub(lambda found: _page(found[1], docname), source[0])
    page = MARK.sub(lambda found: FILLERS[found[1]](found[2] or ""), page)
    top = "../" * docname.count("/")
    for file, shown in OUTSIDE.items():
        page = re.sub(rf"\]\((?:\.\./)+(?:[\w./-]+/)?{file}\.md", f"]({top}{shown}.md", page)
    source[0] = page


def _page(path: str, docname: str) -> str:
    """Return a page of the repository, with links as from the page that shows it."""
    file = DOCS.parent / path

    def lead(found: re.Match[str]) -> str:
        return f"]({os.path.relpath(file.parent / found[1], (DOCS / docname).parent)}"

    return LINK.sub(lead, file.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- names


def names(listed: str) -> str:
    """Return the directives that document names of the facade."""
    return "\n".join(_named("isentrope", name) for name in listed.split())


def module(name: str) -> str:
    """Return the directives that document a module and its names."""
    imported = importlib.import_module(name)
    listed = getattr(imported, "__all__", None) or [
        key
        for key, value in vars(imported).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and not key.startswith("_")
        and value.__module__ == name
    ]
    about = f".. automodule:: {name}\n   :no-members:\n"
    return "\n".join([_rst(about), *(_named(name, key) for key in listed)])


def hooks(_: str) -> str:
    """Return the directives that document every hook."""
    found = (f".. autofunction:: isentrope.hookspecs.{name}\n" for name in hookspecs.KINDS_OF_HOOK)
    return _rst("\n".join(found))


def _named(where: str, name: str) -> str:
    value = getattr(importlib.import_module(where), name)
    path = f"{where}.{name}"
    if inspect.ismodule(value):
        return ""
    if inspect.isclass(value):
        return _rst(f".. autoclass:: {path}\n{_bases(value)}{_inherited(value)}")
    if inspect.isfunction(value):
        return _rst(f".. autofunction:: {path}\n")
    if name == "__version__":
        return _rst(f".. py:data:: {path}\n   :value: {value!r}\n\n   What is installed.\n")
    home = importlib.import_module(f"isentrope.{isentrope._MODULE_OF[name]}")
    said = "\n   ".join(_said(home, ("", name)))
    if not said:
        raise SphinxError(f"{path} has no docstring: write one under it.")
    shown = "" if " object at 0x" in repr(value) else f"   :value: {_short(value)}\n"
    return _rst(f".. py:data:: {path}\n{shown}\n   {said}\n")


def _bases(cls: type) -> str:
    """Return the option that shows bases, where a reader knows one."""
    known = [b for b in cls.__bases__ if b is not object and is_public(b)]
    return "   :show-inheritance:\n" if known else ""


def _inherited(cls: type) -> str:
    """Return the option that shows what comes from bases of ours that are not public."""
    ours = [b for b in cls.__mro__[1:] if b.__module__.partition(".")[0] == "isentrope"]
    hidden = [b for b in ours if b.__name__ not in isentrope.__all__]
    if not hidden:
        return ""
    others = {b.__name__ for b in cls.__mro__[1:]} - {b.__name__ for b in hidden}
    return f"   :inherited-members: {', '.join(sorted(others))}\n"


def _said(home: Any, key: tuple[str, str]) -> list[str]:
    """Return the docstring that stands under an assignment."""
    analyzer = ModuleAnalyzer.for_module(home.__name__)
    return analyzer.find_attr_docs().get(key, [])


def _rst(text: str) -> str:
    return f"````{{eval-rst}}\n{text}\n````\n"


# ---------------------------------------------------------------- the command line


def commands(_: str) -> str:
    """Return a section for each command."""
    return "\n\n".join(_command(typer.main.get_command(program), "isentrope", 2))


def _command(command: Any, path: str, level: int) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    if path != "isentrope":
        yield f"{'#' * level} `{path}`"
        level += 1
    yield "```text\n" + " ".join([path, *command.collect_usage_pieces(context)]) + "\n```"
    yield _prose(inspect.cleandoc(command.help or "").replace("\b\n", ""))
    records = (p.get_help_record(context) for p in command.params)
    rows = [(_code(r[0]), _prose(r[1], one_line=True)) for r in records if r]
    if rows:
        yield _table(("", ""), rows)
    yield _epilog(command.epilog or "")
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        _, brought, _ = command.resolve_command(context, [name])  # of a plugin: loaded by this
        yield from _command(brought, f"{path} {name}", level)


def _epilog(text: str) -> str:
    """Return what help ends with; its indented lines are commands."""
    parts = re.split(r"(?m)((?:^ {4}.*\n?)+)", inspect.cleandoc(text))
    shown = (
        f"```bash\n{inspect.cleandoc(part)}\n```\n" if part.startswith("    ") else _prose(part)
        for part in parts
    )
    return "".join(shown)


# ---------------------------------------------------------------- components


def components(kind: str) -> str:
    """Return a section for each component of a kind that this project brings."""
    rows = (r for r in registry().rows if r.kind == kind and r.distribution == "isentrope")
    return "\n\n".join(part for row in rows for part in _component(row))


def _component(row: Any) -> Iterator[str]:
    yield f"### `{row.id}`"
    yield _prose(f"{row.summary.rstrip('.')}.")
    elsewhere = row.kind == "environment" and row.spec.python is not None
    named = None if elsewhere else row.spec.load()
    if named is not None and (more := inspect.getdoc(named).partition("\n\n")[2]):
        yield _prose(more)
    about = [f"`{row.spec.entry_point}`"]
    if row.kind == "environment":
        about += [f"splits {', '.join(map(_code, row.spec.splits))}"] if row.spec.splits else []
        about += [f"isolation {_code(row.spec.isolation)}"]
        about += [f"{_code(k)} = {_code(_short(v))}" for k, v in row.spec.config.items()]
    if isinstance(needs := getattr(named, "needs", None), frozenset):
        about += ["needs " + ", ".join(map(_code, sorted(needs)))]
    yield " · ".join(about)
    if named is None:
        yield "It runs in an interpreter of its own."
        return
    if row.kind == "recipe":
        slots = isentrope.recipe(row.id).slots()
        yield "\n".join(f"- {_code(slot)}: {_code(repr(part))}" for slot, part in slots.items())
    if row.kind in ("recipe", "environment"):
        rows = list(_arguments(named))
    else:
        rows = list(_fields(named))
    if rows:
        yield _table(("field", "type", "default", "bounds", ""), rows)


def _arguments(function: Any) -> Iterator[tuple[str, ...]]:
    """Return the options of a recipe or of an environment."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = parameter.default
        told = "" if default is parameter.empty else _code(_short(default))
        typed = parameter.annotation
        yield _code(name), _type(typed if typed is not parameter.empty else ""), told, "", ""


def _fields(cls: Any) -> Iterator[tuple[str, ...]]:
    """Return the fields of an attrs class, each with what is said under it."""
    if not attrs.has(cls):
        return
    for attribute in attrs.fields(cls):
        if not attribute.init:
            continue
        name = attribute.alias or attribute.name
        default = attribute.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a function for mypy
            default = "" if default.takes_self else default.factory()
        told = "" if default is attrs.NOTHING else _code(_short(default))
        bounds = attribute.metadata.get("knob")
        said = next(
            (
                lines
                for base in cls.__mro__
                if base.__module__ != "builtins"
                and (lines := _field_said(base, attribute.name)) is not None
            ),
            [],
        )
        yield (
            _code(name),
            _type(attribute.type),
            told,
            f"knob, {bounds}" if bounds else _prose(_wanted(attribute)),
            _prose(" ".join(said), one_line=True),
        )


def _wanted(attribute: attrs.Attribute[Any]) -> str:
    """Return what a field must be, as its validator says of something that it never is."""
    try:
        if attribute.validator is not None:
            attribute.validator(object(), attribute, object())
    except isentrope.ConfigError as error:
        found = re.search(r" must be (.+); got ", str(error))
        return found[1] if found and found[1] != "true or false" else ""
    except TypeError:  # attrs' own, of the elements of a sequence
        return ""
    return ""


def _field_said(cls: Any, name: str) -> list[str] | None:
    return _all_said(cls.__module__).get((cls.__qualname__, name))


def _all_said(name: str) -> dict[tuple[str, str], list[str]]:
    try:
        return ModuleAnalyzer.for_module(name).find_attr_docs()
    except SphinxError:  # of C, which our classes' bases may be
        return {}


# ---------------------------------------------------------------- Markdown


def _short(value: Any) -> str:
    name = getattr(value, "__name__", None)
    return name if inspect.isclass(value) or inspect.isfunction(value) else repr(value)


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _code(re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)) if text else ""


def _code(text: str) -> str:
    return f"`{text}`"


def _prose(text: str, *, one_line: bool = False) -> str:
    """Return text of docstrings and of help as Markdown: only code is marked up in it."""
    parts = re.split(r"(``.+?``|`[^`]+`)", " ".join(text.split()) if one_line else text)
    return "".join(p if p.startswith("`") else re.sub(r"([<>*_$\[\]|])", r"\\\1", p) for p in parts)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    kept = [i for i, _ in enumerate(head) if any(row[i] for row in rows)]
    lines = [[line[i] for i in kept] for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(
        "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line) + " |"
        for line in lines
    )


FILLERS = {
    "names": names,
    "module": module,
    "hooks": hooks,
    "commands": commands,
    "components": components,
}


# ---------------------------------------------------------------- completeness


def check(app: Any, env: Any) -> None:
    """Refuse a site whose reference lacks a public name."""
    del app
    known = env.domains["py"].objects
    lacking = [n for n in isentrope.__all__ if f"isentrope.{n}" not in known]
    if lacking:
        raise SphinxError(f"docs/reference lacks {', '.join(lacking)}.")


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("source-read", fill)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
