"""The example plugins, as strangers' distributions: built, installed, tested and trained with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

EXAMPLES = Path(__file__).parents[1] / "plugins" / "examples"
NAMES = ("isentrope-example-env", "isentrope-example-algorithm")
BROUGHT = {
    "example/swaps": ("environment", NAMES[0]),
    "example/swaps-hard": ("environment", NAMES[0]),
    "example/cispo": ("objective", NAMES[1]),
    "example/cispo-pi": ("recipe", NAMES[1]),
    "example/entropy-pi": ("controller", NAMES[1]),
}
SMALL = (
    "iterations=2", "env.letters=4", "rollout.tasks=8", "algorithm.minibatch=16",
    "model.hidden_size=32", "model.layers=1", "model.warmup_steps=150", "model.warmup_batch=64",
    "model.warmup_lr=8e-3",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed both."""
    return installed(tmp_path_factory.mktemp("examples"), *NAMES)


def installed(folder: Path, *names: str) -> Path:
    """Install examples into a folder of `folder`, and return it."""
    wheels = [
        next(WheelBuilder(str(EXAMPLES / name)).build(directory=str(folder), versions=["standard"]))
        for name in names
    ]
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", *wheels],
        check=True,
    )
    return folder / "site"


def python(*arguments: object, site: Path, cwd: Path, by: str = sys.executable) -> str:
    """Run ``python ...`` with the examples installed; return what it printed."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    more = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [by, *map(str, arguments)],
        cwd=cwd, env={**ours, **more}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_example_imports_nothing_below_the_facade(name: str) -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (EXAMPLES / name).rglob("*.py")}
    assert len(sources) >= 4
    below = re.compile(r"^\s*(?:from|import) (isentrope\.[\w.]+|isentrope_(?!example)\w+)", re.M)
    found = {(p.name, m) for p, text in sources.items() for m in below.findall(text)}
    assert set() == {(p, m) for p, m in found if m != "isentrope.testing"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_examples_own_tests_pass_where_it_is_installed(site: Path, name: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error::DeprecationWarning"]
    printed = python("-m", "pytest", *options, site=site, cwd=EXAMPLES / name)
    assert re.search(r"\d+ passed", printed)
    assert not re.search(r"failed|error|skipped", printed)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_code_in_an_examples_readme_runs(site: Path, tmp_path: Path, name: str) -> None:
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    python("-c", code, site=site, cwd=tmp_path)


@pytest.mark.slow
def test_the_table_of_plugins_says_where_each_part_of_the_examples_comes_from(
    site: Path, tmp_path: Path
) -> None:
    rows = [
        line.split()
        for line in python("-m", "isentrope", "plugins", site=site, cwd=tmp_path).splitlines()
    ]
    expected = {name: [kind, source, "0.1.0", "ok"] for name, (kind, source) in BROUGHT.items()}
    assert expected == {row[0]: row[1:5] for row in rows if row[0] in BROUGHT}
    assert set(BROUGHT) == {row[0] for row in rows if row[2] in NAMES}


@pytest.mark.slow
def test_one_examples_environment_trains_under_the_others_recipe(
    site: Path, tmp_path: Path
) -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    config = EXAMPLES / "swaps-cispo-pi.toml"
    python("-m", "isentrope", "train", config, *settings, "--out", "run", site=site, cwd=tmp_path)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert 0 < first["success"] < 1
    assert first["grad_norm"] > 0
    assert 0.0 == first["repo_r.zeta"] != second["repo_r.zeta"]
    assert {"env/swaps_missing", "objective/cispo_capped", "repo_r/flipped"} <= set(second)
    again = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert all(f'"{name}"' in again for name in ("example/swaps", "example/cispo"))
