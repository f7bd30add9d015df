"""The engine of vLLM servers, against real ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import isentrope
from isentrope import (
    Adapter,
    Completion,
    EngineError,
    EngineUse,
    LanguageModel,
    Sampling,
    WeightsRef,
    component,
)
from isentrope.learner.proof import model_logp
from isentrope.testing import check_engine
from isentrope.testing._model import adapted
from isentrope_plugins.vllm.fleet import Fleet
from isentrope_plugins.vllm.place import Place
from isentrope_plugins.vllm.server import Server
from tests.plugins.vllm.scripted import Scripted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

RANK = 4
BLOCKS = 300
"""Tokens of a prompt that fills more than two blocks of the prefix cache."""


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return LanguageModel.load(tiny_model)


@pytest.fixture(scope="module")
def adapters(model: LanguageModel) -> list[tuple[Adapter, Any]]:
    """Random adapters, and the weights with each of them merged in."""
    return [adapted(model, RANK, seed=seed) for seed in range(3)]


def run(
    model: LanguageModel,
    urls: list[str],
    work: Callable[[Fleet], Awaitable[Any]],
    **options: Any,
) -> Any:
    async def main() -> Any:
        use = EngineUse(context=1024, rank=RANK, staleness=options.pop("staleness", 0))
        engine = component("engine", "vllm", urls=urls, **options).build(model, use)
        try:
            return await asyncio.wait_for(work(engine), 300)
        finally:
            await engine.close()

    return asyncio.run(main())


def get(server: Server, path: str) -> str:
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return answer.read().decode()


def counted(server: Server, *names: str, label: str = "") -> int:
    """Return the sum of what it counts under some names."""
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in get(server, "/metrics").splitlines()
        if line.startswith(tuple(f"vllm:{name}{{" for name in names)) and label in line
    )


def running(server: Server) -> int:
    """Return how many requests it says that it runs."""
    return counted(server, "num_requests_running", "num_requests_waiting")


def completed(server: Server) -> int:
    """Return how many requests it says that it drew to their greatest length."""
    return counted(server, "request_success_total", label='finished_reason="length"')


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    for _ in range(int(seconds / 0.1)):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come to that")


def apart(model: LanguageModel, weights: Any, prompt: list[int], drawn: Completion) -> float:
    """Return how far log-probs are from the model's with those weights, at the most."""
    ours = model_logp(model, weights, prompt, drawn.ids, temperature=1.0, top_k=0)
    return float(np.abs(np.array(ours) - np.array(drawn.logp)).max())


def prompt_of(n: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(10, 250, size=n)]


def test_it_does_all_that_an_engine_must(model: LanguageModel, server: Server) -> None:
    """Log-probs within 1e-4 of the model's in float32, at any temperature, adapters too."""
    config: Any = component("engine", "vllm", urls=[server.url])
    check_engine(config, model, logp_tolerance=1e-4).raise_for_failures()
    names = {one["id"] for one in json.loads(get(server, "/v1/models"))["data"]}
    assert {"base"} == names  # nothing is left behind


def test_a_long_conversation_is_answered_by_each_version_as_the_model_with_it_would(
    model: LanguageModel, server: Server, adapters: Any
) -> None:
    """Under one name and path the prefix cache would answer with the states of the one before."""

    async def work(engine: Fleet) -> list[tuple[float, float]]:
        found = []
        for version, (adapter, weights) in enumerate(adapters, 1):
            await engine.publish(WeightsRef(version, adapter=adapter))
            prompt = prompt_of(BLOCKS)
            for turn in range(3):
                sampling = Sampling(max_tokens=40)
                drawn = await engine.generate(prompt, sampling, conversation=1)
                assert version == drawn.version
                wrong = apart(model, adapters[version - 2][1], prompt, drawn)
                found.append((apart(model, weights, prompt, drawn), wrong))
                prompt = [*prompt, *drawn.ids, *prompt_of(60, seed=turn)]
        return found

    found = run(model, [server.url], work)
    assert max(right for right, _ in found) < 1e-4
    assert min(wrong for _, wrong in found) > 2e-4  # so that it would have been seen
    assert max(wrong for _, wrong in found) > 0.1


def test_a_completion_in_flight_goes_on_with_the_version_that_it_began_with(
    model: LanguageModel, server: Server, adapters: Any
) -> None:
    (first, weights), (second, _), _ = adapters
    prompt = prompt_of(40)

    async def work(engine: Fleet) -> Completion:
        await engine.publish(WeightsRef(1, adapter=first))
        long = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=900)))
        await until(lambda: running(server) > 0)
        await engine.publish(WeightsRef(2, adapter=second))
        assert not long.done()
        assert 2 == (await engine.generate(prompt, Sampling(max_tokens=2))).version
        return await long

    drawn = run(model, [server.url], work)
    assert 1 == drawn.version
    assert apart(model, weights, prompt, drawn) < 1e-4


