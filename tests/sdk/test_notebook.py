"""Notebooks: what a policy's code can do in one, and what it cannot."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isentrope
from isentrope import CodeBlocks, ConfigError, NotebookLimits
from isentrope.notebook import notebook as module
from isentrope.notebook.blocks import BARE_CODE, FIRST_BLOCK
from isentrope.notebook.notebook import Notebook
from tests.conftest import SMALL_MODEL
from tests.sdk.test_workers import gone, of_this_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="notebooks are shut in on Linux")


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    found = Notebook(NotebookLimits(seconds=5.0))
    yield found
    found.close()


def test_cells_share_variables_and_show_what_they_print_and_their_last_value(
    notebook: Notebook,
) -> None:
    assert "hi\n6\n" == notebook.run("x = 3\nprint('hi')\nx * 2").output
    assert "4\n" == notebook.run("x + 1").output
    assert "" == notebook.run("None").output
    assert "'é🜂'\n" == notebook.run("'é🜂'").output


def test_a_traceback_is_of_the_cell_alone(notebook: Notebook) -> None:
    notebook.run("def halve(x):\n    return x / 0")
    cell = notebook.run("halve(2)")
    assert not cell.ran
    lines = [line for line in cell.output.splitlines() if line.strip(" ~^")]
    assert lines == [
        "Traceback (most recent call last):",
        '  File "<cell 2>", line 1, in <module>',
        "    halve(2)",
        '  File "<cell 1>", line 2, in halve',
        "    return x / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert "SyntaxError" in notebook.run("x = = 1").output
    assert "SystemExit: 3" in notebook.run("raise SystemExit(3)").output
    assert "KeyboardInterrupt" in notebook.run("raise KeyboardInterrupt").output


def test_much_output_loses_its_middle_and_says_how_much(notebook: Notebook) -> None:
    output = notebook.run("print('a' * 3000 + 'b' * 3000)").output
    assert output.startswith("a" * 2000)
    assert output.endswith("b" * 1999 + "\n")
    assert "[... 2001 characters left out ...]" in output


def test_an_answer_is_what_was_submitted_first(notebook: Notebook) -> None:
    assert ({"a": [1, None]},) == notebook.run("submit({'a': (1, None)})\nsubmit(2)").answers
    assert () == notebook.run("1").answers
    assert "not JSON serializable" in notebook.run("submit(object())").output


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open('/tmp/escape', 'w')", "PermissionError"),
        (f"open({__file__!r}).read()", "PermissionError"),
        ("import os; os.listdir('/root')", "PermissionError"),
        ("import os; os.listdir('/proc')", "PermissionError"),
        ("import isentrope_envs.boxes", "Error"),
        ("import subprocess; subprocess.run(['/bin/ls'])", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "Error"),
        ("x = bytearray(4 << 30)", "MemoryError"),
    ],
)
def test_what_is_shut_off(notebook: Notebook, code: str, error: str) -> None:
    cell = notebook.run(code)
    assert not cell.ran
    assert error in cell.output.splitlines()[-1]


def test_the_network_is_not_there_even_without_a_connection(notebook: Notebook) -> None:
    code = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 9))"
    assert not notebook.run(f"import socket; {code}").ran


def test_it_has_a_folder_of_its_own_and_a_bare_environment(notebook: Notebook) -> None:
    os.environ["A_SECRET"] = "1"
    try:
        assert "'mine'\n" == notebook.run("open('f', 'w').write('mine'); open('f').read()").output
        names = notebook.run("import os; sorted(os.environ)").output
        assert "A_SECRET" not in names
        folder = eval(notebook.run("os.getcwd()").output)
        assert ["f"] == os.listdir(folder)
    finally:
        del os.environ["A_SECRET"]
    notebook.close()
    assert not Path(folder).exists()


def test_processes_are_counted_and_end_with_it(notebook: Notebook) -> None:
    before = of_this_process()
    code = """
import os, time
count = 0
try:
    while count < 1000:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError:
    pass
