"""Data: from wherever it is to tasks with stable ids, and what is left of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isentrope
from isentrope import ConfigError, UnknownNameError
from isentrope_envs.aime import data
from isentrope_envs.aime.filters import FILTERS, apply
from isentrope_envs.aime.overlap import SHARED, normalised, same
from isentrope_envs.aime.rows import Row, read
from tests.envs.aime.problems import files, problems, write

DATA = Path(os.environ.get("ISENTROPE_TEST_DATA", "nowhere"), "aime")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="ISENTROPE_TEST_DATA names no data")
REAL = {
    "train": str(DATA / "train_aime_1983_2023.jsonl"),
    "aime24": str(DATA / "aime24.jsonl"),
    "aime25": str(DATA / "aime25.jsonl"),
}


def ids(tasks: Sequence[isentrope.Task]) -> list[str]:
    return [task.id for task in tasks]


# ---------------------------------------------------------------- sources


def as_json(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return str(path)


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return str(folder / "rows.parquet")


def as_dataset(folder: Path, rows: list[dict[str, Any]]) -> str:
    as_parquet(folder / "set", rows)
    return str(folder / "set")


def as_jsonl(folder: Path, rows: list[dict[str, Any]]) -> str:
    return write(folder / "rows.jsonl", rows)


@pytest.mark.parametrize("save", [as_jsonl, as_json, as_parquet, as_dataset])
def test_rows_are_the_same_from_every_kind_of_source(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    expected = problems(2024)
    found = read(save(tmp_path, expected), "aime24")
    assert [(r["problem"], r["answer"]) for r in expected] == [(r.problem, r.answer) for r in found]


@pytest.mark.parametrize(
    "names", [("problem", "answer"), ("Problem", "Answer"), ("QUESTION", "expected_answer")]
)
def test_columns_are_found_in_any_case(names: tuple[str, str], tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{names[0]: "What?", names[1]: 7}])
    (row,) = read(path, "train")
    assert ("What?", 7) == (row.problem, row.integer)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": "aime-2024-II-07"}, "aime-2024-II-07"),
        ({"id": "aime-1985-08"}, "aime-1985-08"),
        ({"ID": "2024-I-4"}, "aime-2024-I-04"),
        ({"id": 60, "url": "https://x.org/wiki/2024_AIME_I_Problems/Problem_4"}, "aime-2024-I-04"),
        ({"id": 3, "url": "https://x.org/1983_AIME_Problems/Problem_15"}, "aime-1983-15"),
        ({"id": "2024-II-16"}, None),
        ({"id": "7"}, None),
        ({"source": "amc_aime"}, None),
        ({}, None),
    ],
)
def test_ids_are_the_papers_where_a_column_tells_and_the_texts_where_none_does(
    columns: dict[str, Any], expected: str | None
) -> None:
    lower = {name.lower(): value for name, value in columns.items()}
    found = Row("What is $1+1$?", "2", lower).id
    if expected is not None:
        assert expected == found
    else:
        assert re.fullmatch("aime-[0-9a-f]{10}", found)
        assert found == Row(r"what  is 1 + \, 1 ?", "3", {}).id
        assert found != Row("What is $1+2$?", "2", {}).id


@pytest.mark.parametrize(
    ("answer", "integer"),
    [("073", 73), ("0", 0), ("000", 0), ("999", 999), ("25.0", 25), (" 7 ", 7), ("1000", None),
     ("-1", None), ("7.5", None), ("proof", None), ("", None), ("\u0667", None), ("m+n", None)],
)  # fmt: skip
def test_an_answer_is_a_whole_number_from_0_to_999(answer: str, integer: int | None) -> None:
    assert integer == Row("?", answer, {}).integer


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("no/such.jsonl", "aime24: there is no file no/such.jsonl."),
        (
            "acme/no-such-set",
            r"aime24: the data set 'acme/no-such-set' is neither here nor to be had \(.*\); pass "
            r'the path of a \.jsonl or \.parquet file: aime24 = "path/to/problems\.jsonl"\.',
        ),
    ],
)
def test_what_is_not_there_is_one_sentence_that_says_what_to_pass(
    source: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(source, "aime24")


def test_a_file_without_the_columns_says_which_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "?", "answer": 3}])
    with pytest.raises(
        ConfigError, match=r"no column for the problem \(problem or question, .*text"
    ):
        read(path, "train")


def test_a_broken_file_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"x\.jsonl cannot be read: JSONDecodeError"):
        read(str(tmp_path / "x.jsonl"), "train")


AGAIN = """
import os, sys
from isentrope_envs.aime.rows import read
print(len(read(sys.argv[1], "train")), "pyarrow" in sys.modules, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize("save", [as_parquet, as_dataset])
def test_what_was_read_once_is_kept_for_the_workers_until_it_changes(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISENTROPE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = save(tmp_path, problems(1999, 5))
    first = read(source, "train")
    done = subprocess.run([sys.executable, "-c", AGAIN, source], capture_output=True, text=True)
    assert ["5", "False", "1"] == done.stdout.split(), done.stderr
    assert [(r.id, r.problem) for r in first] == [(r.id, r.problem) for r in read(source, "train")]
    save(tmp_path, problems(1998, 6))
    assert 6 == len(read(source, "train"))


# ---------------------------------------------------------------- splits


def test_the_splits_have_their_problems_and_answers(tmp_path: Path) -> None:
    env = isentrope.make("aime", **files(tmp_path))
    assert {"train": 20, "aime24": 30, "aime25": 30} == {s: len(t) for s, t in env.tasks.items()}
    assert "aime-2024-II-07" in ids(env.tasks["aime24"])
    first = env.tasks["aime24"][0].data
    assert int(problems(2024)[0]["answer"]) == first["answer"]


def test_ids_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = problems(1999, 20)
    there, back = (write(tmp_path / f"{n}.jsonl", r) for n, r in (("a", rows), ("b", rows[::-1])))
    one, other = (data.load(path, "", "", tuple(FILTERS)).tasks["train"] for path in (there, back))
    assert ids(one) == ids(other)[::-1]
    assert len(set(ids(one))) == 20


def test_an_empty_source_leaves_its_split_out(tmp_path: Path) -> None:
    options = files(tmp_path)
    env = isentrope.make("aime", **{**options, "train": "", "aime25": ""})
    assert ["aime24"] == list(env.tasks)
    with pytest.raises(ConfigError, match="Every split was left out"):
        isentrope.make("aime", train="", aime24="", aime25="")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[:29], "has 29 problems; a year has 30"),
        (lambda rows: [*rows[:29], {**rows[29], "answer": "1000"}], "the answer '1000' for "),
        (
            lambda rows: [*rows[:29], {**rows[29], "answer": "x"}],
            "must be a whole number from 0 to",
        ),
        (lambda rows: [*rows[:29], rows[0]], "twice in split 'aime24'"),
    ],
)
def test_a_year_that_is_not_whole_is_refused(change: Any, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "24.jsonl", change(problems(2024)))
    with pytest.raises(ConfigError, match=sentence):
        data.load("", path, "", tuple(FILTERS))


