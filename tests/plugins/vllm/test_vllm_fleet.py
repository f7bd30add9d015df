"""The engine of vLLM servers, against servers that answer as vLLM does, or misbehave."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from isentrope import (
    Adapter,
    Completion,
    ConfigError,
    EngineError,
    EngineUse,
    LanguageModel,
    Sampling,
    WeightsRef,
    component,
)
from isentrope_plugins.vllm import fleet
from isentrope_plugins.vllm.fleet import Fleet, Own
from isentrope_plugins.vllm.server import Server, ServerOptions
from tests.plugins.vllm.scripted import Scripted

SAMPLING = Sampling(max_tokens=4)
PROMPT = (1, 2, 3)
HERE = ("127.0.0.1", 0)
USE = EngineUse(context=256, rank=4)


class Words:
    """A tokenizer: a token for each character."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return LanguageModel(Qwen3ForCausalLM(config), Words())  # type: ignore[arg-type]


@pytest.fixture
def servers() -> Iterator[Callable[..., Scripted]]:
    with ExitStack() as held:

        def start(**info: Any) -> Scripted:
            return held.enter_context(Scripted(lambda text: [ord(c) for c in text], **info))

        yield start


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "PATIENCE", 0.3)
    monkeypatch.setattr(fleet, "PAUSE", 0.05)


def adapter(layer: str = "model.layers.0.mlp.up_proj", rank: int = 4) -> Adapter:
    names = [f"base_model.model.{layer}.lora_{part}.weight" for part in "AB"]
    return Adapter({name: torch.zeros(rank, rank) for name in names}, {"r": rank})


def run(
    model: LanguageModel,
    servers: list[Scripted] | list[str],
    work: Callable[[Fleet], Awaitable[Any]],
    use: EngineUse = USE,
    **options: Any,
) -> Any:
    """Do some work with an engine, and close it."""

    async def main() -> Any:
        urls = [one if isinstance(one, str) else one.url for one in servers]
        engine = component("engine", "vllm", urls=urls, **options).build(model, use)
        try:
            return await asyncio.wait_for(work(engine), 20)
        finally:
            await engine.close()

    return asyncio.run(main())


async def draw(engine: Fleet, **options: Any) -> Completion:
    return await engine.generate(PROMPT, SAMPLING, **options)


async def publish(engine: Fleet, version: int) -> None:
    await engine.publish(WeightsRef(version, adapter=adapter()))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to that")


# What is asked for


def test_every_parameter_is_said_and_no_seed(model: Any, servers: Any) -> None:
    server = servers()
    sampling = Sampling(max_tokens=4, temperature=0.7, top_p=0.9, top_k=5, stop_ids=(2,), seed=9)

    async def work(engine: Fleet) -> Completion:
        return await engine.generate(PROMPT, sampling)

    drawn = run(model, [server], work)
    assert Completion((7, 8, 9, 10), (-1.0,) * 4, "length", 0) == drawn
    assert [
        {
            "model": "base",
            "prompt": [1, 2, 3],
            "max_tokens": 4,
            "min_tokens": 0,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "n": 1,
            "stop_token_ids": [2],
            "ignore_eos": True,
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "stream": False,
        }
    ] == server.asked


def test_urls_may_be_written_as_clients_of_openai_write_them() -> None:
    config: Any = component("engine", "vllm", urls=["http://a:1/v1", "http://b:2/"])
    assert ("http://a:1", "http://b:2") == config.urls


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"urls": ["127.0.0.1:8000"]}, "must be like http://"),
        ({"urls": ["http://a:1"], "flags": ["--x"]}, "leave out urls"),
        ({"urls": ["http://a:1", "http://a:1/v1"]}, "names a server twice"),
        ({"deadline": 0}, "deadline"),
        ({"dtype": "fp16"}, "float16"),
    ],
)
def test_a_wrong_config_is_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        component("engine", "vllm", **options)


def test_what_learns_and_what_samples_compute_in_the_same(model: Any) -> None:
    config: Any = component("engine", "vllm", urls=["http://a:1"], dtype="float16")
    with pytest.raises(ConfigError, match=r"leave out engine\.dtype"):
        config.build(model, EngineUse(context=8, rank=4))
    config.build(model, EngineUse(context=8))  # nothing learns


