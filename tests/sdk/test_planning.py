"""`isentrope.plan`, and ``isentrope train --dry-run``, which prints it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import isentrope
from isentrope import ConfigError, LanguageModel
from isentrope.environments import Task, TaskSet, TextEnv
from isentrope_plugins.sampler.batching import _Request
from isentrope_plugins.sampler.choosing import decoder_for
from isentrope_plugins.sampler.engine import TransformersEngine
from isentrope_plugins.sampler.wave import sample
from isentrope_plugins.tiny.model import TinyQwen3
from tests.conftest import SMALL_MODEL
from tests.paper import qwen3
from tests.sdk.memory_at_work import allocated
from tests.sdk.test_cli import isentrope as command

TINY = {"env": "arithmetic", "algorithm": "repo-r", "model": SMALL_MODEL}
GIB = 1024**3


@pytest.fixture
def policy_8b(tmp_path: Path) -> dict[str, Any]:
    """The model of a folder that has its config, and no weights."""
    return {"id": "pretrained", "path": str(qwen3("8B", tmp_path)), "device": "cuda"}


def test_a_run_that_could_start_is_planned_and_nothing_is_made(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISENTROPE_CACHE", str(tmp_path))
    plan = isentrope.plan(TINY, rollout={"tasks": 4, "group": 8})
    assert (True, (), ()) == (plan.ready, plan.missing, plan.problems)
    assert [] == list(tmp_path.iterdir())
    assert (32, 512, 2) == (plan.iteration.episodes, plan.iteration.context, plan.iteration.steps)
    assert {"train"} == set(plan.tasks)
    assert {
        ("env", "arithmetic"),
        ("model", "tiny-qwen3"),
        ("engine", "transformers"),
        ("recipe", "repo-r"),
        ("advantage", "group-normalized"),
        ("objective", "clipped"),
        ("repo_r", "repo-r"),
        ("entropy_ladder", "entropy-ladder"),
    } == {(part.slot, part.id) for part in plan.parts}
    assert all(part.origin.startswith("isentrope ") for part in plan.parts)
    assert "Knob repo_r.zeta: 0.01, moved by entropy_ladder." in str(plan)
    assert "The run could start." in str(plan)


@pytest.mark.parametrize(("size", "billions"), [("8B", 8.19), ("32B", 32.76)])
def test_published_parameter_counts_come_out(tmp_path, size: str, billions: float) -> None:
    model = {"id": "pretrained", "path": str(qwen3(size, tmp_path))}
    plan = isentrope.plan(
        env="arithmetic", algorithm="grpo", model=model, rollout={"context": 512},
        learner={"lora": {}},
    )  # fmt: skip
    assert billions == round(plan.model.parameters / 1e9, 2)
    heads, layers, hidden, wide = (32, 36, 4096, 12288) if size == "8B" else (64, 64, 5120, 25600)
    projections = [
        (hidden, heads * 128), (hidden, 8 * 128), (hidden, 8 * 128), (heads * 128, hidden),
        (hidden, wide), (hidden, wide), (wide, hidden),
    ]  # fmt: skip
    of_a_layer = sum(16 * (a + b) for a, b in projections)
    assert layers * of_a_layer == plan.model.trainable
    loaded = next(row for row in plan.memory.rows if "frozen" in row.name)
    assert 4 * plan.model.parameters == loaded.learning


def test_gpus_that_are_elsewhere_are_planned_for(policy_8b) -> None:
    options: dict[str, Any] = {
        "env": "arithmetic", "algorithm": "grpo", "model": policy_8b,
        "learner": {"dtype": "bfloat16", "lora": {"r": 64}},
        "rollout": {"context": 8192, "tasks": 1},
    }  # fmt: skip
    plan = isentrope.plan(gpus="8x80", **options)
    assert (8, 80 * GIB, "cuda") == (plan.memory.ranks, plan.memory.limit, plan.memory.device)
    rows = {row.name: row for row in plan.memory.rows}
    adam = rows["AdamW's moments, float32"]
    assert pytest.approx(8 * plan.model.trainable / 8, rel=1e-3) == adam.learning
    embedding, gains = 151_936 * 4096, 4096
    of_root = 2 * (2 * embedding + gains)
    assert of_root == rows["a layer, whole until it is sharded"].starting
    frozen = rows["frozen weights, bfloat16"].starting
    assert pytest.approx(2 * plan.model.parameters / 8, rel=1e-3) == frozen
    trained = rows["trained weights, float32"].starting
    engine = rows["the engine's weights"].starting
    assert of_root + frozen + trained + engine == plan.memory.total.starting
    assert ["The folder of the model"] == [s[:23] for s in plan.missing]
    small = isentrope.plan(gpus="2x24", **options)
    assert any(
        "lower rollout.context (8192), or set learner.activation_check" in told
        for told in small.problems
    )
    none = isentrope.plan(gpus="2x8", **options)
    assert any("While the run starts, its first rank needs" in told for told in none.problems)


@pytest.mark.parametrize("gpus", ["8", "8x", "0x80", "8 x 80", "eight"])
def test_gpus_are_a_number_and_their_memory(policy_8b, gpus: str) -> None:
    with pytest.raises(ConfigError, match="gpus must be like 8x80, eight of 80 GiB each; got"):
        isentrope.plan(TINY, model=policy_8b, gpus=gpus)
    with pytest.raises(ConfigError, match=r"but the model is on the CPU: set model.device"):
        isentrope.plan(TINY, gpus="8x80")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_missed(policy_8b) -> None:
    plan = isentrope.plan(TINY, model=policy_8b, rollout={"context": 256})
    assert any("torch sees no GPU here" in told for told in plan.missing)
    assert plan.memory is not None
    assert plan.memory.limit is None


def test_a_model_that_is_nowhere_leaves_the_rest_of_the_plan() -> None:
    plan = isentrope.plan(TINY, model={"id": "pretrained", "path": "nobody/nothing"})
    (told,) = plan.missing
    assert "The config of model 'nobody/nothing' is not to be had" in told
    assert (None, None) == (plan.model, plan.memory)
    assert plan.tasks["train"] > 100
    assert not plan.ready


class Odd(TextEnv):
    """An environment that cannot be made."""

    def __init__(self) -> None:
        raise OSError("its data are gone")


class One(TextEnv):
    """An environment that can."""

    def __init__(self) -> None:
        self.tasks = TaskSet({"train": [Task("a")]})


def test_an_environment_that_cannot_be_made_leaves_the_rest_of_the_plan() -> None:
    plan = isentrope.plan(TINY, env=Odd)
    assert plan.tasks is None
    assert ["env"] == [told.partition(":")[0] for told in plan.problems]
    assert plan.memory is not None
    assert {"train": 1} == isentrope.plan(TINY, env=One).tasks
    (told,) = isentrope.plan(TINY, env=One, rollout={"split": "dev"}).problems
    assert told.startswith("rollout.split")


def test_an_environment_without_its_interpreter_says_what_installs_it(tmp_path: Path) -> None:
    code = f"""
