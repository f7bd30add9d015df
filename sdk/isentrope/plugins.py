"""Finding plugins: one entry-point group, each plugin loaded alone, each failure kept to itself.

pluggy's own ``load_setuptools_entrypoints`` stops at the first plugin that does not import, skips a
second plugin of the same name in silence, and accepts a misspelt hook. Here every plugin gets a
pluggy manager of its own; what is wrong with it becomes one `Row` of a table.
"""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint, distributions, version
from typing import Any, Literal

import pluggy
from attrs import evolve, frozen
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from isentrope import hookspecs
from isentrope.errors import PluginError, UnknownNameError, nearest
from isentrope.specs import ComponentSpec, EnvSpec, load_entry_point

GROUP = "isentrope"
Spec = ComponentSpec | EnvSpec
State = Literal["ok", "broken", "incompatible", "refused"]


@frozen
class Row:
    """One line of ``isentrope plugins``: a component, or a plugin that brings none."""

    id: str
    kind: str
    distribution: str
    version: str
    state: State
    summary: str
    """The component's, or what is wrong."""
    spec: Spec | None = None
    cause: BaseException | None = None

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}"


@frozen
class Registry:
    """Everything that the installed plugins bring, good and bad."""

    rows: tuple[Row, ...]

    def specs(self, kind: str) -> dict[str, Spec]:
        """Return the usable components of a kind, by id."""
        return {r.id: r.spec for r in self.rows if r.kind == kind and r.state == "ok" and r.spec}

    def origin(self, kind: str, name: str) -> str:
        """Return the distribution and version that bring a component; for a class, its path."""
        rows = [r for r in self.rows if (r.kind, r.id, r.state) == (kind, name, "ok")]
        return rows[0].origin if rows else name

    def find(self, kind: str, name: str) -> Spec:
        """Return the component of that kind and id.

        Raises `UnknownNameError` where there is none, and `PluginError` with the cause where there
        is one that cannot be used.
        """
        found = self.specs(kind).get(name)
        if found is not None:
            return found
        refused = [r for r in self.rows if r.kind == kind and r.id == name]
        if refused:
            raise PluginError(f"The {kind} {name!r} cannot be used: {refused[0].summary}")
        broken = [r for r in self.rows if r.state != "ok" and r.spec is None]
        hint = ""
        if broken:
            failed = "; ".join(f"{r.id} ({r.origin}): {r.summary}" for r in broken)
            hint = f" Plugins that did not load, where it may be: {failed}"
        error = UnknownNameError(f"The {kind}", name, self.specs(kind), hint)
        # Where exactly one plugin failed, its exception is the likeliest cause of the missing name.
        raise error from (broken[0].cause if len(broken) == 1 else None)


@functools.cache
def registry() -> Registry:
    """Load every installed plugin, once; never called by ``import isentrope``."""
    return load_plugins(distributions())


def load(entry_point: str, what: str) -> Any:
    """Import what a plugin's entry point names; `what` is that, for the error.

    Raises `PluginError` where it does not import.
    """
    try:
        return load_entry_point(entry_point)
    except (Exception, SystemExit) as error:  # a plugin's module may do anything at import
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise PluginError(f"The {what} ({entry_point}) failed to import: {reason}.") from error


def load_plugins(found: Iterable[Distribution]) -> Registry:
    """Load the plugins of these distributions; the first of each name counts, as in imports."""
    rows: list[Row] = []
    for distribution in _once_each(found):
        try:
            entry_points = list(distribution.entry_points.select(group=GROUP))
        except Exception as error:  # entry_points.txt is whatever somebody wrote
            name, release = distribution.metadata["Name"], distribution.version
            problem = f"its entry points cannot be read: {_one_line(error)}"
            rows.append(Row(name, "plugin", name, release, "broken", problem, cause=error))
            continue
        for entry_point in entry_points:
            rows.extend(_load(distribution, entry_point))
    return Registry(tuple(sorted(_refuse_duplicates(rows), key=lambda r: (r.kind, r.id, r.origin))))


def _once_each(found: Iterable[Distribution]) -> Iterator[Distribution]:
    seen: set[str] = set()
    for distribution in found:
        name = distribution.metadata["Name"]
        if name is None:  # a leftover folder without metadata: pip itself ignores it
            continue
        if (key := canonicalize_name(name)) not in seen:
            seen.add(key)
            yield distribution


