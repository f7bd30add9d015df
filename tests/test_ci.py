"""`.ci/environment`: found, built, and never found half-built. Groups of tests stay together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "environment"

pytestmark = pytest.mark.slow


def environment(cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    ours = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    more = {"XDG_CACHE_HOME": str(cache), "PYTHON": sys.executable}
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        env={**ours, **more}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def built(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "isentrope" / "ci").iterdir())


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A wheel that needs no index."""
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    about = "toy-1.0.dist-info"
    with ZipFile(path, "w") as wheel:
        wheel.writestr("toy.py", "answer = 42\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def test_an_environment_is_built_once_and_again_where_its_interpreter_is_gone(
    tmp_path: Path, toy: Path
) -> None:
    first = environment(tmp_path, "toys", toy)
    assert 0 == first.returncode, first.stderr
    python = Path(first.stdout.strip())
    code = "import toy; print(toy.answer)"
    assert "42\n" == subprocess.check_output([python, "-c", code], text=True)
    assert [python.parents[1].name] == built(tmp_path)
    (python.parents[1] / "mark").touch()
    assert first.stdout == environment(tmp_path, "toys", toy).stdout
    assert (python.parents[1] / "mark").exists()
    python.unlink()
    assert first.stdout == environment(tmp_path, "toys", toy).stdout
    assert "42\n" == subprocess.check_output([python, "-c", code], text=True)
    assert not (python.parents[1] / "mark").exists()


def test_one_over_another_interpreter_sees_what_that_has(tmp_path: Path, toy: Path) -> None:
    done = environment(tmp_path, "--over", sys.executable, "toys", toy)
    assert 0 == done.returncode, done.stderr
    code = "import gymnasium, toy; print(toy.answer)"
    assert "42\n" == subprocess.check_output([done.stdout.strip(), "-c", code], text=True)


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, toy: Path) -> None:
    failed = environment(tmp_path, "toys", toy, tmp_path / "gone-1.0-py3-none-any.whl")
    assert 0 != failed.returncode
    assert "" == failed.stdout
    assert [] == built(tmp_path)


def test_tests_of_a_group_run_in_one_process(tmp_path: Path) -> None:
    """pytest 9.2.0 and pytest-xdist 3.8.0 dealt them out: every costly fixture was made twice."""
    (tmp_path / "test_group.py").write_text("""
import os, pathlib, pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("i", range(6))
def test_it(i):
    pathlib.Path(str(os.getpid())).touch()
""")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert 1 == len([path for path in tmp_path.iterdir() if path.name.isdigit()])
