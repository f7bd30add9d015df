r"""Reading an answer as a whole number, exactly, in process and in linear time.

What does not change the number is taken off: math delimiters, brackets, fonts, spacing, a name in
front (``m+n =``), a unit behind, a full stop, separators of thousands, leading zeros. What is left
is a whole number or it is not; nothing is computed.
"""

from __future__ import annotations

import re

from isentrope_envs.aime.extract import UNITS

_SPACES = r"(?:\s|\\[,;:!>]|\\\s|~|\\q?quad\b)*+"
_PAIRS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    (r"\left(", r"\right)"),
    ("{", "}"),
    ("(", ")"),
    ("**", "**"),
    ("`", "`"),
    ('"', '"'),
)
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|texttt|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|"
    r"bm|boldsymbol|operatorname|boxed|fbox|underline|color\{[a-z]+\}|textcolor\{[a-z]+\})"
    r"\s*\{(.*)\}",
    re.DOTALL,
)
_LABEL = r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?\([A-E]\)\s*\}?"  # of a multiple choice
_LEADING = re.compile(
    rf"^(?:{_SPACES}(?:\\displaystyle|\\textstyle|\\bf|\\rm|\\color\{{[a-z]+\}}|\\\$|{_LABEL}))+|"
    rf"^{_SPACES}"
)
_WORDS = (  # as a unit: any word but those that change the number
    r"\\(?:text|textrm|textnormal|textit|textbf|mathrm|mbox)\s*\{(?![^{}]*"
    r"(?:illion|thousand|hundred|dozen|squared|cubed|factorial|\bnot\b|\bor\b))[^{}\d]*\}"
)
_TRAILING = re.compile(
    rf"(?:{_SPACES}(?:{_WORDS}|\^\s*\\circ|\^\s*\{{\s*\\circ\s*\}}|°|\\degree|\\?%|\b(?:{UNITS})\b)"
    r"(?:\^(?:[23]|\{[23]\}))?)+$|(?:\s|\\[,;:!>]|\\\s|~|[.,;]|\\\$)+$"
)
_NAME = re.compile(r"[a-zA-Z+\-\s]+")
"""What may stand behind a number and an equals sign: ``73 = m + n``."""
_DOLLAR = re.compile(r"(?<!\\)\$")
_EQUALS = re.compile(r"=|\\approx(?![a-zA-Z])|≈")
_COMPARES = re.compile(r"[<>≤≥≠]|\\(?:le|ge|lt|gt|leq|geq|ne|neq|not)(?![a-zA-Z])|!=")
_SEPARATOR = r"(?:,\\!\s*|,|\{,\}|\\[,!:; ])"
_INTEGER = re.compile(rf"[+-]?\s*(?:[1-9]\d{{0,2}}(?:{_SEPARATOR}\d{{3}})+|\d+)(?:\.0*)?", re.ASCII)
_SEVERAL = re.compile(
    r"[,;|&$\n]|\\(?:text|textrm|textbf|mathrm|mbox|pm|mp|to|mapsto|cup|cap|in|infty|mid|lor|land|"
    r"lvert|rvert|\\|rightarrow|Rightarrow|implies|iff|quad|qquad|ldots|dots|cdots)(?![a-zA-Z])|"
    r"\\[{}_]|(?<!\\log)_(?!\{?10\b)|['\u2032]|\\(?:prime|neg|lnot)(?![a-zA-Z])|"
    r"\b(?:or|and|to)\b|\d\s*[a-zA-Z]|\\?%|"
    r"[\u00b1\u2213\u2192\u222a\u221e]|\d\s+\d"
)


def as_integer(text: str) -> int | None:
    r"""Return the whole number that an answer is, or None: ``m+n = \textbf{1{,}073}`` is 1073."""
    core = _core(text)
    if _INTEGER.fullmatch(core) is None:
        return None
    whole = core.partition(".")[0]
    digits = re.sub(r"[^0-9]", "", whole)
    return -int(digits) if whole.startswith("-") else int(digits)


def is_one_value(text: str) -> bool:
    """Say whether an answer can be one number: no list, range, relation, or half a bracket.

    lm-eval's parser reads the beginning of what it cannot read whole, so that ``73, 74`` would
    equal 73.
    """
    core = _core(text)
    return not (_SEVERAL.search(core) or _COMPARES.search(core)) and _is_balanced(core)


def _core(text: str) -> str:
    """Take off what does not change a number, until nothing comes off."""
    text = text.replace("\N{MINUS SIGN}", "-").strip()
    if len(_DOLLAR.findall(text)) == 1:  # the other one was cut off
        text = _DOLLAR.sub("", text).strip() if text[0] == "$" or text[-1] == "$" else text
    before = None
    while text != before:
        before = text
        text = _TRAILING.sub("", _LEADING.sub("", text))
        for left, right in _PAIRS:
            if len(text) >= len(left + right) and text.startswith(left) and text.endswith(right):
                inner = text[len(left) : len(text) - len(right)]
                text = inner.strip() if _is_balanced(inner) else text
        if (font := _FONT.fullmatch(text)) and _is_balanced(font[1]):
            text = font[1].strip()
        if not _COMPARES.search(text):
            sides = _EQUALS.split(text)
            text = sides[0 if _NAME.fullmatch(sides[-1]) else -1].strip()
    return text


def _is_balanced(text: str) -> bool:
    """Say whether brackets are closed in the order in which they were opened."""
    closers: list[str] = []
    for char in text:
        if char in "([{":
            closers.append(")]}"["([{".index(char)])
        elif char in ")]}" and (not closers or closers.pop() != char):
            return False
    return not closers
