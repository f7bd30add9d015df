"""The grader: what counts as the answer, and which answers are right."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isentrope import ConfigError
from isentrope_envs.aime import Reason, Verdict, grade
from isentrope_envs.aime.extract import extract

DATA = Path(os.environ.get("ISENTROPE_TEST_DATA", "nowhere"), "aime")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="ISENTROPE_TEST_DATA names no data")
SLOWEST = 4.0  # seconds for one response, whatever it says


def boxed(answer: str, reference: str = "73", **kwargs: Any) -> Verdict:
    return grade(rf"So it is \boxed{{{answer}}}.", reference, **kwargs)


# ---------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed 7$", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{6} no: \boxed{7}", "7"),
        (r"\boxed{7} and \boxed{8", "7"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"\boxed{ 1 + \boxed{7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{7\}}", r"\{7\}"),
        (r"} \boxed{7} }}", "7"),
        (r"\boxed{}", ""),
        ("Final Answer: The final answer is $7$. I hope it is correct.", "$7$"),
        ("final answer: 7", "7"),
        ("**Final Answer:** 7", "7"),
        ("### Final Answer\n\n$$7$$", "$$7$$"),
        ("**Final Answer**\n\\[\n7\n\\]", "\\[\n7\n\\]"),
        ("Answer: 7.", "7"),
        ("Answer: 3.5", "3.5"),
        ("The answer is 7. It took 3 steps.", "7"),
        ("The answer is 7, which is prime.", "7"),
        ("So the final answer is: $7$", "$7$"),
        ("Final Answer: The largest $n$ is 7.", "7"),
        ("Final Answer: Jane left 7 hours ago. I hope it is correct.", "7"),
        (r"\boxed{6}. Final answer: 7", "7"),
        (r"Final answer: 6. \boxed{7}", "7"),
        (r"Final answer: \boxed{7}", "7"),
        (r"\boxed{7}. The answer is clear.", "7"),
        (r"\boxed{7}. So the answer is 3 times what we had.", "7"),
        ("7", "7"),
        ("  $x = 7$\n", "$x = 7$"),
        ("7 dollars", "7 dollars"),
        (r"\sqrt[3]{8}", r"\sqrt[3]{8}"),
        ("7<|im_end|> \\boxed{8}", "7"),
        (r"<think>\boxed{6}</think> \boxed{7}", "7"),
        (r"</think></think>\boxed{7}", "7"),
    ],
)
def test_a_response_commits_itself_to_its_last_box_or_phrase(response: str, answer: str) -> None:
    assert answer == extract(response).answer


@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n",
        "it is 7",
        "7\n8",
        "just 7",
        r"\boxed{7",
        r"boxed{7}",
        "The answer is clear.",
        "The answer is 7, or 8.",
        "Answer: 7 or 8",
        r"<think>\boxed{7}</think> Done.",
        "+",
    ],
)
def test_prose_and_halves_of_answers_are_none(response: str) -> None:
    assert Verdict(False, False, None, Reason.NO_ANSWER) == grade(response, "7")


@pytest.mark.parametrize(
    ("thinking", "response", "reason"),
    [
        (True, r"<think>\boxed{7}", Reason.UNFINISHED_THINKING),
        (True, r"\boxed{7}", Reason.UNFINISHED_THINKING),  # the template wrote the opening tag
        (True, r"hm</think>\boxed{7}", Reason.SAME_INTEGER),
        (True, r"\boxed{7}</think>hm", Reason.NO_ANSWER),
        (None, r"<think>\boxed{7}", Reason.UNFINISHED_THINKING),
        (None, r"\boxed{7}", Reason.SAME_INTEGER),
        (None, r"\boxed{6}</think>\boxed{7}", Reason.SAME_INTEGER),
        (False, r"<think>\boxed{7}", Reason.SAME_INTEGER),
        (False, r"\boxed{7}</think>hm", Reason.SAME_INTEGER),
    ],
)
def test_thinking_says_where_an_answer_may_stand(
    thinking: bool | None, response: str, reason: Reason
) -> None:
    assert reason == grade(response, "7", thinking=thinking).reason


# ---------------------------------------------------------------- whole numbers

SAME = [
    "73", "073", "00073", "+73", "73.", "73.0", "73.00", "$73$", "$$73$$", r"\(73\)", r"\[73\]",
    "{73}", "(73)", r"\left(73\right)", "**73**", r"\text{73}", r"\textbf{073}", r"\mathrm{73}",
    r"\mathbf{73}", r"\boxed{73}", r"\text{$73$}", "x=73", "m+n = 73", r"m + n = 2 + 71 = 73",
    r"x \approx 73", r"73^\circ", r"73^{\circ}", "73°", r"73\%", "73%", r"73 \text{ cm}",
    r"73\text{ cm}^2", r"73 \mathrm{cm}^{2}", "73 units", r"73\ \text{dollars}", r"\$73", r"73\,",
    r"\,73\;", r"\displaystyle 73", r"\color{red}{73}", "73 ", "\n73\n", "$73", "73$",
]  # fmt: skip
OTHER = ["74", "-73", "730", "7", "0", "1073", "73.5", "7.3", "(-73)", "m+n = 74", "73 = 74"]
SEVERAL = [
    "73,74", "73, 74, 75", r"73 \text{ and } 74", "73 or 74", "73|74", "73]", "73)", r"73\}",
    r"73\to 74", "7 3", "73;74", r"\pm 73", "73 < 74", r"x \ge 73", "x > 73", "[73, 74]", "0,73",
    r"\{73, 74\}", r"73 \cup 74", "73 & 74", "$73$ 74", r"\{73\}", "73 to 74",
]  # fmt: skip


@pytest.mark.parametrize("answer", SAME)
def test_what_does_not_change_a_number_changes_no_verdict(answer: str) -> None:
    verdict = boxed(answer)
    assert (True, Reason.SAME_INTEGER) == (verdict.correct, verdict.reason)


@pytest.mark.parametrize("answer", OTHER)
def test_another_number_is_wrong(answer: str) -> None:
    assert not boxed(answer).correct


@pytest.mark.parametrize("answer", SEVERAL)
def test_several_values_are_wrong_whatever_lm_eval_says(answer: str) -> None:
    verdict = boxed(answer)
    assert (False, Reason.SEVERAL_VALUES) == (verdict.correct, verdict.reason)


@pytest.mark.parametrize("answer", ["1,073", "1{,}073", r"1,\!073", r"1\,073", "1073", "01073"])
def test_thousands_may_be_separated(answer: str) -> None:
    assert boxed(answer, "1073").correct


@pytest.mark.parametrize(
    "answer",
    ["73 = m+n", r"\textbf{(E) }73", "(E) 73", r"\color{red}73", "73,", r"\$73", r"73\text{ ways}"],
)
def test_what_stands_around_a_number_does_not_change_it(answer: str) -> None:
    assert boxed(answer, "73").correct


@pytest.mark.parametrize(
    "answer",
    [
        r"73\text{ million}",
        r"73\text{ squared}",
        r"73\text{ factorial}",
        r"73\text{ not}",
        "73_8",
        "73_{16}",
        r"\neg 73",
        "73'",
        "73m",
        "7$3",
        r"7\$3",
        "73 = 8",
    ],
)
def test_what_does_change_it_is_seen(answer: str) -> None:
    assert not boxed(answer, "73").correct


@pytest.mark.parametrize("said", ["Final Answer: it is certainly not 73", "Answer: 73 is wrong"])
def test_a_number_that_is_denied_is_no_answer(said: str) -> None:
    assert grade(said, "73").extracted is None


def test_a_thousand_phrases_are_read_from_their_end() -> None:
    assert "73" == grade("The answer is 5. " * 20_000 + "The answer is 73.", "73").extracted


@pytest.mark.parametrize("answer", ["1,73", "10,73", "1,0073", "1 073", "1, 073", "0,1073"])
def test_and_only_thousands(answer: str) -> None:
    assert not boxed(answer, "1073").correct


@pytest.mark.parametrize(
    "reference", ["073", "$73$", r"\boxed{73}", r"Thus $x = \boxed{73}$.", "73 "]
)
def test_a_reference_may_be_written_like_an_answer(reference: str) -> None:
    assert boxed("73", reference).correct
    assert not boxed("74", reference).correct


@pytest.mark.parametrize("reference", ["", " ", r"\boxed{}", "word " * 100])
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match="must be an answer of 1 to 256 characters"):
        grade("7", reference)


@pytest.mark.parametrize(
    ("response", "reference", "said"),
    [
        ("73", 73, "reference must be a text, such as '73'; got 73"),
        (73, "73", "response must be a text, such as '73'; got 73"),
    ],
)
def test_what_is_no_text_is_one_sentence(response: Any, reference: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        grade(response, reference)


def test_what_is_too_long_is_not_read() -> None:
    verdict = boxed("0" * 255 + "73")
    assert (False, Reason.TOO_LONG) == (verdict.correct, verdict.reason)
    assert boxed("0" * 254 + "73").correct


WRAPS: list[Callable[[str], str]] = [
    lambda s: f"${s}$",
    lambda s: f"$${s}$$",
    lambda s: rf"\({s}\)",
    lambda s: rf"\[ {s} \]",
    lambda s: rf"\text{{{s}}}",
    lambda s: rf"\mathbf{{{s}}}",
    lambda s: rf"\boxed{{{s}}}",
    lambda s: f"{{{s}}}",
    lambda s: f"({s})",
    lambda s: f"  {s} ",
    lambda s: f"{s}.",
    lambda s: rf"\,{s}\,",
    lambda s: rf"{s}\text{{ cm}}",
]
numbers = st.integers(-(10**9), 10**9)


@given(number=numbers, shift=st.sampled_from([0, 0, 1, -1, 10]), zeros=st.integers(0, 3),
       comma=st.booleans(), wraps=st.lists(st.sampled_from(WRAPS), max_size=4))  # fmt: skip
@settings(max_examples=200)
def test_dressed_numbers_are_equal_where_the_numbers_are(
    number: int, shift: int, zeros: int, comma: bool, wraps: list[Callable[[str], str]]
) -> None:
    from isentrope_envs.aime.integers import as_integer

    text = f"{number:,}" if comma else ("-" if number < 0 else "") + "0" * zeros + str(abs(number))
    for wrap in wraps:
        text = wrap(text)
    assert number == as_integer(text)
    assert (number + shift == number) == (as_integer(text) == as_integer(str(number + shift)))


@given(text=st.text(st.sampled_from("0123456789+-., \\{}$"), max_size=12))
def test_what_reads_as_a_number_has_its_digits_in_their_order(text: str) -> None:
    from isentrope_envs.aime.integers import as_integer

    number = as_integer(text)
    if number is not None:
        whole = re.sub(r"\.0*\D*$", "", text)  # a full stop, or zeros behind a point
        assert str(abs(number)) == (re.sub(r"\D", "", whole).lstrip("0") or "0")
        assert (number < 0) == ("-" in text and number != 0)


# ---------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\frac{146}{2}", "73"),
        (r"\sqrt{5329}", "73"),
        (r"\dfrac{146}2", "73"),
        (r"\binom{73}{1}", "73"),
        ("70+3", "73"),
        (r"\sqrt8", r"2\sqrt{2}"),
        (r"\frac12", "0.5"),
        ("(1, 4.5)", r"(1,\frac{9}{2})"),
        ("x^2+2x+1", "(x+1)^2"),
    ],
)
def test_equal_expressions_are_right(answer: str, reference: str) -> None:
    verdict = boxed(answer, reference)
    assert verdict.correct
    assert verdict.reason in (Reason.MINERVA, Reason.MATH_VERIFY)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [(r"4\sqrt{2}", "4"), (r"\frac{147}{2}", "73"), ("x", "73"), ("(1,2)", "(2,1)"), ("73!", "73")],
)
def test_unequal_expressions_are_wrong(answer: str, reference: str) -> None:
    assert (False, Reason.UNEQUAL) == ((v := boxed(answer, reference)).correct, v.reason)


@pytest.mark.parametrize(
    ("answer", "reference", "exact"),
    [
        ("73", "73", True),
        ("74", "73", False),
        ("073", "73", False),  # lm-eval's false negatives
        (r"73\%", "73", False),
        (r"\mathbf{73}", "73", False),
        ("73, 74", "73", True),  # and false positives
        (r"73 \text{ and } 74", "73", True),
        (r"\frac{146}{2}", "73", True),
        ("m+n=73", "73", True),
    ],
)
def test_the_literal_chain_of_lm_eval_stands_beside_our_verdict(
    answer: str, reference: str, exact: bool
) -> None:
    assert exact == boxed(answer, reference).minerva_exact


def test_minervas_own_phrase_is_exact_as_it_is_for_lm_eval() -> None:
    said = "Final Answer: The final answer is $73$. I hope it is correct."
    assert grade(said, "73").minerva_exact


@given(answer=st.integers(0, 10**30), reference=st.integers(0, 10**30))
@example(answer=0, reference=0)
@settings(max_examples=20)
def test_what_is_plain_needs_no_judge_for_the_literal_chain(answer: int, reference: int) -> None:
    """Against lm-eval itself: it leaves plain digits as they are, so that equality decides."""
    from isentrope_envs.aime.judge import ask

    for other in (reference, answer):
        told = boxed(str(answer), str(other)).minerva_exact
        assert told == ask(None, str(other), (str(answer), str(other))).literal


# ---------------------------------------------------------------- the acceptance sets


def rows(name: str) -> list[dict[str, Any]]:
    if not DATA.is_dir():
        return []
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def is_core(row: dict[str, Any]) -> bool:
    return row["integer_reference"] and row["format"] != "free_text" and "note" not in row


@needs_data
@pytest.mark.parametrize(
    "row", [r for r in rows("grader_cases.jsonl") if is_core(r)], ids=lambda row: row["id"]
)
def test_public_cases_with_a_whole_number_are_judged_as_their_suites_do(
    row: dict[str, Any],
) -> None:
    assert row["expected"] == grade(row["response_or_answer"], row["reference"]).correct


@needs_data
def test_no_public_case_with_a_whole_number_is_a_false_positive() -> None:
    wrong = [r for r in rows("grader_cases.jsonl") if r["integer_reference"] and "note" not in r]
    taken = [r["id"] for r in wrong if not r["expected"]
             and grade(r["response_or_answer"], r["reference"]).correct]  # fmt: skip
    assert [] == taken
    assert 4 <= sum(not r["expected"] for r in wrong)


HOSTILE = {
    "9^{9^{9^9}}": Reason.TOO_COSTLY,
    "100000000!": Reason.TOO_COSTLY,
    r"\binom{100000000}{50000000}": Reason.TOO_COSTLY,
    "7" * 100_000: Reason.TOO_LONG,
    "(" * 10_000 + "70" + ")" * 10_000: Reason.TOO_LONG,
    r"\boxed{" * 3000 + "}" * 3000: Reason.TOO_LONG,
    r"\text{" * 20_000: Reason.NO_ANSWER,
    "answer" + " " * 100_000 + "x": Reason.NO_ANSWER,
    " " * 120 + r"x\quad" + "~" * 120: Reason.SEVERAL_VALUES,
}


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: answer[:12])
def test_hostile_answers_are_wrong_and_soon_so(answer: str) -> None:
    boxed(r"\sqrt{4}")  # the judge is warm
    began = time.monotonic()
    verdict = grade(f"\\boxed{{{answer}}}" if HOSTILE[answer] != "no_answer" else answer, "73")
    assert time.monotonic() - began < SLOWEST
    assert (False, HOSTILE[answer]) == (verdict.correct, verdict.reason)


def adversarial() -> list[str]:
    """Return the strings of the file, made where it has only how to make them."""
    strings = []
    for row in rows("grader_adversarial.jsonl"):
        if row["string"] is not None:
            strings.append(row["string"])
        elif "see" not in row["generator"]:
            strings.append(eval(row["generator"]))
    return strings


@needs_data
@pytest.mark.slow
def test_adversarial_answers_hang_nobody() -> None:
    boxed(r"\sqrt{4}", "2")
    seconds = []
    for answer in adversarial():
        began = time.monotonic()
        boxed(answer, "70")
        seconds.append(time.monotonic() - began)
    assert 60 <= len(seconds)
    assert max(seconds) < SLOWEST


@needs_data
@pytest.mark.slow
def test_adversarial_answers_get_the_same_verdicts_from_eight_threads() -> None:
    answers = [a for a in adversarial() if len(a) < 300]
    alone = [boxed(answer, "70").correct for answer in answers]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda answer: boxed(answer, "70").correct, answers))
    assert alone == together


def test_eight_threads_and_an_event_loop_get_right_verdicts() -> None:
    answers = [(rf"\frac{{{2 * n}}}{{2}}", str(n + n % 2)) for n in range(24)]
    expected = [n % 2 == 0 for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert expected == [v.correct for v in pool.map(lambda pair: boxed(*pair), answers)]

    async def loop() -> list[Verdict]:
        return await asyncio.gather(*(asyncio.to_thread(boxed, *pair) for pair in answers))

    assert expected == [verdict.correct for verdict in asyncio.run(loop())]


# ---------------------------------------------------------------- anything at all

PIECES = st.sampled_from(
    [r"\frac", r"\sqrt", "{", "}", "(", ")", "[", "]", "^", "_", "!", "7", "73", "x", "e", " ", ",",
     r"\boxed{", "$", "|", "=", "+", "-", r"\cdot", r"\left", r"\right", r"\text{", r"\sum",
     r"\int", r"\binom", "answer: ", "Final Answer: ", "</think>", "<think>", "\n", "%", "\\", "&",
     "\x00", r"\pi", r"\infty", r"\begin{pmatrix}", "9^", "\ud800", "\uff17", ".", "and"]
)  # fmt: skip


def judge_anything(pieces: list[str], frame: str) -> None:
    began = time.monotonic()
    verdict = grade(frame % "".join(pieces), "73")
    assert time.monotonic() - began < SLOWEST
    assert not (verdict.correct and verdict.extracted is None)
    assert verdict.correct == grade(frame % "".join(pieces), "073").correct


frames = st.sampled_from([r"\boxed{%s}", "Final Answer: %s", "%s"])


@given(pieces=st.lists(PIECES, max_size=12), frame=frames)
@settings(max_examples=50)
def test_no_response_raises_or_hangs(pieces: list[str], frame: str) -> None:
    judge_anything(pieces, frame)


@pytest.mark.slow
@given(pieces=st.lists(PIECES, max_size=25), frame=frames)
@settings(max_examples=500)
def test_no_response_raises_or_hangs_at_length(pieces: list[str], frame: str) -> None:
    judge_anything(pieces, frame)