def test_servers_do_not_sleep_while_they_are_needed(model: Any) -> None:
    config: Any = component("engine", "vllm", urls=["http://a:1"], sleep=True)
    with pytest.raises(ConfigError, match="choose one"):
        config.build(model, EngineUse(context=8, rank=4, staleness=1))


# Servers that will not do


@pytest.mark.parametrize(
    ("info", "use", "said"),
    [
        ({"dtype": "torch.bfloat16"}, USE, "--dtype float32"),
        ({"logprobs_mode": "raw_logprobs"}, USE, "--logprobs-mode processed_logprobs"),
        ({"context": 128}, USE, "context of 128 tokens, and episodes 256"),
        ({"lora": {"max_loras": 1}}, USE, "--max-loras 2"),
        ({}, EngineUse(context=256, rank=4, staleness=3), "--max-loras 5"),
        ({"lora": {"max_lora_rank": 2}}, USE, "--max-lora-rank 4"),
    ],
)
def test_a_server_that_will_not_do_is_refused(
    model: Any, servers: Any, info: dict[str, Any], use: EngineUse, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(model, [servers(**info)], draw, use)


def test_adapters_matter_only_where_some_will_be_published(model: Any, servers: Any) -> None:
    run(model, [servers(lora={"max_loras": 0})], draw, EngineUse(context=256))


def test_a_server_with_another_tokenizer_is_refused(model: Any, servers: Any) -> None:
    server = servers()
    server.tokenizer = lambda text: [1] * len(text)
    with pytest.raises(ConfigError, match="another tokenizer"):
        run(model, [server], draw)


def test_nobody_at_the_url_is_a_sentence(model: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"No vLLM server answers at {url}"):
            run(model, [url], draw)


@pytest.mark.parametrize("answer", [b"\xff\xfe\x00\x80", b"[]", b'{"data": [1]}', b"<html>"])
def test_somebody_else_at_the_url_is_a_sentence(model: Any, answer: bytes) -> None:
    async def main() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n")
            writer.write(
                b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(answer), answer)
            )
            writer.close()

        async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            engine = component("engine", "vllm", urls=[url]).build(model, USE)
            with pytest.raises(EngineError, match=f"{url} is no vLLM server"):
                await engine.generate(PROMPT, SAMPLING)
            await engine.close()

    asyncio.run(main())


def test_servers_of_ours_share_the_gpus(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "requirements.txt").write_text("\nvllm==1\n")
    monkeypatch.setenv("ISENTROPE_VLLM", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    own = LanguageModel(model.model, model.tokenizer, str(tmp_path))
    engine: Any = component("engine", "vllm", servers=2).build(own, USE)
    assert [("4", "5"), ("6", "7")] == [options.gpus for options in engine._options()]


# Which server


def test_requests_go_to_the_server_with_the_fewest_tokens_to_go(model: Any, servers: Any) -> None:
    both = [servers(), servers()]
    for server in both:
        server.seconds = 0.3

    async def work(engine: Fleet) -> None:
        long = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=100)))
        await until(lambda: both[0].running + both[1].running == 1)
        await asyncio.gather(*(draw(engine) for _ in range(4)), long)

    run(model, both, work)
    assert [1, 4] == sorted(len(server.asked) for server in both)


def test_a_conversation_stays_on_its_server(model: Any, servers: Any) -> None:
    both = [servers(), servers()]

    async def work(engine: Fleet) -> None:
        for _ in range(3):
            await asyncio.gather(*(draw(engine, conversation=c) for c in "abcdef"))

    run(model, both, work)
    for server in both:
        assert [9] == [len(server.asked)]


def test_a_conversation_moves_when_its_server_is_lost(model: Any, servers: Any) -> None:
    both = [servers(), servers()]

    async def work(engine: Fleet) -> None:
        await draw(engine, conversation="a")
        first = next(server for server in both if server.asked)
        first.stop()
        assert 0 == (await draw(engine, conversation="a")).version
        assert {"requests_retried": 1, "servers_lost": 1} == {
            k: v for k, v in engine.counts().items() if v
        }

    run(model, both, work)


