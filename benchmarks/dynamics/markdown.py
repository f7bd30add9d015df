"""Estimates and tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynamics.statistics import Estimate


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table, all but its first column to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(found: Estimate, digits: int = 2, sign: bool = False) -> str:
    """Write an estimate: mean (low .. high)."""
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{found.mean:{form}} ({found.low:{form}} .. {found.high:{form}})"


def percent(found: Estimate, sign: bool = True) -> str:
    """Write an estimate of a relative change: mean % (low .. high)."""
    form = "+.0%" if sign else ".0%"
    text = f"{found.mean:{form}} ({found.low:{form}} .. {found.high:{form}})"
    return text.replace("%", " %")


def signed(found: Estimate, digits: int = 2) -> str:
    """Write a difference, bold where its interval leaves out 0."""
    text = number(found, digits, sign=True)
    return f"**{text}**" if found.differs else text


def verdict(found: Estimate, digits: int = 2) -> str:
    """Say which way a difference goes, if any can be seen."""
    word = "no difference that could be seen"
    if found.differs:
        word = "higher" if found.mean > 0 else "lower"
    return f"{word}, {number(found, digits, sign=True)}"


def span(values: Iterable[float], form: str = ".1e") -> str:
    """Write lowest .. highest."""
    found = [*values]
    return f"{min(found):{form}} .. {max(found):{form}}".replace("%", " %")


def share(value: float, form: str = ".0%") -> str:
    """Write a share, or a change, in per cent."""
    return f"{value:{form}}".replace("%", " %")
