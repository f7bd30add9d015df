"""isentrope-peers, installed as a stranger's distribution: with its libraries, and without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_examples import EXAMPLES, installed, python

PEERS = EXAMPLES / "isentrope-peers"
RUN = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
EXTRA = {"gem": "gem", "textarena": "textarena", "reasoning-gym": "reasoning-gym", "skyrl": "skyrl"}
ELSEWHERE = {
    "peers": ("test_textarena.py", "test_reasoning_gym.py", "test_skyrl.py"),
    "peers_gem": ("test_gem.py",),
}
"""Which of its tests run in which of the environments that `.ci/run` builds."""


def interpreter(name: str) -> str:
    """Return the interpreter of an environment that `.ci/run` built; skip where there is none."""
    variable = f"ISENTROPE_PYTHON_{name.upper()}"
    if variable not in os.environ:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"{variable} names no interpreter; .ci/environment makes one, as .ci/run says")
    return os.environ[variable]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed it."""
    return installed(tmp_path_factory.mktemp("peers"), "isentrope-peers")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tests"), [(name, test) for name, tests in ELSEWHERE.items() for test in tests]
)
def test_its_own_tests_pass_where_the_libraries_are(site: Path, name: str, tests: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", Path("tests") / tests]
    printed = python("-m", "pytest", *options, site=site, cwd=PEERS, by=interpreter(name))
    assert re.search(r"\d+ passed", printed)
    assert not re.search(r"failed|error|skipped", printed)


@pytest.mark.slow
def test_its_other_tests_pass_without_any_library(site: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/test_peer.py"]
    assert re.search(r"\d+ passed", python("-m", "pytest", *options, site=site, cwd=PEERS))


@pytest.mark.slow
def test_without_the_libraries_its_environments_are_listed(site: Path, tmp_path: Path) -> None:
    listed = python("-m", "isentrope", "envs", site=site, cwd=tmp_path)
    assert set(EXTRA) <= {line.split()[0] for line in listed.splitlines() if line.strip()}


@pytest.mark.slow
@pytest.mark.parametrize("env_id", EXTRA)
def test_a_library_that_is_not_there_is_one_sentence(
    site: Path, tmp_path: Path, env_id: str
) -> None:
    config = f'env = "{env_id}"\nalgorithm = "grpo"\n'
    (tmp_path / "run.toml").write_text(config, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "isentrope", "train", "run.toml"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "300"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"is not installed: pip install 'isentrope-peers[{EXTRA[env_id]}]'." in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_what_ci_installs_is_within_what_the_extras_allow() -> None:
    project = tomllib.loads((PEERS / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    allowed = {r.name: r for extra in EXTRA.values() for r in map(Requirement, extras[extra])}
    lines = "\n".join(re.findall(r"^peers.*$", RUN, re.M))
    pinned = dict(re.findall(r"([\w-]+)==([\d.]+)", lines))
    assert {"gem-llm", "textarena", "reasoning-gym", "skyrl-gym"} == set(pinned)
    assert all(allowed[name].specifier.contains(version) for name, version in pinned.items())


@pytest.mark.slow
def test_the_config_in_its_readme_is_one(site: Path, tmp_path: Path) -> None:
    readme = (PEERS / "README.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "run.toml").write_text(config, encoding="utf-8")
    read = "from isentrope.config import read_config as r; print(r('run.toml').env.id)"
    by = interpreter("peers")  # a config's environment is made to be checked
    assert "textarena\n" == python("-c", read, site=site, cwd=tmp_path, by=by)
