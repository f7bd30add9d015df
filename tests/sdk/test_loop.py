"""Whole runs, small ones: real environments, a real policy, real rewards."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import isentrope
from isentrope import (
    ConfigError,
    Objective,
    Task,
    TaskSet,
    TextEnv,
    TrainingError,
    UnknownNameError,
)
from isentrope.config import read_config
from isentrope.live import LiveView
from isentrope.loop import _name
from tests.conftest import MEASURED, SMALL_MODEL


def lasting(metrics: list[dict[str, object]]) -> list[dict[str, object]]:
    """Metrics without the clock's."""
    return [{k: v for k, v in m.items() if not k.startswith(MEASURED)} for m in metrics]


def test_a_run_learns_from_real_rewards_and_writes_one_object_an_iteration(tiny_run) -> None:
    seen = []
    run = isentrope.train(**tiny_run, on_iteration=seen.append)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [0, 1, 2] == [json.loads(line)["iteration"] for line in lines]
    assert run.metrics == [dict(m) for m in seen]
    for metrics in run.metrics:
        assert {"iteration", "reward", "success", "entropy", "entropy_target"} <= set(metrics)
        assert 0.2 == metrics["objective.eps_high"]
        assert 0 < metrics["entropy"] < math.log(300)
        assert 32 == metrics["episodes"]
    assert any(m["steps"] > 0 and m["grad_norm"] > 0 for m in run.metrics)
    assert 3 * 32 == len(run.episodes)
    assert {0.0, 1.0} == {e["reward"] for e in run.episodes}


def test_the_same_seed_gives_the_same_run_to_the_bit_and_another_seed_another(tiny_run) -> None:
    out = tiny_run.pop("out")
    first, again = (isentrope.train(**tiny_run, out=out / n) for n in ("1", "2"))
    other = isentrope.train(**tiny_run, out=out / "3", seed=1)
    assert lasting(first.metrics) == lasting(again.metrics)
    assert first.episodes == again.episodes
    assert lasting(first.metrics) != lasting(other.metrics)
    weights = [(r.policy / "model.safetensors").read_bytes() for r in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_rollouts_of_a_group_share_task_and_seed_and_differ_in_what_was_sampled(tiny_run) -> None:
    run = isentrope.train(**{**tiny_run, "iterations": 1})
    groups: dict[tuple[str, int], list[dict]] = {}
    for episode in run.episodes:
        groups.setdefault((episode["task"], episode["seed"]), []).append(episode)
    assert [8] * 4 == [len(g) for g in groups.values()]
    assert all(len({e["messages"][-1]["content"] for e in g}) > 1 for g in groups.values())


def test_repo_r_moves_zeta_along_the_ladder_against_the_first_entropy(tiny_run) -> None:
    algorithm = isentrope.recipe("repo-r", epochs=1, minibatch=16)
    run = isentrope.train(**{**tiny_run, "algorithm": algorithm, "iterations": 5})
    first = run.metrics[0]
    assert first["entropy"] == first["entropy_target"]
    assert 0.01 == first["repo_r.zeta"]  # equal entropies move nothing
    zeta = 0.01
    for metrics in run.metrics[1:]:
        assert first["entropy"] == metrics["entropy_target"]
        up = metrics["entropy"] < metrics["entropy_target"]
        zeta = zeta * 2 if (zeta > 0) == up else zeta / 2
        if abs(zeta) < 0.01:
            zeta = 0.01 if up else -0.01
        zeta = min(max(zeta, -0.1), 0.1)
        assert pytest.approx(zeta) == metrics["repo_r.zeta"]


def test_rloo_takes_one_step_an_iteration(tiny_run) -> None:
    run = isentrope.train(**{**tiny_run, "algorithm": "rloo"})
    assert {0, 1} >= {m["steps"] for m in run.metrics}
    assert any(m["steps"] for m in run.metrics)


def test_two_epochs_of_minibatches_drift_from_the_old_policy_and_clip(tiny_run) -> None:
    algorithm = isentrope.recipe(
        "grpo", epochs=4, minibatch=4, objective={"eps_low": 1e-4, "eps_high": 1e-4}
    )
    run = isentrope.train(**{**tiny_run, "algorithm": algorithm, "iterations": 2})
    learnt = [m for m in run.metrics if m["steps"]]
    assert all(m["objective/clip_high"] > 0 and m["objective/clip_low"] > 0 for m in learnt)


def test_lora_trains_adapters_and_saves_a_plain_merged_policy(tiny_run) -> None:
    run = isentrope.train(**tiny_run, learner={"lora": {"r": 4, "alpha": 8}, "lr": 1e-2})
    from transformers import AutoModelForCausalLM

    plain = isentrope.component("model", **{"name": "tiny-qwen3", **without_id(SMALL_MODEL)})
    start = plain.build(isentrope.EnvRef("arithmetic")).model.state_dict()
    trained = AutoModelForCausalLM.from_pretrained(run.policy).state_dict()
    assert start.keys() == trained.keys()
    changed = {k for k in start if not torch.equal(start[k], trained[k])}
    assert changed
    assert all("_proj." in k for k in changed)  # the adapters' layers and no others
    assert all(m["mismatch_max"] < 1e-3 for m in run.metrics)  # the engine had them merged in


def without_id(table: dict) -> dict:
    return {k: v for k, v in table.items() if k != "id"}


def test_a_multi_turn_environment_trains_and_its_later_turns_carry_gradient(tiny_run) -> None:
    run = isentrope.train(
        **{**tiny_run, "env": "guess", "algorithm": {"recipe": "grpo", "minibatch": 16}}
    )
    assert all(m["turns_per_episode"] > 1.5 for m in run.metrics)
    assert any(m["grad_norm"] for m in run.metrics)
    assert any(0 < e["reward"] <= 0.5 and not e["success"] for e in run.episodes)


class Hopeless(TextEnv):
    """Nobody ever wins; `mischief` breaks it instead."""

    def __init__(self, mischief: str = "", prompt: str = "try") -> None:
        self.tasks = TaskSet({"train": [Task("only")]})
        self.mischief, self.prompt = mischief, prompt

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed, options=options)
        if self.mischief:
            raise RuntimeError(self.mischief)
        return self.prompt, info

    def step(self, action):
        return "", 0.0, True, False, {}