# ---------------------------------------------------------------- overlap


def test_a_training_problem_of_an_evaluation_split_is_left_out_and_named(tmp_path: Path) -> None:
    twins = [
        {**problems(2024)[3], "id": "1"},
        {**problems(2025)[8], "id": "2", "problem": problems(2025)[8]["problem"].upper() + " Now!"},
    ]
    env = isentrope.make("aime", **files(tmp_path, [*problems(1999, 20), *twins]))
    manifest = env.unwrapped.manifest["train"]
    assert {"aime-2024-I-04", "aime-2025-I-09"} == set(manifest["overlap"].values())
    assert (22, 20) == (manifest["left"]["distinct"], manifest["left"]["not_evaluated"])
    assert 20 == len(env.tasks["train"])


def test_typesetting_and_boilerplate_are_no_difference_and_no_likeness() -> None:
    one = r"Let $x$ be $\frac{m}{n}$, where $m$ and $n$ are relatively prime. Find $m+n$."
    assert normalised(one) == normalised(one.replace("$", "").replace(" ", "  ").upper())
    tail = "where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
    other = f"A fair coin is thrown until three heads in a row have come. The odds are m/n, {tail}"
    third = f"Let triangle $ABC$ have sides $13, 14, 15$, incenter $I$. Then $AI^2 = m/n$, {tail}"
    assert [None] == same([other], {"third": third})
    assert ["other"] == same([other + " Good luck!"], {"third": third, "other": other})