def _load(distribution: Distribution, entry_point: EntryPoint) -> list[Row]:
    """Load one plugin; whatever it does wrong comes back as a row."""

    def failure(state: State, problem: str, cause: BaseException | None = None) -> list[Row]:
        return [evolve(blank, state=state, summary=problem, cause=cause)]

    name, release = distribution.metadata["Name"], distribution.version
    blank = Row(entry_point.name, "plugin", name, release, "ok", "")
    if mismatch := _mismatch(distribution):
        return failure("incompatible", mismatch)
    try:
        plugin = entry_point.load()
    except (Exception, SystemExit) as error:  # a plugin may do anything at import
        return failure("broken", f"{entry_point.value} failed to import: {_one_line(error)}", error)
    try:
        problems = list(_misnamed_hooks(plugin))
        records = [] if problems else _call_hooks(plugin)
    except PluginError as error:
        return failure("broken", str(error), error.__cause__ or error)
    except (Exception, SystemExit) as error:  # pluggy's own verdict, or an object's odd attributes
        return failure("broken", _one_line(error), error)
    if problems:
        return failure("broken", " ".join(problems))
    if not records:
        return failure("ok", "defines no hooks, so brings nothing")
    return [_row(hook, record, name, release, entry_point) for hook, record in records]


def _mismatch(distribution: Distribution) -> str | None:
    """Say how the distribution's own requirement on isentrope is not met, before importing it."""
    running = version(GROUP)
    for line in distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) != GROUP:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(running, prereleases=True):
            return f"needs isentrope{requirement.specifier}, but this is isentrope {running}."
    return None


def _misnamed_hooks(plugin: Any) -> Iterator[str]:
    """Name every function that was meant as a hook and is not one."""
    for own_name, member in inspect.getmembers(plugin, inspect.isroutine):
        options = getattr(member, f"{GROUP}_impl", None)
        marked = options is not None
        name = (options or {}).get("specname") or own_name
        known = name in hookspecs.KINDS_OF_HOOK
        if (marked or name.startswith("isentrope_")) and not known:
            yield f"There is no hook {name!r}.{nearest(name, hookspecs.KINDS_OF_HOOK)}"
        elif known and not marked:
            yield f"{name} is not marked as a hook: decorate it with @isentrope.hookimpl."


def _call_hooks(plugin: Any) -> list[tuple[str, Any]]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    records: list[tuple[str, Any]] = []
    for hook in hookspecs.KINDS_OF_HOOK:
        caller = getattr(manager.hook, hook)
        try:
            results = caller()
        except (Exception, SystemExit) as error:
            raise PluginError(f"{hook} raised {_one_line(error)}") from error
        # pluggy leaves a None out of the results: here it is a forgotten `return`.
        for returned in results or [None] * len(caller.get_hookimpls()):
            if not isinstance(returned, Sequence) or isinstance(returned, str):
                raise PluginError(
                    f"{hook} must return a list of records, not {type(returned).__name__}."
                )
            records.extend((hook, record) for record in returned)
    return records


def _row(hook: str, record: Any, name: str, release: str, entry_point: EntryPoint) -> Row:
    kinds = hookspecs.KINDS_OF_HOOK[hook]
    if isinstance(record, (ComponentSpec, EnvSpec)) and record.kind in kinds:
        return Row(record.id, record.kind, name, release, "ok", record.summary, record)
    what = f"one of kind {record.kind!r}" if hasattr(record, "kind") else type(record).__name__
    listed = " or ".join(repr(kind) for kind in kinds)
    expected = "EnvSpec" if kinds == ("environment",) else f"ComponentSpec of kind {listed}"
    problem = f"{hook} must return records of type {expected}, not {what}."
    return Row(entry_point.name, "plugin", name, release, "broken", problem)


def _refuse_duplicates(rows: list[Row]) -> Iterator[Row]:
    """Refuse every claimant of an id that several claim; isentrope's own ids stay its own."""
    claims: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.spec is not None:
            claims[row.kind, row.id].append(row)
    for row in rows:
        rivals = [r for r in claims[row.kind, row.id] if r is not row] if row.spec else []
        own = canonicalize_name(row.distribution) == GROUP
        if not rivals or (own and all(canonicalize_name(r.distribution) != GROUP for r in rivals)):
            yield row
            continue
        yield evolve(row, state="refused", summary=_dispute(row, rivals))


def _dispute(row: Row, rivals: list[Row]) -> str:
    others = {r.origin for r in rivals} - {row.origin}
    if not others:
        return f"{row.origin} brings the {row.kind} {row.id!r} more than once."
    if any(canonicalize_name(r.distribution) == GROUP for r in rivals):
        return (
            f"The {row.kind} {row.id!r} is isentrope's own; {row.origin} must name its otherwise."
        )
    listed = " and ".join([row.origin, *sorted(others)])
    return f"{listed} bring the same {row.kind} {row.id!r}; uninstall all but one."


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"
