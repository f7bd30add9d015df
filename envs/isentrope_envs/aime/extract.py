r"""Finding the answer that a response commits itself to.

The contract, in order:

1. What counts is cut at the first end-of-turn token that was spelt out (``<|im_end|>``, ...). With
   `thinking` true it begins behind the last ``</think>``, and there is no answer without one; with
   false it is the whole response; with None the tags decide: behind the last ``</think>``, or
   nothing where a ``<think>`` was never closed.
2. In it, the answer is whatever stands last of these two:
   - a complete ``\boxed{...}`` or ``\fbox{...}`` (of nested ones the outermost), or ``\boxed 7``;
   - a phrase: ``Final Answer:``, ``Answer:`` or ``The answer is``, in any case, with or without
     ``**``, and what follows up to the end of the sentence or line, or of the displayed formula.
     After a colon the sentence may be prose: then its answer is what follows its last " is ", or
     else its only number. A phrase without a value ("the answer is clear") is none.
3. With neither, a response that is nothing but one value (``42``, ``$x = 42$``) is its own answer.
   Prose without a box or a phrase has no answer.
"""

from __future__ import annotations

import re

from attrs import frozen

MOST_PHRASES = 50
"""Phrases that are looked at, from the end: no response needs more to come to a value."""
LONGEST = 256
"""Characters of an answer; a longer one is not read."""

_END = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text|end|eom_id)\|>|</s>")
_BOX = re.compile(r"\\(?:boxed|fbox)")
_BRACES = re.compile(
    r"\\(?:boxed|fbox)\s*+\{|\\(?:boxed|fbox)\s++([^\s{}$\\]+)|\\.|[{}]", re.DOTALL
)
_PHRASE = re.compile(  # possessive throughout: no white space makes it slow
    r"\b(?:(?P<header>(?:final\s++)?answer\s*+(?:\*\*)?+\s*+:)|answer\s++is\b(?:\s++equal\s++to\b)?+\s*+:?+|"
    r"(?P<heading>final\s++answer[ \t]*+(?:\*\*)?+[ \t]*+(?=\n)))\s*+(?:\*\*)?+\s*+",
    re.IGNORECASE,
)
_DISPLAY = re.compile(r"\$\$(.{1,400}?)\$\$|\\\[(.{1,400}?)\\\]", re.DOTALL)
_SENTENCE = re.compile(r"[^\n]{0,400}")
_HOPE = re.compile(r"\s*I hope it is correct")
_STOP = re.compile(r"\.(?=\s|$)|,\s+(?!or\b|and\b)(?=[a-z]{2})")
_IN_MATH = re.compile(
    r"\$[^$]+\$|\$\$[^$]+\$\$|\\\((?:(?!\\\)).)+\\\)|\\\[(?:(?!\\\]).)+\\\]", re.S
)
_NUMBER = re.compile(r"(?<![\w.,])-?\d+(?:[.,]\d+)*(?![\w])")
_COMMAND = re.compile(r"\\(?:text|textbf|textrm|textnormal|mbox|mathrm)\s*\{[^{}]*\}|\\[A-Za-z]+")
UNITS = (
    "square|cubic|units?|ways?|integers?|dollars?|cents?|points?|digits?|degrees?|percent|pct|"
    "percentage|hours?|minutes?|seconds?|days?|years?|mph|inches|inch|feet|foot|ft|miles?|"
    "[ckm]?m|meters?|metres?|gm|k?g|pounds?|edges|students|people|multiples|ordered|pairs?|"
    "triples?|solutions?"
)
"""Words that may stand behind a number without changing it."""
_UNIT = re.compile(rf"\b(?:{UNITS})\b")
_DENIES = re.compile(r"\b(?:not|never|wrong|incorrect|unlike)\b|n't\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")


@frozen
class Extraction:
    """The answer of a response, or why there is none."""

    answer: str | None
    unfinished: bool = False
    """Whether there is none because the thinking never ended."""


def extract(response: str, thinking: bool | None = None) -> Extraction:
    """Return the answer that a response commits itself to; see the module for the contract."""
    spoken = _spoken(response, thinking)
    if spoken is None:
        return Extraction(None, unfinished=True)
    boxed, boxed_end = _last_box(spoken)
    phrased, phrased_end = _last_phrase(spoken)
    if boxed is not None or phrased is not None:
        return Extraction(boxed if boxed_end > phrased_end else phrased)
    whole = spoken.strip()
    short = len(whole) <= LONGEST and "\n" not in whole
    return Extraction(whole if short and _is_value(whole) else None)


def last_box(text: str) -> str | None:
    r"""Return what the last complete ``\boxed{...}`` of a text holds."""
    return _last_box(text)[0]


def _spoken(response: str, thinking: bool | None) -> str | None:
    """Return what follows the thinking; None where that never ended."""
    response = _END.split(response, 1)[0]
    if thinking is False:
        return response
    _, closed, behind = response.rpartition("</think>")
    if closed:
        return behind
    return None if thinking or "<think>" in response else response


def _last_box(text: str) -> tuple[str | None, int]:
    """Return the last complete box and where it ends, in one pass whatever the braces do."""
    open_at: list[int] = []  # where the content of each open brace begins; below 0: of no box
    found, end = None, -1
    for match in _BRACES.finditer(text):
        mark = match[0]
        if mark[-1] == "{" and len(mark) > 2:
            open_at.append(match.end())
        elif mark == "{":
            open_at.append(-1)
        elif match[1] is not None:
            found, end = match[1].rstrip(".,;"), match.end()
        elif mark == "}" and open_at and (start := open_at.pop()) >= 0:
            found, end = text[start : match.start()].strip(), match.end()
    return found, end


def _last_phrase(text: str) -> tuple[str | None, int]:
    """Return the value of the last phrase that has one, and where the phrase begins it."""
    for match in reversed(list(_PHRASE.finditer(text))[-MOST_PHRASES:]):
        prose = bool(match["header"] or match["heading"])
        value = _value_of(text, match.end(), prose=prose)
        if value is not None:
            return value, match.end()
    return None, -1


def _value_of(text: str, start: int, *, prose: bool) -> str | None:
    """Return the value that a phrase announces from `start` on, if there is one."""
    if display := _DISPLAY.match(text, start):
        content = display[0]
    else:
        line = _SENTENCE.match(text, start)
        content = _STOP.split(_HOPE.split(line[0] if line else "", 1)[0], 1)[0]
        content = content.strip().strip("*\"'`").strip()
    if _BOX.search(content):
        return None  # the box speaks for itself
    if _is_value(content):
        return content
    if not prose or _DENIES.search(content):
        return None
    said = content.rpartition(" is ")[2].strip()
    if _is_value(said):
        return said
    numbers = _NUMBER.findall(content)
    return numbers[0] if len(numbers) == 1 else None


def _is_value(text: str) -> bool:
    """Say whether a text is a formula, or a number with its unit, and no prose."""
    if _BOX.search(text):  # an open one, or it would have been found
        return False
    if _IN_MATH.fullmatch(text):
        return True
    bare = _UNIT.sub(" ", _COMMAND.sub(" ", text))
    return bool(text) and _WORD.search(bare) is None and any(c.isalnum() for c in text)