count"""
    assert 1 <= int(notebook.run(code).output) <= 16
    notebook.close()
    left = of_this_process() - before - {process.pid for _, process in module._nurseries.values()}
    assert all(map(gone, left))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("while True: pass", "The cell took longer than 1 s."),
        ("import os; os._exit(0)", "The cell ended the notebook."),
        ("import ctypes; ctypes.string_at(0)", "The cell ended the notebook."),
        ("import os\nfor i in range(3, 9):\n  try: os.write(i, b'\\xff' * 99)\n  except OSError: 0",
         "The cell ended the notebook."),
    ],
)  # fmt: skip
def test_a_notebook_that_dies_says_so_and_begins_again_empty(code: str, said: str) -> None:
    notebook = Notebook(NotebookLimits(seconds=1.0))
    notebook.run("x = 1")
    start = time.monotonic()
    cell = notebook.run(code)
    assert time.monotonic() - start < 2.5
    assert (False, said) == (cell.ran, cell.died)
    assert "NameError" in notebook.run("x").output
    notebook.close()


def test_random_numbers_are_the_same_in_every_notebook(notebook: Notebook) -> None:
    code = "import random; [random.random(), hash('a')]"
    first = notebook.run(code).output
    notebook.close()
    assert first == notebook.run(code).output


def test_without_protection_nothing_runs_unless_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = module._receive

    def pretend(*arguments: Any) -> Any:
        reply = received(*arguments)
        return {**reply, "held": {"files": False, "network": True}} if "held" in reply else reply

    monkeypatch.setattr(module, "_receive", pretend)
    with pytest.raises(ConfigError, match="cannot shut files off from a notebook"):
        Notebook().run("1")
    careless = Notebook(NotebookLimits(unprotected=True))
    assert "1\n" == careless.run("1").output
    careless.close()


FENCED = "Look:\n```python\na = 1\n```\nand\n~~~\nb\n~~~\n```json\n{}\n```\n````py\n```\n````\n"


@pytest.mark.parametrize(
    ("blocks", "turn", "expected"),
    [
        (CodeBlocks(), FENCED, ["a = 1", "b", "```"]),
        (FIRST_BLOCK, FENCED, ["a = 1"]),
        (CodeBlocks(take="last"), FENCED, ["```"]),
        (CodeBlocks(tags=("json",)), FENCED, ["{}"]),
        (CodeBlocks(), "x = 1", []),
        (BARE_CODE, "x = 1", ["x = 1"]),
        (BARE_CODE, "say\n```\ny\n```", ["y"]),
        (CodeBlocks(), "```python\nx = 1", ["x = 1"]),
        (CodeBlocks(unclosed="ignore"), "```\nx\n```\n```python\ny = 1", ["x"]),
        (CodeBlocks(), "```\n\n```", []),
        (CodeBlocks(), "  ```python\n  x\n  ```", ["  x"]),
    ],
)
def test_code_is_found_in_a_turn(blocks: CodeBlocks, turn: str, expected: list[str]) -> None:
    assert expected == blocks.parse(turn)


@given(st.lists(st.text("ab= 1\n", min_size=1).filter(str.strip), max_size=4), st.text("xy \n"))
def test_what_is_fenced_comes_back(cells: list[str], between: str) -> None:
    turn = between + "".join(f"\n```python\n{cell}\n```\n{between}" for cell in cells)
    assert [cell.strip("\n") for cell in cells] == CodeBlocks().parse(turn)


@given(st.text())
def test_no_text_is_too_much_for_the_parser(text: str) -> None:
    for blocks in (CodeBlocks(), FIRST_BLOCK, BARE_CODE):
        assert all(code.strip() for code in blocks.parse(text))


# ---------------------------------------------------------------- an environment


def play(*turns: str, task: str = "train-max-0") -> list[tuple[str, float, bool, dict[str, Any]]]:
    env = isentrope.make("boxes")
    env.reset(seed=0, options={"task": task})
    steps = [env.step(turn) for turn in turns]
    env.close()
    return [(seen, float(r), done, info) for seen, r, done, _, info in steps]


def test_a_policy_looks_and_then_submits() -> None:
    env = isentrope.make("boxes")
    box = env.tasks.find("train-max-0").data["box"]
    first, last = play("```python\nbox\n```", f"```python\nsubmit({max(box['of'])})\n```")
    assert (f"{box!r}", 0.0, False, {}) == first
    assert ("", 1.0, True, {"success": True, "metrics": {"cells": 2}}) == last


def test_what_is_wrong_is_told_and_costs_a_turn() -> None:
    steps = play(
        "I would rather talk.", "```\n1/0\n```", "```\nx = 1\n```", "```\nwhile 1: pass\n```",
        "```\nbox['do']\n```", "```\nsubmit(min(box['of']))\n```",
    )  # fmt: skip
    said = [seen for seen, _, _, _ in steps]
    assert said[0].startswith("There was no code block in your turn.")
    assert "ZeroDivisionError" in said[1]
    assert "(no output)" == said[2]
    assert "The cell took longer than" in said[3]
    assert "its variables are gone" in said[3]
    assert "'max'" == said[4]  # the box is there again
    assert (0.2, True, False) == (steps[5][1], steps[5][2], steps[5][3]["success"])


def test_a_failed_cell_ends_the_turn() -> None:
    seen, *_ = play("```\n1/0\n```\n```\nprint('never')\n```")[0]
    assert "never" not in seen


@pytest.mark.parametrize("answer", ["True", "'77'", "None", "[77]", "1e400", "-1"])
def test_no_answer_of_another_kind_earns_anything(answer: str) -> None:
    (step,) = play(f"```\nsubmit({answer})\n```")
    assert (0.0, True, False) == (step[1], step[2], step[3]["success"])


@pytest.mark.slow
def test_a_tiny_policy_learns_from_turns_in_notebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isentrope_plugins.tiny.model.DEMONSTRATIONS", 1024)
    run = isentrope.train(
        env="boxes",
        algorithm=isentrope.recipe("grpo", minibatch=32, epochs=1),
        iterations=3,
        model=SMALL_MODEL,
        rollout={"tasks": 4, "group": 8, "max_tokens": 40, "max_turns": 4},
        out=tmp_path / "run",
    )
    assert [32] * 3 == [m["status/ok"] for m in run.metrics]
    assert all(m["turns_per_episode"] > 1 for m in run.metrics)
    assert any(m["groups_zero"] < 4 for m in run.metrics), "some groups have unequal rewards"
    assert any(m["grad_norm"] and m["grad_norm"] > 0 for m in run.metrics)
    assert 0 == sum(m["workers/leaked"] for m in run.metrics)
    talk = run.episodes[0]["messages"]
    assert ["user", "assistant", "user", "assistant"] == [m["role"] for m in talk[:4]]


@pytest.mark.parametrize(
    "code",
    [
        "print('\\ud800')",
        "import sys; type(sys.stdout).text = lambda self: 5",
        "import sys; type(sys.stdout).text = lambda self: 'x' * 10**6",
        "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nos._exit(0)",
        "import time; time.sleep(1.5)\n```\n```\nimport time; time.sleep(1.5)",
    ],
    ids=["half a character", "no text", "too much text", "deep folders", "slow blocks"],
)
def test_no_cell_makes_its_environment_fail(code: str) -> None:
    env = isentrope.make("boxes")
    env.reset(seed=0, options={"task": "train-max-0"})
    seen, _, terminated, *_ = env.step(f"```\n{code}\n```")
    assert len(seen) < 3000
    assert not terminated
    env.reset(seed=0, options={"task": "train-max-1"})
    assert "'do'" in env.step("```\nbox\n```")[0]
    env.close()


def test_what_is_not_its_own_cannot_be_changed(notebook: Notebook, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    before = (tmp_path / "theirs").stat()
    for call in ("chmod({0!r}, 0)", "utime({0!r})", "chown({0!r}, os.getuid(), -1)"):
        cell = notebook.run(f"import os; os.{call.format(str(tmp_path / 'theirs'))}")
        assert "PermissionError" in cell.output
    after = (tmp_path / "theirs").stat()
    assert (before.st_mode, before.st_uid, before.st_mtime) == (
        after.st_mode, after.st_uid, after.st_mtime,
    )  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        "lib.prlimit(os.getppid(), 7, (ctypes.c_ulong * 2)(0, 0), None)",
        "lib.setpriority(0, os.getppid(), 19)",
        "lib.kill(os.getppid(), 9)",
    ],
)
def test_no_other_process_is_limited_slowed_or_killed(notebook: Notebook, call: str) -> None:
    code = f"import ctypes, os; lib = ctypes.CDLL(None); {call}"
    assert "-1" == notebook.run(code).output.strip()
    own = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99)); print('fine')"
    assert "fine" == notebook.run(own).output.strip()


def test_shared_memory_counts_too(notebook: Notebook) -> None:
    code = "import mmap; m = mmap.mmap(-1, 4 << 30)"
    assert not notebook.run(code).ran


@pytest.mark.parametrize("call", ["memfd_create(b'm', 0)", "shmget(0, 1 << 20, 0o1600)"])
def test_memory_that_counts_as_nobodys_is_refused(notebook: Notebook, call: str) -> None:
    cell = notebook.run(f"import ctypes; print(ctypes.CDLL(None).{call})")
    assert "-1" == cell.output.strip()


@pytest.mark.parametrize("tags", ["python", None, [1], []])
def test_tags_that_are_no_list_of_words_are_refused(tags: Any) -> None:
    with pytest.raises(ConfigError, match=r"CodeBlocks\.tags must be a list of words"):
        CodeBlocks(tags=tags)
    with pytest.raises(ConfigError):
        NotebookLimits(unprotected="false")  # type: ignore[arg-type]  # the mistake
