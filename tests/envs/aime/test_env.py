"""The environment: what a policy is told, what earns 1, and what its process leaves behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isentrope
from isentrope import ConfigError, GraderError, UnknownNameError
from isentrope.episodes import Status
from isentrope.testing import check_env
from isentrope.workers.limits import WorkerConfig
from isentrope.workers.pool import WorkerPool
from isentrope.workers.worker import WorkerError
from isentrope_envs.aime import Reason, grading, minerva
from isentrope_envs.aime.prompts import PROMPTS
from tests.envs.aime.problems import files, problems
from tests.sdk.test_workers import gone, of_this_process

TASK = "aime-2024-I-03"
ANSWER = int(problems(2024)[2]["answer"])
DATA = Path(os.environ.get("ISENTROPE_TEST_DATA", "nowhere"), "aime")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return files(tmp_path_factory.mktemp("aime"))


def play(options: dict[str, Any], *answers: str) -> list[tuple[str, float, bool, dict[str, Any]]]:
    """Return observation, reward, end and info of each step."""
    env = isentrope.make("aime", **options)
    env.reset(seed=0, options={"task": TASK})
    steps = [env.step(answer) for answer in answers]
    env.close()
    return [(text, float(reward), ended, info) for text, reward, ended, _, info in steps]


def box(answer: int) -> str:
    return rf"So it is $\boxed{{{answer}}}$."


# ---------------------------------------------------------------- one answer


@pytest.mark.parametrize(
    ("answer", "reward", "reason"),
    [
        (box(ANSWER), 1.0, Reason.SAME_INTEGER),
        (box(ANSWER + 1), 0.0, Reason.OTHER_INTEGER),
        (rf"\boxed{{\frac{{{2 * ANSWER}}}{{2}}}}", 1.0, Reason.MINERVA),
        (f"It is {ANSWER}.", 0.0, Reason.NO_ANSWER),
        (rf"\boxed{{{ANSWER}, {ANSWER + 1}}}", 0.0, Reason.SEVERAL_VALUES),
        (r"\boxed{9^{9^{9^9}}}", 0.0, Reason.TOO_COSTLY),
        (f"<think>{box(ANSWER)}", 0.0, Reason.UNFINISHED_THINKING),
    ],
)
def test_the_right_number_earns_1_and_all_else_0_with_its_reason(
    answer: str, reward: float, reason: Reason, options: dict[str, str]
) -> None:
    ((said, earned, ended, info),) = play(options, answer)
    assert ("", reward, True) == (said, earned, ended)
    assert (reward == 1.0) == info["success"]
    assert [reason] == [r for r in Reason if info["metrics"][r.value]]
    assert 1.0 == info["metrics"]["attempts"]
    assert info["report"].startswith(f"{reason}: ")


@pytest.mark.parametrize(("answer", "exact"), [("{0}", 1.0), ("0{0}", 0.0), ("{0}, 1", 1.0)])
def test_lm_evals_own_verdict_is_logged_beside_the_reward(
    answer: str, exact: float, options: dict[str, str]
) -> None:
    ((_, _, _, info),) = play(options, rf"\boxed{{{answer.format(ANSWER)}}}")
    assert exact == info["metrics"]["minerva_exact"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_prompt_poses_the_problem_and_says_how_to_answer(
    prompt: str, options: dict[str, str]
) -> None:
    env = isentrope.make("aime", prompt=prompt, **options)
    observation, _ = env.reset(seed=0, options={"task": TASK})
    assert problems(2024)[2]["problem"] in observation
    assert "integer between 0 and 999" in observation
    assert ("boxed" in observation) != ("Final Answer: The final answer is $" in observation)


def test_a_problem_that_holds_braces_is_posed_as_it_is() -> None:
    assert r"\frac{problem}{x}" in PROMPTS["plain"].pose(r"\frac{problem}{x}")


def test_with_thinking_an_answer_in_an_unfinished_thought_is_none(options: dict[str, str]) -> None:
    thinking = {**options, "prompt": "qwen3-thinking"}
    ((_, reward, _, info),) = play(thinking, box(ANSWER))
    assert (0.0, 1.0) == (reward, info["metrics"]["unfinished_thinking"])
    ((_, reward, _, _),) = play(thinking, f"Hm.</think>{box(ANSWER)}")
    assert 1.0 == reward


# ---------------------------------------------------------------- several attempts


def test_a_wrong_answer_is_told_and_may_be_tried_again(options: dict[str, str]) -> None:
    steps = play({**options, "attempts": 3}, box(ANSWER + 1), "Hm.", box(ANSWER))
    assert [
        ("That is not the answer. Attempts left: 2.", 0.0, False),
        ("There was no answer in that. Attempts left: 1.", 0.0, False),
        ("", 1.0, True),
    ] == [step[:3] for step in steps]
    info = steps[-1][3]
    assert (True, 3.0) == (info["success"], info["metrics"]["attempts"])


def test_attempts_run_out_and_begin_anew(options: dict[str, str]) -> None:
    env = isentrope.make("aime", attempts=2, **options)
    for _ in range(2):
        env.reset(seed=0, options={"task": TASK})
        assert not env.step(box(ANSWER + 1))[2]
        assert (0.0, True) == env.step(box(ANSWER + 1))[1:3]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"attempts": 0}, "attempts must be a whole number, at least 1; got 0"),
        ({"attempts": True}, "attempts must be a whole number"),
        ({"prompt": "qwen"}, r"Prompt 'qwen' does not exist\. Did you mean 'qwen3'\?"),
        ({"trian": "x"}, "Did you mean 'train'"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    wrong: dict[str, Any], sentence: str, options: dict[str, str]
) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=sentence):
        isentrope.make("aime", **{**options, **wrong})


def test_without_the_grader_there_is_no_environment(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minerva, "PINNED", {"lm-eval-of-old": "1"})
    with pytest.raises(ConfigError, match=r"not installed: pip install 'isentrope\[aime\]'"):
        isentrope.make("aime", **options)


# ---------------------------------------------------------------- in processes


@pytest.mark.slow
def test_it_keeps_its_contract_and_leaves_nothing_behind(options: dict[str, str]) -> None:
    report = check_env("aime", **options)
    report.raise_for_failures()


@pytest.mark.slow
def test_several_attempts_keep_the_contract_too(options: dict[str, str]) -> None:
    check_env("aime", deadline=None, attempts=3, **options).raise_for_failures()


async def in_worker(options: dict[str, Any], *answers: str) -> tuple[list[Any], WorkerPool]:
    pool = WorkerPool("aime", "isentrope_envs.aime.hosted:Aime", options, WorkerConfig(count=1))
    worker = await pool.borrow()
    try:
        results = []
        for answer in answers:
            await worker.call("reset", 20.0, task=TASK, seed=0)
            results.append(await worker.call("step", 20.0, action=answer))
        await pool.give_back(worker, clean=True)
        return results, pool
    finally:
        await pool.close()


def test_a_worker_judges_under_its_limits_and_closes_its_judge(options: dict[str, str]) -> None:
    answers = (rf"\boxed{{\sqrt{{{ANSWER**2}}}}}", r"\boxed{9^{9^{9^9}}}", box(ANSWER))
    results, pool = asyncio.run(in_worker(options, *answers))
    assert [1.0, 0.0, 1.0] == [reward for _, reward, *_ in results]
    assert (0, 0) == (pool.leaked, pool.killed)


def test_nothing_is_left_of_a_worker_that_is_killed_while_it_judges(
    options: dict[str, str],
) -> None:
    async def whole() -> set[int]:
        pool = WorkerPool("aime", "isentrope_envs.aime.hosted:Aime", options, WorkerConfig(count=1))
        worker = await pool.borrow()
        await worker.call("reset", 20.0, task=TASK, seed=0)
        await worker.call("step", 20.0, action=rf"\boxed{{\sqrt{{{ANSWER**2}}}}}")
        await worker.call("reset", 20.0, task=TASK, seed=0)
        slow = asyncio.create_task(worker.call("step", 20.0, action=r"\boxed{9^{9^{9^9}}}"))
        await asyncio.sleep(0.3)
        found = of_this_process() - before
        await worker.kill()
        await asyncio.gather(slow, return_exceptions=True)
        await pool.close()
        return found

    before = of_this_process()
    found = asyncio.run(whole())
    assert 5 <= len(found)  # nursery, keeper, worker, judge and its child
    assert all(map(gone, found))


def test_a_judge_that_fails_is_a_grader_error_and_no_reward(options: dict[str, str]) -> None:
    pool = WorkerPool("aime", "tests.envs.aime.test_env:Unlucky", options, WorkerConfig(count=1))

    async def whole() -> None:
        worker = await pool.borrow()
        try:
            await worker.call("reset", 20.0, task=TASK, seed=0)
            await worker.call("step", 20.0, action=r"\boxed{\sqrt{4}}")
        finally:
            await worker.kill()
            await pool.close()

    with pytest.raises(WorkerError, match="The judge gave no verdict: no luck") as caught:
        asyncio.run(whole())
    assert Status.GRADER_ERROR is caught.value.status


def Unlucky(**options: Any) -> isentrope.TextEnv:
    """Make the environment where the judge fails."""

    def fail(*question: object) -> None:
        raise GraderError("The judge gave no verdict: no luck.")

    grading.ask = fail  # type: ignore[assignment]  # in a worker of its own
    return isentrope.make("aime", **options).unwrapped  # type: ignore[return-value]


# ---------------------------------------------------------------- in a run

RUN: dict[str, Any] = {
    "algorithm": {"recipe": "grpo", "epochs": 1, "minibatch": 8},
    "model": {
        "id": "tiny-qwen3",
        "hidden_size": 32,
        "layers": 1,
        "context": 1024,
        "warmup_env": {"id": "arithmetic"},
        "warmup_steps": 40,
        "warmup_batch": 32,
        "warmup_lr": 8e-3,
    },
    "rollout": {"tasks": 2, "group": 4, "max_tokens": 16, "workers": {"count": 2}},
    "iterations": 2,
}


@pytest.mark.slow
def test_a_tiny_policy_trains_on_it_end_to_end_and_scores_what_it_can(
    options: dict[str, str], tmp_path: Path
) -> None:
    run = isentrope.train({**RUN, "env": {"id": "aime", **options}, "out": str(tmp_path / "run")})
    assert [0, 0] == [row["status/env_error"] + row["status/grader_error"] for row in run.metrics]
    assert [8, 8] == [row["status/ok"] for row in run.metrics]
    assert all(row["reward"] <= 0.25 for row in run.metrics)
    found = isentrope.evaluate(run, split="aime24", k=1, tasks=4)
    assert (4, 0) == (found.tasks, found.failed)
    assert not np.isnan(found.success)


@pytest.mark.skipif(not DATA.is_dir(), reason="ISENTROPE_TEST_DATA names no data")
@pytest.mark.slow
def test_a_tiny_policy_trains_on_the_real_problems(tmp_path: Path) -> None:
    real = {
        "train": str(DATA / "train_aime_1983_2023.jsonl"),
        "aime24": str(DATA / "aime24.jsonl"),
        "aime25": str(DATA / "aime25.jsonl"),
    }
    model = {**RUN["model"], "context": 4096}
    env = {"id": "aime", **real}
    run = isentrope.train({**RUN, "env": env, "model": model, "out": str(tmp_path / "run")})
    assert [8, 8] == [row["status/ok"] for row in run.metrics]
