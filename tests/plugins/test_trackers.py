"""The bundled trackers, by what their own libraries read back."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from isentrope_plugins.trackers.mlflow import named
from isentrope_plugins.trackers.tensorboard import tag
from tests.test_peers import RUN, interpreter

ROOT = Path(__file__).parents[2]
LIBRARIES = ("tensorboard", "wandb", "trackio", "mlflow")


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_library_reads_back_what_it_was_told(library: str) -> None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [interpreter("trackers"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
         "tests/plugins/trackers/read_back.py", "-k", library],
        cwd=ROOT, env=ours, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert re.search(r"^1 passed", done.stdout, re.M), done.stdout + done.stderr


def test_what_ci_installs_is_within_what_the_extras_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    allowed = {r.name: r for name in LIBRARIES for r in map(Requirement, extras[name])}
    (line,) = re.findall(r"^trackers (.*)$", RUN, re.M)
    installed = {r.name: r for r in map(Requirement, line.split())}
    assert allowed.keys() == installed.keys()
    pinned = {name: str(r.specifier)[2:] for name, r in installed.items() if "==" in str(r)}
    assert len(LIBRARIES) == len(pinned)
    assert all(allowed[name].specifier.contains(version) for name, version in pinned.items())


def test_tags_are_grouped_by_their_prefix() -> None:
    names = ("reward", "eval/success", "repo_r.zeta", "repo_r/weight")
    assert ["run/reward", "eval/success", "repo_r/repo_r.zeta", "repo_r/weight"] == [
        *map(tag, names)
    ]


def test_names_have_only_what_mlflow_takes() -> None:
    assert "eval/pass_8" == named("eval/pass@8")
    assert "a-b_c.d e:f/0.01" == named("a-b_c.d e:f/0.01")