@pytest.fixture
def hopeless(tiny_run, monkeypatch):
    """Run options for `Hopeless`, known by the id "hopeless"."""
    from isentrope import plugins
    from isentrope.specs import EnvSpec

    spec = EnvSpec("hopeless", "tests.sdk.test_loop:Hopeless", "Nobody wins")
    row = plugins.Row("hopeless", "environment", "tests", "0", "ok", "", spec)
    with_it = plugins.Registry((*plugins.registry().rows, row))
    for user in ("components", "config"):
        monkeypatch.setattr(f"isentrope.{user}.registry", lambda: with_it)
    model = {**SMALL_MODEL, "warmup_env": {"id": "arithmetic"}}
    return {**tiny_run, "env": {"id": "hopeless"}, "model": model}


def test_only_zero_groups_end_the_run_cleanly_and_it_says_so(hopeless) -> None:
    run = isentrope.train(**{**hopeless, "iterations": 6}, stop_after_idle=2)
    assert 2 == len(run.metrics)
    assert [None] == [m["stopped"] for m in run.metrics[:-1]]
    assert "nothing to learn" in run.metrics[-1]["stopped"]
    assert [4, 4] == [m["groups_zero"] for m in run.metrics]
    assert [0, 0] == [m["steps"] for m in run.metrics]
    assert (run.policy / "model.safetensors").exists()


def test_where_nobody_says_what_a_success_is_none_is_shown(hopeless) -> None:
    console = Console(file=io.StringIO(), width=300)
    run = isentrope.train(**{**hopeless, "iterations": 2}, on_iteration=LiveView(console, 2, ()))
    assert all(m["episodes_unjudged"] == m["stop/terminated"] > 0 for m in run.metrics)
    assert 2 == console.file.getvalue().count("reward 0.000  entropy")
    page = isentrope.report(run).read_text(encoding="utf-8")
    assert "<h3>Reward</h3>" in page
    assert '<th scope="row">Reward</th>' in page
    assert '<th scope="row">Success</th>' not in page


def test_an_environment_that_always_raises_stops_the_run_with_its_traceback(hopeless) -> None:
    hopeless["env"] = {"id": "hopeless", "mischief": "the lamp broke"}
    with pytest.raises(TrainingError, match="32 of 32 episodes failed") as caught:
        isentrope.train(**hopeless)
    assert "RuntimeError: the lamp broke" in str(caught.value)


