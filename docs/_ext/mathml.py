"""Mathematics as MathML, which browsers draw themselves: no script, no font, no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import SphinxError


class MathError(SphinxError):
    """A formula that latex2mathml does not know."""

    category = "Mathematics"


SPACING = (
    (r"(<mi>(?:log|exp|max|min|sign)</mi>)(?!<mo)", r'\1<mspace width="0.17em" />'),
    (r"<mo([^>]*)>&#x0007C;</mo>", r'<mo\1 lspace="0.08em" rspace="0.08em">|</mo>'),
)
"""Where browsers, which take a function for a name and a bar for a relation, space badly."""


def mathml(latex: str, display: str) -> str:
    """Return a formula as a ``math`` element; raises `MathError` for a command it does not know."""
    try:
        made: str = convert(latex, display=display)
    except Exception as error:  # its errors have no common class
        raise MathError(f"{latex!r}: {type(error).__name__} {error}") from error
    unknown = re.search(r"\\[A-Za-z]+", made)  # it hands on what it does not know
    if unknown:
        raise MathError(f"{latex!r}: {unknown[0]} is unknown.")
    for pattern, spaced in SPACING:
        made = re.sub(pattern, spaced, made)
    return made


def visit_inline(self: Any, node: nodes.math) -> None:
    """Write a formula in a line."""
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula in a paragraph of its own."""
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
