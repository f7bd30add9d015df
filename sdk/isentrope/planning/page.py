"""A plan as a page of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from isentrope.parts import Controller
from isentrope.planning.plan import MemoryRow, Plan, PlannedMemory

MIB, GIB = 2**20, 2**30


def page(plan: Plan) -> Iterator[str]:
    """Yield the lines of what ``isentrope train --dry-run`` prints."""
    yield from _columns([(part.slot, part.id, part.origin) for part in plan.parts])
    yield ""
    yield from _told(plan)
    if plan.memory is not None:
        yield ""
        yield from _table(plan.memory)
    for title, sentences in (
        ("", plan.notes),
        ("Not on this machine", plan.missing),
        ("What is wrong", plan.problems),
    ):
        if sentences:
            yield from ("", *([f"{title}:"] if title else []))
            yield from sentences
    yield ""
    yield "The run could start." if plan.ready else "The run could not start here."


def _told(plan: Plan) -> Iterator[str]:
    config = plan.config
    if plan.tasks is not None:
        yield "Tasks: " + ", ".join(f"{n:,} in {split}" for split, n in plan.tasks.items()) + "."
    if (m := plan.model) is not None:
        yield (
            f"{m.name}: {m.layers} layers, hidden {m.hidden:,}, {m.heads} heads, vocabulary "
            f"{m.vocabulary:,}, {m.positions:,} positions; {m.parameters:,} parameters, of which "
            f"{m.trainable:,} are trained."
        )
    knobs = config.algorithm.initial_state().knobs
    moved = {
        path: slot
        for slot, part in config.algorithm.slots().items()
        if isinstance(part, Controller)
        for path in part.moves
    }
    for path, value in knobs.items():
        yield f"Knob {path}: {value:g}" + (f", moved by {moved[path]}." if path in moved else ".")
    adapters = getattr(config.engine, "takes_adapters", False)
    proven = getattr(config.engine, "proven", False)
    yield (
        f"The engine is sent {'adapters' if adapters else 'whole weights'}"
        + (", and proves after each publication that it has them." if proven else ".")
    )
    if (i := plan.iteration) is not None:
        yield (
            f"An iteration, at most: {i.episodes:,} episodes of {i.context:,} tokens, "
            f"{i.episodes * i.context:,} tokens of which {i.sampled:,} are sampled, and {i.steps} "
            f"optimizer steps. There are {config.iterations:,} iterations."
        )
    if (e := config.evaluation) is not None:
        there = None if plan.tasks is None else plan.tasks[e.split]
        known = [n for n in (e.tasks, there) if n is not None]
        count = f"{min(known) * e.k:,} episodes" if known else f"all tasks, {e.k} times,"
        yield f"Every {e.every} iterations an evaluation: {count} of {e.split}."


def _table(memory: PlannedMemory) -> Iterator[str]:
    total = memory.total
    most = max(total.starting, total.collecting, total.learning)
    unit, name = (GIB, "GiB") if most >= GIB else (MIB, "MiB")
    of = "the process" if memory.ranks == 1 else f"the first of {memory.ranks} ranks"
    heads = (f"Memory of {of} ({memory.device}), {name}", "starting", "collecting", "learning")
    yield from _columns([heads, *(_cells(row, unit) for row in (*memory.rows, total))], right=True)
    if memory.limit is not None:
        yield f"There are {memory.limit / unit:,.1f} {name}."


def _cells(row: MemoryRow, unit: int) -> tuple[str, ...]:
    sizes = (row.starting, row.collecting, row.learning)
    return (row.name, *(f"{size / unit:,.2f}" if size else "" for size in sizes))


def _columns(rows: Sequence[Sequence[str]], *, right: bool = False) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        yield "  ".join([first.ljust(widths[0]), *padded]).rstrip()