def test_prompts_longer_than_the_context_stop_the_run_and_say_what_to_raise(hopeless) -> None:
    hopeless["env"] = {"id": "hopeless", "prompt": "too long " * 400}
    with pytest.raises(TrainingError, match=r"No prompt left room .* Raise rollout\.context"):
        isentrope.train(**hopeless)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"env": "aritmetic"}, UnknownNameError, "Did you mean 'arithmetic'"),
        ({"env": {"id": "arithmetic", "gradin": "x"}}, UnknownNameError, "'grading'"),
        ({"env": {"id": "arithmetic", "grading": "x"}}, ConfigError, "'answer' or 'derivation'"),
        ({"algorithm": "grop"}, UnknownNameError, "Did you mean 'grpo'"),
        ({"rollout": {"split": "trian"}}, UnknownNameError, "Did you mean 'train'"),
        ({"rollout": {"group": 1}}, ConfigError, "group must be a whole number, at least 2"),
        ({"rollout": {"temprature": 1.0}}, UnknownNameError, "'temperature'"),
        ({"rollout": {"temperature": 0.0}}, ConfigError, "temperature"),
        ({"rollout": {"top_p": 0.9}}, ConfigError, "importance ratios"),
        ({"rollout": {"context": 100_000}}, ConfigError, "model's positions"),
        ({"learner": {"lr": -1.0}}, ConfigError, "lr"),
        ({"learner": {"lr": 30.0}}, ConfigError, "lr"),
        ({"learner": {"betas": [0.9, 1.0]}}, ConfigError, "betas"),
        ({"iterations": 0}, ConfigError, "iterations"),
        ({"iterations": 2.5}, ConfigError, "iterations: must be a whole number"),
        ({"sede": 1}, UnknownNameError, "Did you mean 'seed'"),
        ({"model": "tiny-qwen"}, UnknownNameError, "Did you mean 'tiny-qwen3'"),
        ({"model": {"id": "pretrained", "path": "no/such"}}, ConfigError, "cannot be loaded"),
        ({"engine": "vlm"}, UnknownNameError, "engine"),
    ],
)
def test_what_cannot_work_fails_early_with_one_sentence(tiny_run, change, error, told) -> None:
    with pytest.raises(error, match=re.escape(told)):
        isentrope.train(**{**tiny_run, **change})
    assert not (tiny_run["out"] / "metrics.jsonl").exists()


def test_a_run_starts_where_an_event_loop_is_running_already_as_in_a_notebook(tiny_run) -> None:
    async def cell() -> isentrope.Run:
        run = isentrope.train(**{**tiny_run, "iterations": 1})
        isentrope.evaluate(run, tasks=2)
        return run

    assert 1 == len(asyncio.run(cell()).metrics)


def test_a_config_that_toml_cannot_hold_is_refused_before_it_could_change_on_resume(
    hopeless,
) -> None:
    hopeless["env"] = {"id": "hopeless", "prompt": None}  # whose default is "try"
    with pytest.raises(ConfigError, match="does not survive being written as TOML"):
        isentrope.train(**hopeless)


def test_what_fails_while_it_is_built_leaves_no_folder_behind(tiny_run) -> None:
    with pytest.raises(ConfigError, match="model's positions"):
        isentrope.train(**tiny_run | {"rollout": {"context": 100_000}})
    assert not tiny_run["out"].exists()


class Shapeless(Objective):
    """Returns what `make` makes of the right loss."""

    make = staticmethod(lambda loss: loss)

    def __call__(self, batch):
        return self.make(-batch.advantage * batch.logp)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda x: x[:, None], r"must return one value per token, shape \[\d+\]; got shape \["),
        (lambda x: x.mean(), r"got shape \[\]"),
        (lambda x: None, "got None"),
        (lambda x: x.detach(), "a loss without gradient"),
    ],
)
def test_a_loss_of_another_shape_is_refused_and_not_broadcast(tiny_run, make, told) -> None:
    broken = type("Broken", (Shapeless,), {"make": staticmethod(make)})
    algorithm = isentrope.recipe("grpo", objective=broken())
    with (
        pytest.warns(UserWarning, match="cannot be resumed"),
        pytest.raises(ConfigError, match=told),
    ):
        isentrope.train(**{**tiny_run, "algorithm": algorithm})


