"""The files in examples/: each is planned with every recipe, and small ones of them really run."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

import isentrope
from isentrope.plugins import registry
from isentrope.workers.nursery import kept_warm
from tests.conftest import SMALL_MODEL
from tests.envs.aime.problems import files
from tests.paper import qwen3

FOLDER = Path(__file__).parents[1] / "examples"
PAPER = sorted(path.stem for path in FOLDER.glob("*-qwen3-*.toml"))
OTHERS = sorted({path.stem for path in FOLDER.glob("*.toml")} - set(PAPER))
RECIPES = sorted(registry().specs("recipe"))
ABSENT = "The environment 'appworld' is not installed here: isentrope appworld install."
NO_WEIGHTS = "The folder of the model, "


@pytest.fixture(scope="module", autouse=True)
def _warm() -> Iterator[None]:
    """AppWorld takes ten seconds to start: once is enough."""
    with kept_warm():
        yield


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return files(tmp_path_factory.mktemp("problems"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder each: what is planned for a model is planned once."""
    folder = tmp_path_factory.mktemp("models")
    return {size: qwen3(size, folder) for size in ("8B", "32B")}


def algorithm(name: str, recipe: str) -> dict[str, Any]:
    """What ``--set`` changes, as examples/README.md tells."""
    aime = name.startswith("aime") and recipe != "rloo"
    return {"recipe": recipe, **({"minibatch": 256} if aime else {})}


def environment(name: str, recipe: str, problems: dict[str, Any]) -> dict[str, Any]:
    """What stands for a file's environment: AppWorld, slow to start, is itself with one recipe."""
    if name.startswith("aime"):
        return {"env": problems}
    return {} if recipe == RECIPES[0] else {"env": "arithmetic"}


