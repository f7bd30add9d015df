"""The verdict on a response: by whole numbers in process, by the judge otherwise."""

from __future__ import annotations

import re
from enum import StrEnum

from attrs import frozen

from isentrope import ConfigError
from isentrope_envs.aime.extract import LONGEST, extract, last_box
from isentrope_envs.aime.integers import as_integer, is_one_value
from isentrope_envs.aime.judge import Opinion, ask

_PLAIN = re.compile(r"0|[1-9][0-9]*")  # what lm-eval's normalisation leaves as it is


class Reason(StrEnum):
    """Why a response is right or wrong."""

    SAME_INTEGER = "same_integer"
    OTHER_INTEGER = "other_integer"
    MINERVA = "minerva"
    """lm-eval's `is_equiv` accepts it, having read all of it."""
    MATH_VERIFY = "math_verify"
    """math-verify accepts it."""
    UNEQUAL = "unequal"
    """Neither does."""
    SEVERAL_VALUES = "several_values"
    """A list, a range or a relation, where the reference is a whole number."""
    TOO_COSTLY = "too_costly"
    """Nobody accepted it before it had used up its processor time or memory."""
    TOO_LONG = "too_long"
    """More than 256 characters, which are not read."""
    NO_ANSWER = "no_answer"
    UNFINISHED_THINKING = "unfinished_thinking"


@frozen
class Verdict:
    """What a response is worth."""

    correct: bool
    minerva_exact: bool
    """Whether lm-eval's literal chain accepts the extracted answer in Minerva's own phrase, with
    its false positives (``73, 74`` for 73) and negatives (``073``). False where it takes more than
    half a second of processor time; lm-eval gives it five of wall time."""
    extracted: str | None
    """The answer that was judged; None where there is none."""
    reason: Reason


def grade(response: str, reference: str, *, thinking: bool | None = None) -> Verdict:
    """Judge a response by the answer that it commits itself to; see `extract` for which that is.

    response: what the policy said, without its prompt. reference: the right answer, or a solution
    whose last box holds it. thinking: whether the response must close a ``</think>`` before its
    answer; False: it has no thinking; None: its tags decide.

    If the reference is a whole number, an answer that is one is compared exactly, in process, in
    about a millisecond, and a list or relation is wrong. Whatever else is right if lm-eval's
    `is_equiv` or math-verify accepts it, which a process that can be killed decides within
    half a second of processor time.

    An answer that is too long, or costs more than that, or breaks the process that judges it, is
    wrong: nothing that a policy writes keeps its episode from being learnt from. From any thread;
    in an event loop, use `asyncio.to_thread`.

    Raises `GraderError` where the machine or the installation keeps the judge from a verdict, and
    `ConfigError` for what is no text, an empty reference, or one of more than 256 characters
    without a box.
    """
    for name, text in (("response", response), ("reference", reference)):
        if not isinstance(text, str):
            raise ConfigError(
                f"{name} must be a text, such as {str(text)!r:.60}; got {text!r:.60}."
            )
    wanted = _reference(reference)
    found = extract(response, thinking)
    answer = found.answer
    if answer is None:
        reason = Reason.UNFINISHED_THINKING if found.unfinished else Reason.NO_ANSWER
        return Verdict(False, False, None, reason)
    if len(answer) > LONGEST:
        return Verdict(False, False, answer[:LONGEST], Reason.TOO_LONG)
    integer = as_integer(wanted)
    if integer is None:
        opinion = ask(_bare(answer), _bare(wanted), (_bare(answer), wanted))
        return Verdict(opinion.by is not None, opinion.literal, answer, _why(opinion))
    found_integer = as_integer(answer)
    if found_integer is not None:
        same = found_integer == integer
        reason = Reason.SAME_INTEGER if same else Reason.OTHER_INTEGER
        return Verdict(same, _literally(answer, wanted), answer, reason)
    if not is_one_value(answer):
        return Verdict(False, _literally(answer, wanted), answer, Reason.SEVERAL_VALUES)
    opinion = ask(_bare(answer), str(integer), (_bare(answer), wanted))
    return Verdict(opinion.by is not None, opinion.literal, answer, _why(opinion))


def _reference(text: str) -> str:
    box = last_box(text)
    wanted = (text if box is None else box).strip()
    if not 0 < len(wanted) <= LONGEST:
        raise ConfigError(
            f"A reference must be an answer of 1 to {LONGEST} characters, or a text whose last "
            f"box holds one; got {len(wanted)} characters: {wanted[:40]!r}."
        )
    return wanted


def _bare(text: str) -> str:
    """Leave out the outer math delimiters, which are not part of an expression."""
    return text.strip().strip("$").strip()


def _literally(answer: str, wanted: str) -> bool:
    """Return the verdict of lm-eval's literal chain, without asking where it is plain."""
    bare = _bare(answer)
    if _PLAIN.fullmatch(bare) and _PLAIN.fullmatch(wanted):
        return bare == wanted
    return ask(None, wanted, (bare, wanted)).literal


def _why(opinion: Opinion) -> Reason:
    if opinion.by is not None:
        return Reason(opinion.by)
    return Reason.TOO_COSTLY if opinion.spent else Reason.UNEQUAL