# Versions


def test_a_publication_has_a_name_and_a_path_of_its_own_on_every_server(
    model: Any, servers: Any
) -> None:
    both = [servers(), servers()]

    async def work(engine: Fleet) -> None:
        for version in (0, 1, 1):  # the server asserts that neither was known
            await publish(engine, version)
            assert version == (await draw(engine)).version
        await until(lambda: all(len(server.adapters) == 1 for server in both))

    run(model, both, work)
    assert [3, 3] == [server.calls["load"] for server in both]
    assert [{}, {}] == [server.adapters for server in both]  # nothing is left behind


def test_a_request_in_flight_keeps_its_adapter(model: Any, servers: Any) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        server.seconds = 0.5
        old = asyncio.create_task(draw(engine))
        await until(lambda: server.running == 1)
        (path,) = server.adapters.values()
        await publish(engine, 2)
        assert 2 == len(server.adapters)
        assert 1 == (await old).version
        await until(lambda: len(server.adapters) == 1)
        assert Path(path).is_dir()  # deleted late: a server may still read it
        await publish(engine, 3)
        await until(lambda: len(server.adapters) == 1)
        await publish(engine, 4)
        assert not Path(path).exists()

    run(model, [server], work)


def test_files_go_when_the_engine_is_closed(model: Any, servers: Any, tmp_path: Path) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        (path,) = server.adapters.values()
        assert tmp_path in Path(path).parents

    run(model, [server], work, adapters=tmp_path)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [adapter("model.layers.9.mlp.up_proj"), adapter("model.norm.x"), adapter(rank=8)]
)
def test_a_wrong_adapter_is_refused_before_any_server_sees_it(
    model: Any, servers: Any, wrong: Adapter
) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        with pytest.raises(EngineError, match="adapter"):
            await engine.publish(WeightsRef(1, adapter=wrong))
        assert 0 == (await draw(engine)).version

    run(model, [server], work)
    assert 0 == server.calls["load"]


def test_a_refused_adapter_leaves_what_was_there(model: Any, servers: Any) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        server.refuses_adapters = True
        with pytest.raises(EngineError, match="No adapter found"):
            await publish(engine, 2)
        assert 1 == (await draw(engine)).version

    run(model, [server], work)


def test_a_server_that_is_not_there_to_load_is_given_up(model: Any, servers: Any) -> None:
    both = [servers(), servers()]

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        both[1].stop()
        await publish(engine, 2)
        assert {2} == {(await draw(engine)).version for _ in range(4)}
        assert 1 == engine.counts()["servers_lost"]

    run(model, both, work)


# Faults


@pytest.mark.parametrize("fault", ["error", "cut", "garbage", "model", "abort", "short"])
def test_a_request_that_fails_is_tried_again(model: Any, servers: Any, fault: str) -> None:
    server = servers()
    server.fail(fault, times=2)

    async def work(engine: Fleet) -> None:
        assert (7, 8, 9, 10) == (await draw(engine)).ids
        assert 2 == engine.counts()["requests_retried"]
        assert 0 == engine.counts()["servers_lost"]  # it says that it is well

    run(model, [server], work)


@pytest.mark.parametrize("fault", ["error", "cut", "garbage", "model"])
def test_a_request_that_always_fails_is_an_error_of_its_own(
    model: Any, servers: Any, fault: str
) -> None:
    server = servers()
    server.fail(fault)
    with pytest.raises(EngineError, match="A request failed 3 times"):
        run(model, [server], draw)
    assert 3 == len(server.asked)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("clip", "cut a completion after 2 of 4 tokens"),
        ("forgets", "read 2 tokens of a prompt of 3"),
    ],
)
def test_what_a_server_changes_without_a_word_is_an_error(
    model: Any, servers: Any, fault: str, said: str
) -> None:
    server = servers()
    server.fail(fault)
    with pytest.raises(EngineError, match=said):
        run(model, [server], draw)


