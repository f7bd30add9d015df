"""`isentrope new`: what it writes works on arrival."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import isentrope
from isentrope import ConfigError
from isentrope.scaffold import KINDS, new


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("envs", "mine", "'envs' does not exist. Did you mean 'env'"),
        ("env", "My Env", "small letters, digits and dashes"),
        ("env", "arithmetic", "an installed environment 'arithmetic' already"),
        ("objective", "there", "exists already"),
        ("env", "class", "Python knows 'class' already"),
        ("env", "json", "Python knows 'json' already"),
    ],
)
def test_a_wrong_kind_or_name_is_refused(tmp_path: Path, kind: str, name: str, said: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=said):
        new(kind, name, tmp_path / name)
    assert [tmp_path / "there"] == list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_template_is_left_open(tmp_path: Path, kind: str) -> None:
    folder = new(kind, f"our-{kind}-2", tmp_path / "elsewhere" / f"{kind}s")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 9
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "cookiecutter" not in text
        assert "SUMMARY" not in text
        if path.suffix == ".py":
            compile(text, str(path), "exec")
    release = isentrope.__version__.rpartition(".")[0]
    assert f"isentrope>={release}" in (folder / "pyproject.toml").read_text()
    subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "100",
         "--select", "E,F,W,B,UP,SIM,RUF", str(folder)],
        check=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_installs_and_passes_offline_on_arrival(tmp_path: Path, kind: str) -> None:
    """Into an environment of its own, which sees the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    seen = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "seen.pth").write_text(seen)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*command: str) -> str:
        found = subprocess.run(
            [python, "-m", *command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert 0 == found.returncode, found.stdout + found.stderr
        return found.stdout

    folder = new(kind, f"our-{kind}", tmp_path / f"our-{kind}")
    assert {"runs/", "evals/"} < set((folder / ".gitignore").read_text().split())
    run("pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", ".")
    assert f"our-{kind}" in run("isentrope", "plugins")
    assert "passed" in run("pytest", "-q", "-p", "no:cacheprovider")
    options = ("objective.eps_high", "0.1", "0.5") if kind == "controller" else ()
    settings = zip(("knob", "low", "high"), options, strict=False)
    said = run("isentrope", "check", f"our-{kind}", *(f"--set={k}={v}" for k, v in settings))
    assert "checks passed" in said
    assert "FAIL" not in said
