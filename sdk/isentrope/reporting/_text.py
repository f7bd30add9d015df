"""Text that somebody else wrote, made fit to be shown; and numbers as a person reads them."""

from __future__ import annotations

import html
import math
import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """Show what would be invisible, reorder its surroundings, or not be text at all.

    Control characters and those that turn the direction of writing become their names; a lone
    surrogate, which no file can hold, becomes U+FFFD. Tabs and line ends stay.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _SURROGATES.sub("\ufffd", text)
    return _BIDI.sub(_name, _CONTROLS.sub(_name, text))


def _name(match: re.Match[str]) -> str:
    return f"\u27e8U+{ord(match[0]):04X}\u27e9"


def label(text: str) -> str:
    """Return text for a chart: plotly reads some tags in it, so it must hold none."""
    return html.escape(visible(text), quote=False)


def shorten(text: str, limit: int) -> str:
    """Cut a text at `limit` characters, and say how much was left out."""
    left = len(text) - limit
    return text if left <= 0 else f"{text[:limit]}\n\u2026 {left:,} more characters"


def number(value: float | None) -> str:
    """Write three significant digits, whole numbers in full, and a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value < 0:
        return f"\u2212{number(-value)}"
    if float(value).is_integer() and value < 1e15:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value >= 1e-4 else f"{value:.2e}"


def percent(value: float | None) -> str:
    """Write a change in percent, with its sign."""
    if value is None:
        return "\u2013"
    return ("+" if value > 0 else "\u2212" if value < 0 else "") + size_in_percent(value)


def size_in_percent(value: float) -> str:
    """Write a percentage without its sign."""
    return f"{abs(value):,.0f} %" if abs(value) >= 10 else f"{abs(value):.1f} %"


def counted(count: int, noun: str) -> str:
    """Write ``"1 iteration"``, ``"2 iterations"``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
