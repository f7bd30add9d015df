"""What the shell completes, asked as bash asks: in a bash that has typer's own script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isentrope.plugins import registry

PYTHON = f'"{sys.executable}" -m isentrope "$@"'
NAMED = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
"""So that shells are named on the command line: there is none above a test to be found."""


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A folder with a command `isentrope`, a run, an evaluation and a config."""
    program = tmp_path / "bin" / "isentrope"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {PYTHON}\n")
    program.chmod(0o755)
    run = tmp_path / "work" / "runs" / "first"
    evaluation = run / "evals" / "one"
    evaluation.mkdir(parents=True)
    (run / "config.toml").write_text('[env]\nid = "arithmetic"\n')
    (run / "run.json").write_text("{}")
    (evaluation / "evaluation.json").write_text("{}")
    (tmp_path / "work" / "runs" / "notes").mkdir()
    (tmp_path / "work" / "mine.toml").touch()
    return tmp_path


def complete(shell: Path, line: str, **more: str) -> list[str]:
    """Return what bash has for the last word of a line, by the script that typer installs."""
    asking = """
    source <(isentrope --show-completion bash)
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _isentrope_completion isentrope
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{shell / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", asking, "bash", *line.split(" ")],
        cwd=shell / "work",
        env={**os.environ, **NAMED, **more, "PATH": path},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "" == done.stderr
    return done.stdout.split()


def ids(*kinds: str) -> set[str]:
    return {name for kind in kinds for name in registry().specs(kind)}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("isentrope tr", ["train"]),
        ("isentrope vl", ["vllm"]),
        ("isentrope vllm s", ["serve"]),
        ("isentrope train --re", ["--resume"]),
        ("isentrope train --resume ", ["runs/first"]),
        ("isentrope train m", ["mine.toml"]),
        ("isentrope view runs/", ["runs/first"]),
        ("isentrope eval ", ["runs/first"]),
        ("isentrope eval runs/first --split t", ["train", "test"]),
        ("isentrope eval runs/first --env boxes --split d", ["dev"]),
        ("isentrope report runs/first/evals/", ["runs/first/evals/one"]),
        ("isentrope compare runs/first r", ["runs/first"]),
        ("isentrope check arithm", ["arithmetic"]),
        ("isentrope check clipped --kind o", ["objective"]),
        ("isentrope new e", ["env"]),
        ("isentrope train --set rollout.ma", ["rollout.max_tokens=", "rollout.max_turns=",
         "rollout.max_seconds=", "rollout.max_failure_rate="]),
        ("isentrope train --set learner.lora.r", ["learner.lora.r="]),
        ("isentrope eval x --set se", ["seed="]),
        ("isentrope vllm install --device c", ["cpu"]),
        ("isentrope appworld install --data t", ["tiny"]),
        ("isentrope view nowhere/", []),
    ],
)  # fmt: skip
def test_bash_completes(shell: Path, line: str, words: list[str]) -> None:
    assert words == complete(shell, line)


def test_every_id_is_offered_where_it_can_be_used(shell: Path) -> None:
    kinds = ("environment", "advantage", "transform", "objective", "controller")
    assert ids(*kinds) == set(complete(shell, "isentrope check "))
    assert ids("environment") == set(complete(shell, "isentrope eval x --env "))
    assert ids("recipe") == set(complete(shell, "isentrope check clipped --on "))


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(tmp_path: Path, shell_name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isentrope", "--install-completion", shell_name],
        env={**os.environ, **NAMED, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (0, "") == (done.returncode, done.stderr)
    written = re.search(r"installed in (\S+)", done.stdout)
    assert written is not None
    assert f"_ISENTROPE_COMPLETE=complete_{shell_name}" in Path(written[1]).read_text()


BROKEN = """
print("this is no word")
import sys
print("nor this", file=sys.stderr)
raise RuntimeError("no more of this")
"""


def test_a_broken_plugin_breaks_no_completion(shell: Path) -> None:
    about = shell / "acme-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[isentrope]\nacme = acme_plugin\n")
    (shell / "acme_plugin.py").write_text(BROKEN)
    path = os.pathsep.join(filter(None, [str(shell), os.environ.get("PYTHONPATH")]))
    assert ["boxes"] == complete(shell, "isentrope check bo", PYTHONPATH=path)


def test_completing_imports_no_torch_and_takes_no_second() -> None:
    """Of processor time, the interpreter's own start included: this machine may be busy."""
    code = """
import sys
from isentrope.cli import main
try:
    main()
finally:
    print(sorted({"torch", "gymnasium", "transformers"} & set(sys.modules)), file=sys.__stderr__)
"""
    words = {"COMP_WORDS": "isentrope check ", "COMP_CWORD": "2"}
    before = os.times()
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **words, "_ISENTROPE_COMPLETE": "complete_bash"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    after = os.times()
    assert "[]\n" == done.stderr
    assert "clipped" in done.stdout.split()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    assert used < 1, f"{used} s of {time.monotonic() - began:.1f}"