def test_what_does_not_fit_is_refused_before_it_is_sent(model: Any, servers: Any) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        with pytest.raises(EngineError, match="need 257 positions, but servers have 256"):
            await engine.generate([1] * 200, Sampling(max_tokens=57))
        with pytest.raises(EngineError, match="the prompt is empty"):
            await engine.generate([], SAMPLING)

    run(model, [server], work)
    assert [] == server.asked


def test_a_temperature_that_vllm_would_raise_is_refused(model: Any, servers: Any) -> None:
    async def work(engine: Fleet) -> None:
        await engine.generate(PROMPT, Sampling(max_tokens=4, temperature=0.01))
        with pytest.raises(ConfigError, match=r"got 0\.005\. .* set top_k = 1"):
            await engine.generate(PROMPT, Sampling(max_tokens=4, temperature=0.005))

    run(model, [servers()], work)


def test_a_server_that_hangs_is_given_up_and_another_asked(model: Any, servers: Any) -> None:
    both = [servers(), servers()]
    both[0].fail("hang")
    both[1].fail("hang")

    async def work(engine: Fleet) -> None:
        task = asyncio.create_task(draw(engine))
        await until(lambda: both[0].running + both[1].running == 1)
        healthy = both[0] if both[1].running else both[1]
        healthy.fault = None
        await task
        assert 1 == engine.counts()["servers_lost"]

    run(model, both, work, deadline=0.5)


def test_a_dead_engine_behind_a_living_port_is_given_up(model: Any, servers: Any) -> None:
    both = [servers(), servers()]

    async def work(engine: Fleet) -> None:
        both[0].fail("dead")
        for _ in range(3):  # it says what it serves even so
            await draw(engine)
            await asyncio.sleep(0.2)
        assert engine.counts()["servers_lost"] == len(both[0].asked) == 1

    run(model, both, work)


def test_a_restarted_server_gets_the_policy_again(model: Any, servers: Any) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        server.stop()
        server.adapters.clear()
        server.__enter__()  # at the same port, knowing nothing
        assert 1 == (await draw(engine)).version
        assert 2 == server.calls["load"]

    run(model, [server], work)


def test_a_server_that_was_only_slow_is_used_again_with_what_it_has(
    model: Any, servers: Any
) -> None:
    """It refuses an adapter that it has already."""
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        server.fail("hang", times=1)
        assert 1 == (await draw(engine)).version
        assert 1 == engine.counts()["servers_lost"] == server.calls["load"]
        await publish(engine, 2)
        assert 2 == (await draw(engine)).version
        await until(lambda: len(server.adapters) == 1)

    run(model, [server], work, deadline=0.3)
    assert {} == server.adapters