def test_a_cancelled_request_ends_on_the_server(model: LanguageModel, server: Server) -> None:
    async def work(engine: Fleet) -> None:
        tasks = [
            asyncio.create_task(engine.generate(prompt_of(9), Sampling(max_tokens=1000)))
            for _ in range(16)
        ]
        await until(lambda: running(server) > 1, 60)
        before = completed(server)
        for task in tasks[1:]:
            task.cancel()
        assert 1000 == len((await tasks[0]).ids)
        await until(lambda: running(server) == 0 and completed(server) > before)
        assert before + 1 == completed(server)

    run(model, [server.url], work)


def test_a_server_that_lost_the_policy_is_sent_it_again(
    model: LanguageModel, server: Server, adapters: Any
) -> None:
    adapter, weights = adapters[0]

    async def work(engine: Fleet) -> Completion:
        await engine.publish(WeightsRef(1, adapter=adapter))
        (name,) = (n for n in engine._remotes[0].adapters)
        await engine._remotes[0].unload(name)  # as if it had been started anew
        drawn = await engine.generate(prompt_of(9), Sampling(max_tokens=8))
        assert 1 == engine.counts()["servers_lost"]
        return drawn

    drawn = run(model, [server.url], work)
    assert 1 == drawn.version
    assert apart(model, weights, prompt_of(9), drawn) < 1e-4


def test_a_missing_adapter_is_refused_and_the_one_before_stays(
    model: LanguageModel, server: Server, adapters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, weights), (second, _), _ = adapters

    async def work(engine: Fleet) -> Completion:
        await engine.publish(WeightsRef(1, adapter=first))
        with monkeypatch.context() as patched:
            patched.setattr(Adapter, "save", lambda self, folder: folder.mkdir())
            with pytest.raises(EngineError, match="refused with 4"):
                await engine.publish(WeightsRef(2, adapter=second))
        return await engine.generate(prompt_of(9), Sampling(max_tokens=8))

    drawn = run(model, [server.url], work)
    assert 1 == drawn.version
    assert apart(model, weights, prompt_of(9), drawn) < 1e-4


def test_beside_a_server_that_hangs_everything_comes_from_the_other(
    model: LanguageModel, server: Server, adapters: Any
) -> None:
    adapter, weights = adapters[0]
    with Scripted(lambda text: model.tokenizer.encode(text), context=1024) as hung:
        hung.fail("hang")

        async def work(engine: Fleet) -> list[Completion]:
            await engine.publish(WeightsRef(1, adapter=adapter))
            asked = (engine.generate(prompt_of(9), Sampling(max_tokens=8)) for _ in range(6))
            drawn = await asyncio.gather(*asked)
            assert 1 == engine.counts()["servers_lost"]
            return drawn

        for drawn in run(model, [hung.url, server.url], work, deadline=10):
            assert 1 == drawn.version
            assert apart(model, weights, prompt_of(9), drawn) < 1e-4


# Whole runs


def settings(tmp_path: Path, model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "env": "guess",
        "algorithm": {"recipe": "repo-d", "minibatch": 16},  # learns of equal rewards, too
        "model": {"id": "pretrained", "path": str(model)},
        "rollout": {"tasks": 4, "group": 4, "max_tokens": 12, "max_turns": 3},
        "learner": {"lora": {"r": RANK}, "lr": 3e-3, "probe": 0},
        "iterations": 3,
        "out": tmp_path / "run",
        **changes,
    }


def test_a_run_proves_every_publication_and_agrees_with_the_server_on_every_token(
    server: Server, tiny_model: Path, tmp_path: Path
) -> None:
    given = settings(tmp_path, tiny_model, engine={"id": "vllm", "urls": [server.url]})
    run = isentrope.train(**given)
    for metrics in run.metrics:
        assert 0 == metrics["staleness_max"] == metrics["status/engine_error"]
        assert metrics["mismatch_max"] < 1e-4
        assert 0 <= metrics["proof_mean"] <= metrics["proof_max"] < 1e-4
        assert (2 if metrics["iteration"] == 0 else 1) >= metrics["engine/publications"] >= 1
    again = isentrope.train(resume=run, iterations=4)  # at servers that knew the first part
    assert 4 == len(again.metrics)


def test_an_evaluation_proves_its_server(
    server: Server, model: LanguageModel, tiny_model: Path, tmp_path: Path
) -> None:
    engine = {"id": "vllm", "urls": [server.url]}
    found = isentrope.evaluate(str(tiny_model), "guess", tasks=8, engine=engine)
    assert (8, 0) == (len(found.attempts), found.failed)
    model.save(tmp_path / "other", {k: 1.05 * t for k, t in model.model.state_dict().items()})
    with pytest.raises(EngineError, match="It may serve another model"):
        isentrope.evaluate(str(tmp_path / "other"), "guess", tasks=8, engine=engine)