def gpus(name: str) -> str:
    """As the file itself says that it is to be planned."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "--dry-run" in line]
    assert f"isentrope train examples/{name}.toml --dry-run" in line
    return line.split()[-1]


def test_there_is_a_file_for_every_run_of_the_paper_and_the_table_has_all() -> None:
    expected = {
        f"{env}-qwen3-{size}{nodes}"
        for env in ("appworld", "aime")
        for size in ("8b", "32b")
        for nodes in ("", "-3nodes")
    }
    assert expected == set(PAPER)
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    there = [path.name for path in FOLDER.iterdir() if path.suffix in (".toml", ".py")]
    assert [] == [name for name in there if f"]({name})" not in table]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", PAPER)
def test_every_file_composes_with_every_recipe(name: str, recipe: str, problems: Any) -> None:
    """With a small model: the real ones are below."""
    plan = isentrope.plan(
        FOLDER / f"{name}.toml",
        algorithm=algorithm(name, recipe),
        model={"id": "tiny-qwen3", "context": 40960, "warmup_steps": 0},
        **environment(name, recipe, problems),
    )
    assert () == plan.problems
    assert set(plan.missing) <= {ABSENT}
    assert recipe == next(part.id for part in plan.parts if part.slot == "recipe")
    assert 32768 == plan.iteration.context or name.startswith("aime")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", PAPER)
def test_every_file_fits_with_every_recipe(
    name: str, recipe: str, problems: Any, models: dict[str, Path]
) -> None:
    folder = models["32B" if "32b" in name else "8B"]
    plan = isentrope.plan(
        FOLDER / f"{name}.toml",
        gpus=gpus(name),
        algorithm=algorithm(name, recipe),
        model={"path": str(folder)},
        env=problems if name.startswith("aime") else "arithmetic",
    )
    assert () == plan.problems
    assert all(told == ABSENT or told.startswith(NO_WEIGHTS) for told in plan.missing)
    assert plan.memory.total.learning < plan.memory.limit
    assert (32.76 if "32b" in name else 8.19) == round(plan.model.parameters / 1e9, 2)


@pytest.mark.parametrize("name", OTHERS)
def test_the_small_files_could_start_here(name: str) -> None:
    assert isentrope.plan(FOLDER / f"{name}.toml").ready


SMALL: dict[str, Any] = {
    "iterations": 2,
    "engine": {"id": "transformers"},
    "rollout": {
        "tasks": 4,
        "group": 6,
        "max_tokens": 48,
        "context": 384,
        "max_turns": 4,
        "early_stop": None,  # or what is learnt from would depend on the machine's speed
    },
    "learner": {"dtype": "float32", "micro_batch_tokens": 1024},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"), list(zip(cycle(n for n in PAPER if "aime" in n), RECIPES, strict=False))
)
def test_a_small_run_of_an_aime_file_learns(name: str, recipe: str, tmp_path: Path) -> None:
    """On generated problems, which a tiny policy now and then solves."""
    run = isentrope.train(
        FOLDER / f"{name}.toml",
        **SMALL,
        env={"id": "aime-like"},
        model=SMALL_MODEL,
        algorithm=algorithm(name, recipe),
        evaluation={"split": "dev", "every": 2, "tasks": 4, "k": 1},
        out=tmp_path / "run",
    )
    assert 2 == len(run.metrics)
    assert all(row["episodes"] == 24 for row in run.metrics)
    assert 0 < sum(row["grad_norm"] for row in run.metrics if row["grad_norm"] is not None)
    assert 0 <= run.metrics[-1]["eval/success"] <= 1
    assert (run.policy / "adapter").is_dir()


@pytest.mark.slow
def test_a_small_run_of_an_aime_file_on_aime_itself(problems: Any, tmp_path: Path) -> None:
    run = isentrope.train(
        FOLDER / "aime-qwen3-8b.toml",
        **SMALL,
        env=problems,
        model={**SMALL_MODEL, "context": 384, "warmup_steps": 0},
        evaluation={"every": 2, "tasks": 2, "k": 1},
        out=tmp_path / "run",
    )
    assert [24, 24] == [row["episodes"] for row in run.metrics]
    assert [24, 24] == [row["status/ok"] for row in run.metrics]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.slow
def test_the_table_of_the_paper_is_made_and_goes_on_where_it_stopped(
    examples: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = importlib.import_module("paper")
    assert set(paper.RECIPES) == set(RECIPES) - {"dr-grpo"}
    arguments = [
        str(FOLDER / "aime-like-grpo.toml"), "--recipes", "rloo", "repo-r", "--seeds", "2",
        "--out", str(tmp_path),
    ]  # fmt: skip
    changes = {
        "model": SMALL_MODEL,
        "iterations": 2,
        "rollout": {"tasks": 4},
        "evaluation": {"every": 1, "tasks": 4, "k": 1},
    }
    paper.main(arguments, **changes)
    table = capsys.readouterr().out
    runs = sorted(tmp_path.glob("*-?"))
    assert ["repo-r-0", "repo-r-1", "rloo-0", "rloo-1"] == [run.name for run in runs]
    assert "compare.html" in table
    configs = {run.name: tomllib.loads((run / "config.toml").read_text()) for run in runs}
    assert {"rloo-0": 0, "rloo-1": 1}.items() <= {n: c["seed"] for n, c in configs.items()}.items()
    written = {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*")}
    paper.main(arguments, **changes)
    assert table.splitlines()[:3] == capsys.readouterr().out.splitlines()[:3]
    assert written == {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*")}
    with pytest.raises(SystemExit, match=r"rloo-0: rollout.context"):
        paper.main(arguments, **{**changes, "rollout": {"context": 9999}})


@pytest.mark.slow
def test_an_algorithm_of_ones_own_trains(
    examples: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = importlib.import_module("own_algorithm")
    run = own.main(
        model=SMALL_MODEL,
        rollout={"tasks": 4, "group": 8, "max_tokens": 24},
        iterations=3,
        out=tmp_path / "run",
    )
    assert 3 == len(capsys.readouterr().out.splitlines())
    assert all(0.05 <= row["objective.width"] <= 0.5 for row in run.metrics)
    assert 0.5 == run.metrics[0]["objective.width"], "nothing is lost yet"
    assert run.metrics[0]["grad_norm"] > 0
