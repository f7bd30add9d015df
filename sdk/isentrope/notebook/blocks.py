"""Code in an assistant's turn: which of its fenced blocks are cells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

from attrs import field, frozen

from isentrope.errors import ConfigError
from isentrope.validation import flag, one_of

Take = Literal["first", "last", "all"]
Unclosed = Literal["run", "ignore"]
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n?", re.MULTILINE)


def _tags(tags: Iterable[str]) -> frozenset[str]:
    found = [] if isinstance(tags, str) or not isinstance(tags, Iterable) else list(tags)
    if not found or not all(isinstance(tag, str) for tag in found):
        raise ConfigError(f"CodeBlocks.tags must be a list of words; got {tags!r}.")
    return frozenset(tag.lower() for tag in found)


@frozen(kw_only=True)
class CodeBlocks:
    """How code is found in a turn. Fences are three or more backticks or tildes."""

    tags: frozenset[str] = field(default=("python", "py", ""), converter=_tags)
    """What may stand behind an opening fence; blocks with another tag are not code."""
    take: Take = field(default="all", validator=one_of(get_args(Take)))
    """Which blocks are run, each as a cell."""
    unclosed: Unclosed = field(default="run", validator=one_of(get_args(Unclosed)))
    """What becomes of a last block whose fence is not closed: a turn may have been cut off."""
    bare: bool = field(default=False, validator=flag())
    """Take a turn without any fence for code."""

    def parse(self, turn: str) -> list[str]:
        """Return the cells of a turn, in order."""
        found: list[str] = []
        place, fenced = 0, False
        while (opening := _FENCE.search(turn, place)) is not None:
            fenced = True
            fence, tag = opening.groups()
            closing = re.compile(rf"^[ \t]*{fence[0]}{{{len(fence)},}}[ \t]*$", re.MULTILINE)
            end = closing.search(turn, opening.end())
            if tag.lower() in self.tags and (end is not None or self.unclosed == "run"):
                found.append(turn[opening.end() : end.start() if end else len(turn)].strip("\n"))
            if end is None:
                break
            place = end.end()
        if not fenced and self.bare:
            found = [turn]
        found = [code for code in found if code.strip()]
        return found if self.take == "all" else found[:1] if self.take == "first" else found[-1:]


FIRST_BLOCK = CodeBlocks(take="first")
"""One cell a turn, as ReAct-style agents write it; what follows it in the turn is not run."""
ALL_BLOCKS = CodeBlocks()
"""One cell a block, as LOOP writes it."""
BARE_CODE = CodeBlocks(bare=True)
"""The whole turn is code, unless it has fences."""