def test_a_server_that_comes_back_during_a_publication_is_sent_it(
    model: Any, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [servers(), servers()]
    load = Fleet._load

    async def slowly(self: Fleet, remote: Any, published: Any) -> None:
        await load(self, remote, published)
        if published.version == 2 and not both[1]._thread.is_alive():
            both[1].adapters.clear()
            both[1].__enter__()
            while self._remotes[1].lost:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(Fleet, "_load", slowly)

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        both[1].stop()
        engine._lose(engine._remotes[1], "it was stopped")
        await publish(engine, 2)
        assert [2, 2] == [one.version for one in await engine.generate_on_each(PROMPT, SAMPLING)]
        assert 1 == engine.counts()["servers_lost"]

    run(model, both, work)


def test_a_publication_waits_for_a_server_to_come_back(
    model: Any, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "PATIENCE", 10.0)
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        server.stop()
        server.adapters.clear()
        publication = asyncio.create_task(publish(engine, 2))
        await asyncio.sleep(0.5)
        server.__enter__()
        await publication
        assert 2 == (await draw(engine)).version

    run(model, [server], work)


def test_nobody_is_answered_by_a_version_before_its_publication_is_over(
    model: Any, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector refuses versions newer than the newest that was published."""
    server = servers()
    newest = 0
    delete = shutil.rmtree

    def slowly(*args: Any, **options: Any) -> None:
        time.sleep(0.2)
        delete(*args, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)

    async def work(engine: Fleet) -> None:
        async def publishing() -> None:
            nonlocal newest
            for version in range(1, 5):
                await publish(engine, version)
                newest = version

        task = asyncio.create_task(publishing())
        while not task.done():
            assert (await draw(engine)).version <= newest
        await task

    run(model, [server], work)


def test_a_connection_that_the_server_closed_while_nobody_looked_is_not_used_again(
    model: Any, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a run's collections its event loop stands still."""
    server = servers()
    server.stop()
    server.kept = 0.5
    server.__enter__()
    monkeypatch.setattr(fleet, "KEPT", 0.2)
    config: Any = component("engine", "vllm", urls=[server.url])
    with asyncio.Runner() as runner:
        engine = config.build(model, USE)
        runner.run(draw(engine))
        time.sleep(2.0)  # learning
        runner.run(draw(engine))
        retried = engine.counts()["requests_retried"]
        runner.run(engine.close())
    assert 0 == retried


def test_more_requests_than_open_files_are_no_lost_servers(model: Any, servers: Any) -> None:
    import resource

    server = servers()
    server.seconds = 0.5
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 40, before[1]))

    async def work(engine: Fleet) -> None:
        await asyncio.gather(*(draw(engine) for _ in range(60)))
        assert 0 == engine.counts()["servers_lost"] == engine.counts()["requests_retried"]

    try:
        run(model, [server], work)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_server_of_ours_that_hangs_for_good_is_no_server_left(
    model: Any, servers: Any, tmp_path: Path
) -> None:
    """Its processes are there, and it has been started as often as it may be."""
    server = servers()

    async def work(engine: Fleet) -> None:
        await draw(engine)
        process = subprocess.Popen(["head", "-c", "4"], stdin=subprocess.PIPE)
        port = socket.create_server(HERE)
        hung = Server(ServerOptions(model="m"), process, port, tmp_path / "log")
        engine._own[engine._remotes[0]] = Own(hung, starts=fleet.STARTS)
        server.stop()
        with pytest.raises(EngineError, match="No vLLM server is left"):
            await draw(engine)

    run(model, [server], work)


def test_with_no_server_left_every_request_says_so_the_later_ones_at_once(
    model: Any, servers: Any
) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        server.stop()
        with pytest.raises(EngineError, match=f"No vLLM server is left.*{server.url}"):
            await draw(engine)
        start = time.perf_counter()
        with pytest.raises(EngineError, match="No vLLM server is left"):
            await draw(engine)
        with pytest.raises(EngineError, match="No vLLM server is left"):
            await publish(engine, 2)
        assert time.perf_counter() - start < 0.2

    run(model, [server], work)


def test_a_cancelled_request_ends_on_the_server(model: Any, servers: Any) -> None:
    server = servers()
    server.seconds = 30.0

    async def work(engine: Fleet) -> None:
        task = asyncio.create_task(draw(engine))
        await until(lambda: server.running == 1)
        task.cancel()
        await until(lambda: server.running == 0)

    run(model, [server], work)
    assert 1 == server.aborted


def test_each_server_is_asked_for_the_proof(model: Any, servers: Any) -> None:
    three = [servers() for _ in range(3)]

    async def work(engine: Fleet) -> None:
        assert 3 == len(await engine.generate_on_each(PROMPT, SAMPLING))
        three[1].stop()
        assert 2 == len(await engine.generate_on_each(PROMPT, SAMPLING))

    run(model, three, work)
    assert [2, 1, 2] == [len(server.asked) for server in three]


@pytest.mark.parametrize("sleep", [True, False])
def test_servers_sleep_while_the_learner_works_if_they_are_to(
    model: Any, servers: Any, sleep: bool
) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        await publish(engine, 1)
        await engine.rest()
        await engine.wake()

    run(model, [server], work, sleep=sleep)
    found = {k: n for k, n in server.calls.items() if k.startswith("/")}
    # Woken when it is met, too: a run that was killed may have left it asleep.
    assert ({"/sleep?level=1": 1, "/wake_up": 2} if sleep else {}) == found


def test_a_closed_engine_says_so(model: Any, servers: Any) -> None:
    server = servers()

    async def work(engine: Fleet) -> None:
        await draw(engine)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineError, match="the engine is closed"):
            await draw(engine)

    run(model, [server], work)