@given(texts=st.lists(st.text("ab c1", max_size=30), max_size=6), other=st.text("ab c1"))
def test_overlap_is_jaccards_index_of_runs_of_four(texts: list[str], other: str) -> None:
    """Against the definition, pair by pair."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = normalised(text)
        return {words[i : i + 4] for i in range(max(1, len(words) - 3))}

    def alike(text: str) -> bool:
        mine, theirs = runs(text), runs(other)
        return len(mine & theirs) / len(mine | theirs) >= SHARED

    assert ["o" if alike(text) else None for text in texts] == same(texts, {"o": other})


# ---------------------------------------------------------------- filters

NUMINA = {
    "source": "amc_aime",
    "synthetic": False,
    "question_type": "math-word-problem",
    "problem_is_valid": "Yes",
    "solution_is_valid": "Yes",
    "problem": "Find it.",
    "answer": "7",
}
DROPPED = {
    "amc_aime": {"source": "olympiads"},
    "not_synthetic": {"synthetic": True},
    "word_problem": {"question_type": "MCQ"},
    "problem_valid": {"problem_is_valid": "Incomplete"},
    "solution_valid": {"solution_is_valid": None},
    "integer_answer": {"answer": r"\frac{1}{2}"},
    "no_choices": {"problem": r"Which? $\textbf{(A)}\ 1 \textbf{(B)}\ 2 \textbf{(C)}\ 3$"},
    "no_figure": {"problem": "As shown in the figure, find it."},
}


def numina(kept: int = 3) -> list[dict[str, Any]]:
    """Return rows as NuminaMath-1.5 has them: one that each filter drops, and some to keep."""
    rows = [{**NUMINA, "problem": f"Find {name}, all of it.", **change}
            for name, change in DROPPED.items()]  # fmt: skip
    extra = [{**NUMINA, "problem": f"Find {i} of them."} for i in range(kept)]
    return [*rows, *extra, {**extra[0], "problem": "find  $0$ of them."}]


def test_every_filter_drops_what_it_names_and_counts_what_is_left() -> None:
    assert list(FILTERS) == list(DROPPED)
    rows = [Row(row["problem"], row["answer"], row) for row in numina()]
    left, counts = apply(rows, list(FILTERS))
    dropping = dict(zip(FILTERS, range(11, 3, -1), strict=True))
    assert {"rows": 12, **dropping, "distinct": 3} == counts
    assert ["Find 0 of them.", "Find 1 of them.", "Find 2 of them."] == [r.problem for r in left]


def test_a_data_set_goes_through_the_datasets_library_and_its_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = as_dataset(tmp_path, numina())
    corpus = data.load(source, "", "", tuple(FILTERS))
    assert 3 == len(corpus.tasks["train"])
    left = corpus.manifest["train"]["left"]
    assert 11 == left["amc_aime"] == left["rows"]  # the others never came into Python
    assert 3 == left["not_evaluated"]


@pytest.mark.parametrize(("kept", "warned"), [(3, False), (4, True)])
def test_another_count_than_is_told_of_is_a_warning(
    kept: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = as_jsonl(tmp_path, numina(kept))
    monkeypatch.setitem(data.EXPECTED, source, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.load(source, "", "", tuple(FILTERS))
    assert warned == any("4 problems of" in str(w.message) for w in caught)


def test_filters_that_ask_for_what_the_data_has_not_are_not_asked(tmp_path: Path) -> None:
    manifest = data.load(files(tmp_path)["train"], "", "", tuple(FILTERS)).manifest
    asked = {name for name, count in manifest["train"]["left"].items() if count is not None}
    assert {"integer_answer", "no_choices", "no_figure"} == asked & set(FILTERS)


def test_a_wrong_filter_and_a_filter_that_leaves_nothing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"Filter 'no_figures' does not exist\. Did you mean"
    ):
        data.load("", "", "", ("no_figures",))
    path = as_jsonl(tmp_path, [{**NUMINA, "answer": "proof"}])
    with pytest.raises(ConfigError, match=r"nothing of .* is left after its filters: .*'rows': 1"):
        data.load(path, "", "", ())


# ---------------------------------------------------------------- the real thing


@needs_data
def test_of_975_real_problems_those_without_figures_are_left() -> None:
    flags = {
        row["id"]: set(row["flags"])
        for row in map(json.loads, (DATA / "train_meta.jsonl").read_text().splitlines())
    }
    with_figure = {name for name, of in flags.items() if of & {"figure_markup", "figure_reference"}}
    with_figure.remove("aime-1994-02")  # only its editorial note had one, which was cut
    corpus = data.load(**REAL, filters=tuple(FILTERS))
    assert set(flags) - with_figure == set(ids(corpus.tasks["train"]))
    assert {"aime24": 30, "aime25": 30} == {
        split: len(tasks) for split, tasks in corpus.tasks.items() if split != "train"
    }


@needs_data
def test_no_real_training_problem_is_an_evaluation_problem() -> None:
    assert {} == data.load(**REAL, filters=tuple(FILTERS)).manifest["train"]["overlap"]
    everything = data.load(REAL["train"], REAL["train"].replace("train_aime_1983_2023", "aime25"),
                           REAL["aime24"], ())  # fmt: skip
    assert 975 == len(everything.tasks["train"])


@needs_data
def test_leading_zeros_of_real_answers_do_not_count(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(REAL["aime24"]).read_text().splitlines()]
    padded = [{**row, "answer": row["answer"].zfill(3)} for row in rows]
    assert 7 == sum(row["answer"].startswith("0") for row in padded)
    corpus = data.load("", write(tmp_path / "x.jsonl", padded), "", ())
    assert [int(r["answer"]) for r in rows] == [t.data["answer"] for t in corpus.tasks["aime24"]]
