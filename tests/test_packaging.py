"""What is shipped, what it pulls in, and that the rules about imports really bite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SOURCES = [
    Path(path) for path in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
]
PACKAGES = [path.name for path in SOURCES]
HEAVY = {"cut-cross-entropy", "triton", "vllm", "ray", "wandb", "flash-attn", "deepspeed"}
CUDA = re.compile(r"(nvidia|cuda|triton)\b")  # of torch's CUDA build; the CPU build has none


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def pins() -> dict[str, str]:
    """Return constraints.txt: name to version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    return {
        canonicalize_name(name): version for name, version in (line.split("==") for line in wanted)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    path = next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    with ZipFile(path) as opened:
        yield opened


# ---------------------------------------------------------------- constraints.txt


EXTRAS = PROJECT["optional-dependencies"]
OURS = [*PROJECT["dependencies"], *EXTRAS["aime"], *EXTRAS["dev"]]


@pytest.mark.parametrize("line", [line for line in OURS if name_of(line) != "isentrope"])
def test_every_dependency_is_pinned_within_its_range(line: str) -> None:
    pinned = pins().get(name_of(line))
    assert pinned is not None, f"constraints.txt lacks {line}"
    assert Requirement(line).specifier.contains(pinned), f"{pinned} is outside {line}"


def test_everything_that_the_development_install_pulls_in_is_pinned() -> None:
    pulled = _closure("isentrope", frozenset({"dev"}), {})
    assert set() == {name for name in pulled if not CUDA.match(name)} - {"isentrope", *pins()}


def test_nothing_is_pinned_that_the_development_install_does_not_pull_in() -> None:
    assert set() == set(pins()) - set(_closure("isentrope", frozenset({"dev"}), {}))


def _closure(name: str, extras: frozenset[str], seen: dict[str, frozenset[str]]) -> set[str]:
    """Return the installed distributions that one needs, itself included."""
    if extras <= seen.get(name, frozenset()) and name in seen:
        return set(seen)
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:  # of another platform, or another extra
        return set(seen)
    seen[name] = seen.get(name, frozenset()) | extras
    for requirement in map(Requirement, requires):
        contexts = [{"extra": extra} for extra in ("", *sorted(extras))]
        if requirement.marker is None or any(map(requirement.marker.evaluate, contexts)):
            _closure(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)
    return set(seen)


# ---------------------------------------------------------------- dependencies


def test_the_core_pulls_in_nothing_heavy() -> None:
    assert set() == HEAVY & {name_of(line) for line in PROJECT["dependencies"]}


def test_cut_cross_entropy_comes_with_the_gpu_extra_only(wheel: ZipFile) -> None:
    (metadata,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    requires = [line.removeprefix("Requires-Dist: ") for line in lines if "cut-cross" in line]
    assert ["extra == 'gpu'"] == [str(Requirement(r).marker).replace('"', "'") for r in requires]


# ---------------------------------------------------------------- the wheel


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_says_that_each_package_is_typed(wheel: ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_the_wheel_has_every_module_of_each_package(wheel: ZipFile, source: Path) -> None:
    base = ROOT / source
    modules = {path.relative_to(base.parent).as_posix() for path in base.rglob("*.py")}
    assert modules
    assert set() == modules - set(wheel.namelist())


def test_the_wheel_holds_our_packages_and_nothing_else(wheel: ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert {*PACKAGES, info} == tops


def test_first_party_plugins_come_in_by_the_entry_points_of_the_wheel(wheel: ZipFile) -> None:
    (path,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    text = wheel.read(path).decode()
    for package in PACKAGES[1:]:
        assert f"= {package}.plugin\n" in text
        assert f"{package}/plugin.py" in wheel.namelist()


# ---------------------------------------------------------------- AppWorld's licence

APPWORLDS = re.compile(
    r"\.bundle$|\.db$|(^|/)(base_dbs|api_docs|dbs|ground_truth|experiments)/|/appworld/apps/"
)
"""Paths of what AppWorld's engine unpacks, and of what our tiny world writes: never published."""
CANARY = b"appworld:" + b"d17ac3f:"  # in two parts, or this file would have it
"""What AppWorld's own files are marked with, and the documentation that we make of them."""


def shipped(wheel: ZipFile, folder: Path) -> dict[str, bytes]:
    """Return every file of the wheel and of the source distribution."""
    files = {f"wheel/{name}": wheel.read(name) for name in wheel.namelist()}
    path = next(SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    with tarfile.open(path) as opened:
        for member in filter(tarfile.TarInfo.isfile, opened):
            content = opened.extractfile(member)
            assert content is not None
            files[f"sdist/{member.name.partition('/')[2]}"] = content.read()
    return files


def test_nothing_of_appworlds_is_shipped(wheel: ZipFile, tmp_path: Path) -> None:
    files = shipped(wheel, tmp_path)
    assert "wheel/isentrope_envs/appworld/requirements.txt" in files
    assert "sdist/envs/isentrope_envs/appworld/tiny/__main__.py" in files
    assert [] == [name for name in files if APPWORLDS.search(name)]
    assert [] == [name for name, content in files.items() if CANARY in content]


@pytest.mark.parametrize(
    "path",
    [
        "envs/isentrope_envs/appworld/data/base_dbs/phone.db",
        "tests/data/api_docs/standard/phone.json",
        "data/tasks/tinypay1_1/dbs/venmo.jsonl",
        "data/tasks/tinypay1_1/ground_truth/answer.json",
        "experiments/outputs/one/leaderboard.bundle",
        "envs/isentrope_envs/appworld/apps/phone/models.py",
    ],
)
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_nothing_of_appworlds_is_committed(path: str) -> None:
    assert APPWORLDS.search(path)
    ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
    assert 0 == ignored.returncode


# ---------------------------------------------------------------- import rules

PLANTS = {
    "The SDK names no plugin": (
        "sdk/isentrope/components.py",
        "def planted(): import isentrope_envs.plugin",
    ),
    "Plugins never import one another": (
        "controllers/isentrope_controllers/plugin.py",
        "import isentrope_objectives.recipes",
    ),
    "Plugins import only the public facade": (
        "plugins/isentrope_plugins/plugin.py",
        "from isentrope.rollout.ledger import TokenLedger",
    ),
    "The SDK does not go through its own facade": (
        "sdk/isentrope/algorithms.py",
        "from isentrope import TrainConfig",
    ),
    "Inside the SDK, imports go one way": (
        "sdk/isentrope/parts.py",
        "def planted(): import isentrope.config",
    ),
}


def lint_imports(root: Path) -> dict[str, str]:
    """Return each contract's verdict on the packages below `root`."""
    path = os.pathsep.join(str(root / source.parent) for source in SOURCES)
    command = ["lint-imports", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"},
        cwd=root,
        capture_output=True,
        text=True,
    )
    verdicts = re.findall(r"^(.+) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    assert verdicts, done.stdout + done.stderr
    return dict(verdicts)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for source in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / source, tmp_path / source, ignore=ignored)
    return tmp_path


def test_the_import_rules_are_those_that_are_tested_here() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    assert set(PLANTS) == {contract["name"] for contract in contracts}
    assert PACKAGES == PYPROJECT["tool"]["importlinter"]["root_packages"]


def test_the_import_rules_are_kept(copy: Path) -> None:
    assert dict.fromkeys(PLANTS, "KEPT") == lint_imports(copy)


def test_each_import_rule_notices_a_violation(copy: Path) -> None:
    for path, line in PLANTS.values():
        with (copy / path).open("a", encoding="utf-8") as module:
            module.write(f"\n{line}\n")
    assert dict.fromkeys(PLANTS, "BROKEN") == lint_imports(copy)


def test_a_new_module_of_the_sdk_must_find_its_layer(copy: Path) -> None:
    (copy / "sdk/isentrope/brandnew.py").write_text('"""New."""\n')
    assert "BROKEN" == lint_imports(copy)["Inside the SDK, imports go one way"]