def test_a_loss_that_is_never_finite_ends_the_run_and_is_counted(tiny_run) -> None:
    broken = type("Nan", (Shapeless,), {"make": staticmethod(lambda x: x * math.nan)})
    algorithm = isentrope.recipe("grpo", objective=broken(), minibatch=16)
    with pytest.warns(UserWarning, match="cannot be resumed"):
        run = isentrope.train(
            **{**tiny_run, "algorithm": algorithm, "iterations": 9}, stop_after_idle=2
        )
    last = run.metrics[-1]
    assert "no gradient was finite" in last["stopped"]
    assert last["steps_skipped"] == last["steps"] > 0
    assert len(run.metrics) < 9


def test_a_class_of_a_script_is_said_to_be_of_no_use_to_others(tiny_run, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import isentrope\n"
        "from isentrope_objectives.surrogates import Clipped\n"
        "class Mine(Clipped): pass\n"
        f"options = {dict(tiny_run, iterations=1, out=str(tiny_run['out']))!r}\n"
        "algorithm = isentrope.recipe('grpo', objective=Mine())\n"
        "isentrope.train(**{**options, 'algorithm': algorithm})\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert "cannot be resumed from its folder: only this process can find" in done.stderr
    assert "(__main__:Mine). Put it into a module." in done.stderr
    assert f"{script}:6: UserWarning" in done.stderr


def test_an_environment_of_a_function_is_refused_by_name(tiny_run) -> None:
    class Own(isentrope.TextEnv):
        pass

    with pytest.raises(ConfigError, match=r"Own is defined in a function.*top of its module"):
        isentrope.train(**{**tiny_run, "env": Own})


def test_an_existing_folder_is_never_written_over(tiny_run) -> None:
    tiny_run["out"].mkdir()
    (tiny_run["out"] / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        isentrope.train(**tiny_run)
    assert ["thesis.txt"] == [p.name for p in tiny_run["out"].iterdir()]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("./polices", r"/polices does not exist. Did you mean 'policies'\?"),
        ("polices", r"/polices does not exist. Did you mean 'policies'\?"),
        ("./qwen", "/qwen does not exist.$"),
        ("models/of/mine", "/models/of/mine does not exist.$"),
    ],
)
def test_a_models_folder_that_is_not_there_is_looked_for_on_no_hub(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        isentrope.LanguageModel.load(path)


def test_a_name_on_the_hub_may_be_like_a_file_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "distilgpt2.toml").touch()
    monkeypatch.chdir(tmp_path)
    isentrope.LanguageModel.check_path("distilgpt2")


def test_a_policy_that_does_not_fit_is_told_with_what_to_change(
    tiny_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30 GiB.\nMore.")

    monkeypatch.setattr(isentrope.trainer, "Policy", to)
    told = r"fit into memory \(CUDA out of memory. Tried to allocate 30 GiB.\): start more ranks, "
    with pytest.raises(TrainingError, match=told):
        isentrope.train(**tiny_run)
    assert not tiny_run["out"].exists()


def test_the_run_folder_holds_a_config_that_reads_back_to_the_same_run(tiny_run) -> None:
    run = isentrope.train(**{**tiny_run, "iterations": 1})
    del tiny_run["out"]  # left out, so that the file can start another run
    assert read_config({**tiny_run, "iterations": 1}) == run.config


@pytest.mark.slow
def test_grpo_learns_arithmetic_and_its_entropy_falls(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "arithmetic-grpo.toml"
    faster = {"iterations": 40, "learner": {"lr": 6e-4}, "evaluation": None}
    run = isentrope.train(example, **faster, out=tmp_path / "run")
    success = [m["success"] for m in run.metrics]
    entropy = [m["entropy"] for m in run.metrics]
    assert 0.2 < sum(success[:5]) / 5 < 0.4
    assert sum(success[-10:]) / 10 > sum(success[:5]) / 5 + 0.15
    assert sum(entropy[-10:]) / 10 < 0.85 * entropy[0]


def test_a_run_is_called_by_its_environment_and_recipe() -> None:
    made = isentrope.recipe("repo-r", on="gspo", epochs=1)
    plain = isentrope.Algorithm(
        advantage=isentrope.component("advantage", "group-normalized"),
        objective=isentrope.component("objective", "clipped"),
        transforms=[isentrope.component("transform", "repo-r")],
    )
    names = [
        _name(read_config({"env": "arithmetic", "algorithm": algorithm}))
        for algorithm in ("grpo", {"recipe": "repo-r", "epochs": 1}, made, plain)
    ]
    assert [
        "arithmetic-grpo",
        "arithmetic-repo-r",
        "arithmetic-repo-r",
        "arithmetic-clipped-repor",
    ] == names