def test_an_adapter_that_a_server_applied_wrongly_stops_the_run(
    server: Server, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Adapter.save

    def scaled(self: Adapter, folder: Path) -> None:
        wrong = {**self.config, "lora_alpha": 4 * self.config["lora_alpha"]}
        save(attrs.evolve(self, config=wrong), folder)

    monkeypatch.setattr(Adapter, "save", scaled)
    given = settings(tmp_path, tiny_model, engine={"id": "vllm", "urls": [server.url]})
    given["learner"]["lr"] = 0.03
    with pytest.raises(EngineError, match="does not sample from version 1"):
        isentrope.train(**given)


def test_another_model_of_the_same_tokenizer_is_found_out_before_anything_is_collected(
    server: Server, model: LanguageModel, tmp_path: Path
) -> None:
    import torch

    other = LanguageModel.load(str(model.path))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    other.save(tmp_path / "other")
    given = settings(tmp_path, tmp_path / "other", engine={"id": "vllm", "urls": [server.url]})
    with pytest.raises(EngineError, match="It may serve another model"):
        isentrope.train(**given)
    assert not (tmp_path / "run").exists()


def test_a_killed_server_of_two_costs_no_episode_and_is_started_again(
    vllm: Place, tiny_model: Path, tmp_path: Path
) -> None:
    """The run starts both, and stops both."""
    seen: list[dict[str, Any]] = []
    killed: list[int] = []

    def kill(metrics: Any) -> None:
        seen.append(dict(metrics))
        if not killed:
            found = children("vllm.entrypoints")
            killed.append(found[0])
            os.kill(killed[0], signal.SIGKILL)

    given = settings(tmp_path, tiny_model, engine={"id": "vllm", "servers": 2}, iterations=6)
    isentrope.train(**given, on_iteration=kill)
    assert 6 == len(seen)
    assert 0 == sum(m["status/engine_error"] for m in seen)
    assert 1 <= sum(m["engine/servers_lost"] for m in seen)
    assert 1 <= sum(m["engine/servers_restarted"] for m in seen)
    assert [] == children("vllm.entrypoints")


ITERATIONS, SEEDS = 6, 3


def curves(tmp_path: Path, name: str, model: Path, **changes: Any) -> Any:
    """Return reward and entropy, [seeds, 2, iterations], of a policy that knows a little."""
    found = []
    for seed in range(SEEDS):
        given = settings(tmp_path, model, iterations=ITERATIONS, seed=seed)
        given["algorithm"] = {"recipe": "grpo", "minibatch": 32}
        given["rollout"] = {"tasks": 8, "group": 8, "max_tokens": 24}
        given["out"] = tmp_path / f"{name}-{seed}"
        run = isentrope.train(**{**given, **changes})
        assert all(m["turns_per_episode"] > 1.2 for m in run.metrics)
        assert any(m["steps"] for m in run.metrics)
        found.append([[m[key] for m in run.metrics] for key in ("reward", "entropy")])
    return np.array(found)


def distances(ours: Any, theirs: Any) -> Any:
    """Return how far two engines' mean curves are apart, in standard errors, [2, iterations].

    The errors are of the seeds, pooled over iterations: a curve's level differs, its spread hardly.
    """
    variance = (ours.var(0, ddof=1) + theirs.var(0, ddof=1)).mean(-1, keepdims=True) / len(ours)
    return (ours.mean(0) - theirs.mean(0)) / np.sqrt(variance)


def test_a_multi_turn_run_on_either_engine_learns_alike(
    server: Server, tiny_model: Path, tmp_path: Path
) -> None:
    """And would not, if one of them sampled a little more boldly."""
    embedded = curves(tmp_path, "embedded", tiny_model)
    servers = curves(tmp_path, "servers", tiny_model, engine={"id": "vllm", "urls": [server.url]})
    assert embedded[:, 1].min() > 0.1  # a collapsed policy agrees with anything
    found = distances(servers, embedded)
    assert np.abs(found).max() < 5
    assert np.abs(found.mean(-1)).max() < 2.5
    bold = {"tasks": 8, "group": 8, "max_tokens": 24, "temperature": 1.3}
    other = distances(curves(tmp_path, "bold", tiny_model, rollout=bold), embedded)
    assert np.abs(other.mean(-1)).max() > 2.5


def children(word: str) -> list[int]:
    """Return processes of ours whose command has a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode()
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if (
            word in command
            and f"PYTEST_CURRENT_TEST={os.environ['PYTEST_CURRENT_TEST'].split(' ')[0]}"
            in environment
        ):
            found.append(int(folder.name))
    return sorted(found)