import isentrope
plan = isentrope.plan({TINY!r}, env="appworld")
print(*plan.missing, plan.problems)
"""
    nowhere = {**os.environ, "ISENTROPE_APPWORLD": str(tmp_path)}  # read where plugins are found
    said = subprocess.check_output([sys.executable, "-c", code], env=nowhere, text=True)
    told = "The environment 'appworld' is not installed here: isentrope appworld install."
    assert f"{told} ()\n" == said


def test_what_the_policy_cannot_do_is_told_in_the_plan(tmp_path) -> None:
    folder = qwen3("8B", tmp_path, tie_word_embeddings=True)
    model = {"id": "pretrained", "path": str(folder)}
    tied = isentrope.plan(TINY, model=model, learner={"lora": {"head": True}})
    assert any("has its embedding for an output layer" in told for told in tied.problems)
    far = isentrope.plan(TINY, rollout={"context": 5000})
    assert ["rollout.context"] == [told.split()[0] for told in far.problems]


def test_a_composition_that_cannot_work_is_an_error_as_in_training() -> None:
    with pytest.raises(ConfigError, match="right only for the policy that sampled"):
        isentrope.plan(TINY, algorithm={"recipe": "rloo", "epochs": 2})


def test_what_the_embedded_engine_takes_is_enough_and_not_far_off() -> None:
    config = TinyQwen3(hidden_size=64, layers=2, context=256, warmup_steps=0)
    model = config.build(isentrope.EnvRef("arithmetic"))
    use = isentrope.EngineUse(context=256)
    told = TransformersEngine().memory(model.model, use, 32)
    weights = told.pop("weights")
    assert sum(p.numel() * 4 for p in model.model.parameters()) == weights
    (cache,) = told.values()
    most = allocated(lambda: sample_all(model, use, rows=32))
    assert 0.5 * cache < most - weights < cache


def sample_all(model: LanguageModel, use: isentrope.EngineUse, rows: int) -> None:
    """Fill the context of so many rows, in this thread, which the profiler sees."""
    sampling = isentrope.Sampling(max_tokens=use.context - 2)
    requests = [_Request((65, 66 + i), sampling, asyncio.Future(loop=LOOP)) for i in range(rows)]
    completions = sample(decoder_for(model.model, "cpu"), requests, 0)
    assert use.context - 2 == max(len(completion.ids) for completion in completions)


LOOP = asyncio.new_event_loop()


@pytest.mark.slow
def test_a_run_to_go_on_with_is_planned_and_left_alone(tiny_run) -> None:
    run = isentrope.train(**tiny_run)
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    plan = isentrope.plan(resume=run, iterations=9)
    assert plan.ready
    assert any("after 3 of 9 iterations" in told for told in plan.notes)
    assert before == {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    with pytest.raises(ConfigError, match="only `iterations` and `trackers` may be changed"):
        isentrope.plan(resume=run, seed=3)
    taken = isentrope.plan(**tiny_run)
    assert [str(run.path) in told for told in taken.problems] == [True]


@pytest.mark.slow
def test_the_command_prints_the_plan_and_its_status_says_whether_the_run_could_start(
    tmp_path,
) -> None:
    path = tmp_path / "config.toml"
    path.write_text('env = "arithmetic"\nalgorithm = "repo-r"\n')
    good = command("train", path, "--dry-run", cwd=tmp_path)
    assert (0, "") == (good.returncode, good.stderr)
    assert "The run could start." in good.stdout
    assert [path] == list(tmp_path.iterdir())
    bad = command("train", path, "--dry-run", "--set", "rollout.context=9999", cwd=tmp_path)
    assert (1, "") == (bad.returncode, bad.stderr)
    assert "rollout.context (9999 tokens) is more than the model's positions" in bad.stdout
    wrong = command("train", path, "--gpus", "8x80", cwd=tmp_path)
    assert 2 == wrong.returncode
    assert "--gpus tells --dry-run what to plan for" in wrong.stderr


def test_planning_is_no_module_that_an_import_of_isentrope_loads() -> None:
    assert importlib.util.find_spec("isentrope.planning") is not None
    assert callable(isentrope.plan)
