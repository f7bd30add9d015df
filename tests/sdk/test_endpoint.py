"""Evaluating a model behind an OpenAI-compatible endpoint, against a real HTTP server."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import attrs
import pytest

import isentrope
from isentrope import ConfigError, Endpoint, Evaluation, Status, StopReason
from isentrope.episodes import TEXT_ONLY
from isentrope.rollout import client
from tests.sdk.chat_server import ChatServer, chat_server, completion, error, halve, reply

KEY = "sk-never-to-be-seen-0123456789"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_key_and_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(client, "PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture
def evaluate(server: ChatServer) -> Callable[..., Evaluation]:
    def call(tasks: int = 4, **options: Any) -> Evaluation:
        endpoint = {"url": server.url, "model": "halving", **options.pop("endpoint", {})}
        env = options.pop("env", "guess")
        return isentrope.evaluate(Endpoint(**endpoint), env, tasks=tasks, **options)

    return call


def first(answers: list[Any]) -> Callable[[dict[str, Any], int], Any]:
    """Answer with these one after another, and then well."""

    def answer(body: dict[str, Any], count: int) -> Any:
        return answers[count] if count < len(answers) else reply(completion(halve(body)))

    return answer


class Halved(isentrope.TextEnv):
    """Begins with half a character."""

    def __init__(self) -> None:
        self.tasks = isentrope.TaskSet({"test": [isentrope.Task("t")]})

    def reset(self, *, seed=None, options=None):
        return "a\ud800b", super().reset(seed=seed, options=options)[1]

    def step(self, action):
        return "", 1.0, True, False, {"success": action == "yes"}


# ---------------------------------------------------------------- a conversation


def test_a_model_behind_an_endpoint_plays_many_turns_of_an_environment(server, evaluate) -> None:
    result = evaluate(tasks=12, k=2)
    assert (24, 1.0, 0) == (len(result.attempts), result.success, result.failed)
    assert max(a.turns for a in result.attempts) > 1
    for episode in result.episodes:
        roles = [m["role"] for m in episode.messages]
        assert ["user", "assistant"] * episode.turns == roles
        assert StopReason.TERMINATED is episode.stop_reason
    turns = sum(a.turns for a in result.attempts)
    longest = max(server.asked, key=lambda body: len(body["messages"]))
    told = [list(e.messages[:-1]) for e in result.episodes]
    assert (turns, True) == (len(server.asked), longest["messages"] in told)


def test_no_token_is_made_up_and_the_endpoints_own_count_is_kept(evaluate) -> None:
    result = evaluate()
    for attempt, episode in zip(result.attempts, result.episodes, strict=True):
        assert ((), 0, 7 * episode.turns) == (
            episode.segments, episode.sampled_tokens, attempt.tokens,
        )  # fmt: skip


def test_tokens_that_the_endpoint_does_not_count_are_unknown(server, evaluate, tmp_path) -> None:
    server.answer = lambda body, _: reply(completion(halve(body), tokens=None))
    result = evaluate(out=tmp_path / "e")
    assert {None} == {a.tokens for a in result.attempts}
    assert math.isnan(result.tokens_per_episode)
    assert {None} == {a.tokens for a in Evaluation.read(tmp_path / "e").attempts}


def test_a_request_says_how_to_sample_and_nothing_that_was_not_asked_for(server, evaluate) -> None:
    evaluate(tasks=1, rollout={"temperature": 0.7, "top_p": 0.9, "max_tokens": 33})
    evaluate(tasks=1, rollout={"top_k": 20})
    one, *_, other = [{k: v for k, v in b.items() if k != "messages"} for b in server.asked]
    assert {"model": "halving", "temperature": 0.7, "top_p": 0.9, "n": 1, "max_tokens": 33} == one
    assert 20 == other["top_k"]
    assert {None} == server.keys


def test_where_the_limit_of_tokens_has_another_name_that_is_used(server, evaluate) -> None:
    """As with OpenAI's own models that think."""
    refusal = error(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        code="unsupported_parameter",
    )
    server.answer = lambda body, _: (
        reply(refusal, 400) if "max_tokens" in body else reply(completion(halve(body)))
    )
    result = evaluate(rollout={"max_tokens": 33})
    assert (1.0, 0, 0) == (result.success, result.failed, result.retried)
    assert 33 == server.asked[-1]["max_completion_tokens"]


def test_half_a_character_goes_out_as_a_question_mark(server) -> None:
    server.answer = lambda *_: reply(completion("yes"))
    result = isentrope.evaluate(
        Endpoint(url=server.url, model="halving"),
        Halved,
        rollout={"workers": {"isolation": "none"}},
    )
    assert ("a?b", 1.0) == (server.asked[0]["messages"][0]["content"], result.success)


def test_no_proxy_is_asked_for_an_endpoint_on_this_machine(evaluate, monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert 0 == evaluate(tasks=1).failed


def test_no_more_requests_are_made_at_a_time_than_may_be(server, evaluate) -> None:
    def slowly(body: dict[str, Any], _: int) -> Any:
        time.sleep(0.02)
        return reply(completion(halve(body)))

    server.answer = slowly
    evaluate(tasks=9, endpoint={"at_a_time": 3})
    assert 3 == server.most


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(40, StopReason.MAX_TOKENS), (None, StopReason.MAX_TOKENS), (24, StopReason.CONTEXT)],
)
def test_a_turn_that_was_cut_off_is_no_action(server, evaluate, tokens, expected) -> None:
    """Fewer tokens than were asked for are what the endpoint's context left room for."""
    server.answer = lambda *_: reply(completion("12 is my", "length", tokens))
    result = evaluate(tasks=1, rollout={"max_tokens": 40})
    (attempt,) = result.attempts
    assert (expected, Status.OK, 0, False) == (
        attempt.stop_reason, attempt.status, attempt.turns, attempt.success,
    )  # fmt: skip
    assert "12 is my" == attempt.messages[-1]["content"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error("This model's maximum context length is 128 tokens. However, your request has "
                    "90 input tokens and asks for 64.", param="input_tokens", code=400)),
        (400, error("Your input exceeds the limit.", code="context_length_exceeded")),
        (400, error("the request exceeds the available context size.",
                    type="exceed_context_size_error")),
        (500, error("the request exceeds the available context size, try increasing it")),
        (413, error("prompt is too long: 210000 tokens > 200000 maximum")),
    ],
)  # fmt: skip
def test_a_conversation_that_is_too_long_is_cut_off_by_the_context(
    server, evaluate, status, body
) -> None:
    def answer(asked: dict[str, Any], _: int) -> Any:
        late = len(asked["messages"]) > 1
        return reply(body, status) if late else reply(completion("0"))

    server.answer = answer
    (attempt,) = evaluate(tasks=1).attempts
    assert (StopReason.CONTEXT, Status.OK, 1, 0) == (
        attempt.stop_reason, attempt.status, attempt.turns, attempt.retried,
    )  # fmt: skip
    assert "user" == attempt.messages[-1]["role"]


def test_an_episode_that_takes_too_long_is_truncated_while_the_endpoint_is_at_work(
    server, evaluate
) -> None:
    server.answer = lambda *_: server.over.wait()
    (attempt,) = evaluate(tasks=1, rollout={"max_seconds": 0.3}).attempts
    assert (StopReason.MAX_SECONDS, Status.OK) == (attempt.stop_reason, attempt.status)


# ---------------------------------------------------------------- what is asked again


def test_what_may_go_better_is_asked_again_and_counted(server, evaluate, tmp_path) -> None:
    """One request at a time, so that each trouble is of the one before."""
    server.answer = first([reply(error("slow down"), 429), reply(b"<html>Bad gateway", 502), None])
    result = evaluate(tasks=2, endpoint={"at_a_time": 1}, out=tmp_path / "e")
    assert (1.0, 0, 3) == (result.success, result.failed, result.retried)
    assert any("3 requests to the endpoint were made again" in note for note in result.notes())
    assert 3 == Evaluation.read(tmp_path / "e").retried
    assert 3 == json.loads((tmp_path / "e" / "result.json").read_text())["retried"]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_says_how_long_to_wait_is_given_that_time(server, evaluate, form) -> None:
    asked_at: list[float] = []

    def answer(body: dict[str, Any], count: int) -> Any:
        asked_at.append(time.time())
        after = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        busy = reply(error("slow down"), 429, Retry_After=after)
        return busy if count == 0 else reply(completion(halve(body)))

    server.answer = answer
    assert 1 == evaluate(tasks=1).retried
    assert 0.9 <= asked_at[1] - asked_at[0] <= 3.0  # a date is in whole seconds


def test_a_wait_beyond_the_deadline_is_not_waited(server, evaluate) -> None:
    server.answer = lambda *_: reply(error("come tomorrow"), 429, Retry_After="86400")
    (attempt,) = evaluate(tasks=1).attempts
    assert (Status.ENGINE_ERROR, 1) == (attempt.status, len(server.asked))
    assert "429: come tomorrow" in attempt.error
    assert "asks to wait 86,400 s" in attempt.error


def test_a_server_that_stays_broken_fails_the_attempt_with_its_words(server, evaluate) -> None:
    server.answer = lambda *_: reply(error("out of memory"), 500)
    (attempt,) = evaluate(tasks=1).attempts
    assert (Status.ENGINE_ERROR, 3, 4) == (attempt.status, attempt.retried, len(server.asked))
    assert f"{server.url} failed (500: out of memory)." == attempt.error


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (reply(b"<html>welcome</html>"), "no chat completion: <html>welcome"),
        (reply({"choices": []}), "no chat completion"),
        (reply([1, 2]), "no chat completion"),
        (reply(b"[" * 100_000), "no chat completion"),
        (reply(completion([{"type": "text"}])), "content of type list"),
        (reply(completion("I", "content_filter")), "finish_reason 'content_filter'"),
        (reply(error("top_k is not supported"), 400), "(400): top_k is not supported"),
        (reply({"detail": [{"msg": "Field required"}]}, 422), "Field required"),
    ],
)
def test_what_is_no_turn_fails_the_attempt_at_once(server, evaluate, answer, told) -> None:
    server.answer = lambda *_: answer
    (attempt,) = evaluate(tasks=1).attempts
    assert (Status.ENGINE_ERROR, 0, 1) == (attempt.status, attempt.retried, len(server.asked))
    assert told in attempt.error


def test_a_model_that_said_nothing_said_nothing(server, evaluate) -> None:
    server.answer = lambda *_: reply(completion(None))
    (attempt,) = evaluate(tasks=1).attempts
    assert (Status.OK, False, "") == (
        attempt.status, attempt.success, attempt.messages[1]["content"],
    )  # fmt: skip


def test_an_endpoint_that_hangs_fails_the_attempt_at_the_deadline(server, evaluate) -> None:
    server.answer = lambda *_: server.over.wait()
    start = time.monotonic()
    (attempt,) = evaluate(tasks=1, endpoint={"deadline": 0.3}).attempts
    assert time.monotonic() - start < 3
    assert (Status.ENGINE_ERROR, 1) == (attempt.status, len(server.asked))
    assert f"{server.url} did not answer within 0.3 s." == attempt.error


# ---------------------------------------------------------------- what stops the evaluation


def test_a_wrong_model_stops_the_evaluation_with_the_nearest_name(server, evaluate) -> None:
    with pytest.raises(ConfigError, match=r"model 'halvign' does not exist. Did you mean 'halvi"):
        evaluate(tasks=64, endpoint={"model": "halvign"})
    assert len(server.asked) <= 16  # those under way, and who came in when the first had ended
    with pytest.raises(ConfigError, match=r"model 'x' does not exist. Known: halving, halving-l"):
        evaluate(endpoint={"model": "x"})


def test_a_model_that_is_refused_in_other_words_is_looked_up_too(server, evaluate) -> None:
    refused = reply(error("zzz is not a valid model ID"), 400)
    server.models = ["halving"]
    server.chat = lambda *_: refused
    with pytest.raises(ConfigError, match=r"'zzz' does not exist.*answered 400: zzz is not"):
        evaluate(endpoint={"model": "zzz"})


def test_a_wrong_url_stops_the_evaluation(server, evaluate) -> None:
    with pytest.raises(ConfigError, match=r"answered 404 \(Not Found\): give the URL that comes"):
        evaluate(endpoint={"url": server.url.removesuffix("/v1")})
    server.answer = lambda *_: reply(b"", 308, Location="https://elsewhere.invalid/")
    with pytest.raises(ConfigError, match="answered 308"):
        evaluate()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_evaluation_and_is_in_no_message(
    server, evaluate, monkeypatch, status
) -> None:
    server.answer = lambda *_: reply(error("no such key"), status)
    with pytest.raises(ConfigError, match=rf"\({status}: no such key\), and no API key was sent"):
        evaluate()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.answer = lambda *_: reply(error("x" * 290 + KEY), status)
    with pytest.raises(ConfigError, match=rf"refused access \({status}: x+\*\*\*\)") as refused:
        evaluate(tasks=64)
    assert KEY[:8] not in str(refused.value)
    assert len(server.asked) <= 16


def test_without_a_server_the_evaluation_stops_and_goes_on_when_there_is_one(
    evaluate, tmp_path
) -> None:
    with chat_server() as soon_gone:
        url, port = soon_gone.url, soon_gone.port
        some = evaluate(tasks=1, endpoint={"url": url}, out=tmp_path / "e")
    told = rf"{url} cannot be reached \(ConnectError: .*\), after 3 more tries."
    with pytest.raises(ConfigError, match=told):
        evaluate(tasks=3, endpoint={"url": url}, out=tmp_path / "e")
    with chat_server(port):
        every = evaluate(tasks=3, endpoint={"url": url}, out=tmp_path / "e")
    assert (1, 3, 2) == (len(some.attempts), len(every.attempts), len(every.episodes))
    assert some.attempts[0] == every.attempts[0]
    finished = evaluate(tasks=3, endpoint={"url": url}, out=tmp_path / "e")
    assert every.attempts == finished.attempts  # which needs no server


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"url": "127.0.0.1:8000/v1"}, "must begin with http"),
        ({"url": "http://:8000/v1"}, "has no host"),
        ({"url": "http://h:99999/v1"}, "no port that there can be"),
        ({"url": f"https://me:{KEY}@h/v1"}, "must have no user, password"),
        ({"url": f"https://h/v1?key={KEY}"}, "must have no user, password"),
        ({"url": "https://h/v1/chat/completions"}, "what comes before /chat/completions"),
        ({"model": ""}, "Endpoint.model must be a string, not empty"),
        ({"at_a_time": 0}, "Endpoint.at_a_time must be a whole number"),
        ({"deadline": 0}, "Endpoint.deadline must be a finite number, above 0"),
        ({"key_variable": KEY}, "must be the name of an environment variable"),
    ],
)
def test_what_is_no_endpoint_is_refused_without_repeating_a_secret(wrong, told) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        Endpoint(**{"url": "http://127.0.0.1:8000/v1", "model": "m", **wrong})
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", ["MY_KEY", KEY.replace("-", "_")])
def test_a_key_variable_that_is_not_set_is_refused_and_not_repeated(evaluate, name) -> None:
    """It may be the key itself."""
    with pytest.raises(ConfigError, match="key_variable names is empty"):
        evaluate(endpoint={"key_variable": name})


def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(evaluate, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY} {KEY}")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no API key") as refused:
        evaluate()
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "transformers"}, "samples by itself: leave out engine"),
        ({"rollout": {"context": 512}}, "rollout.context counts tokens"),
        ({"env": None}, "env is missing"),
    ],
)
def test_what_makes_no_sense_through_an_endpoint_is_refused(evaluate, options, told) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluate(**options)


def test_a_url_alone_does_not_say_which_model() -> None:
    with pytest.raises(ConfigError, match="is an endpoint, which may have many models"):
        isentrope.evaluate("http://127.0.0.1:1/v1", "guess")


# ---------------------------------------------------------------- what is kept and shown


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    server, evaluate, monkeypatch, tmp_path, caplog
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    server.answer = first([reply(error(f"{KEY} is slow"), 500), reply(KEY.encode())])
    result = evaluate(k=2, endpoint={"key_variable": "MY_KEY"}, out=tmp_path / "e")
    isentrope.report(result)
    assert {f"Bearer {KEY}"} == server.keys
    assert (1, 1) == (result.failed, result.retried)
    files = [*(tmp_path / "e").iterdir()]
    assert {"evaluation.json", "episodes.jsonl", "result.json", "report.html"} <= {
        file.name for file in files
    }
    assert not [file for file in files if KEY in file.read_text()]
    assert KEY not in caplog.text + repr(result)


def test_everything_is_marked_as_text_only(server, evaluate, tmp_path) -> None:
    result = evaluate(out=tmp_path / "{env}-{split}-{key}")
    other = evaluate(endpoint={"model": "halving-large"}, out=tmp_path / "{env}-{split}-{key}")
    assert result.path != other.path  # the model is part of the key
    about = {"url": server.url, "model": "halving", "policy": TEXT_ONLY}
    assert about == result.about["endpoint"] == evaluate().about["endpoint"]
    assert not {"weights", "engine"} & result.about.keys()
    assert not {"context", "history"} & result.about["rollout"].keys()
    assert f"halving at {server.url}" == result.policy
    assert result.text_only
    assert any(TEXT_ONLY in note for note in Evaluation.read(result.path).notes())
    assert TEXT_ONLY == json.loads((result.path / "result.json").read_text())["text_only"]
    assert TEXT_ONLY in isentrope.report(result).read_text()
    compared = other.against(result)
    assert (True, True) == compared.text_only
    assert any(f"B and A: {TEXT_ONLY}." == note for note in compared.notes("B", "A"))
    assert 0.0 == compared.differences["success"].value


def test_of_two_the_one_that_is_text_only_is_named(evaluate) -> None:
    by_text = evaluate()
    by_token = attrs.evolve(by_text, about={})
    notes = by_token.against(by_text).notes("run", "hosted")
    assert f"hosted: {TEXT_ONLY}." in notes
    assert not any("run" in note for note in notes)


# ---------------------------------------------------------------- the command line


def command(*arguments: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **more}
    return subprocess.run(
        [sys.executable, "-m", "isentrope", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_evaluates_through_an_endpoint_and_compares(server, tmp_path) -> None:
    for name, temperature in (("warm", 1.0), ("cold", 0.2)):
        done = command(
            "eval", server.url, "--model", "halving", "--env", "guess", "--tasks", 6, "--k", 2,
            "--set", f"rollout.temperature={temperature}", "--set", "endpoint.at_a_time=2",
            "--out", name, cwd=tmp_path, OPENAI_API_KEY=KEY,
        )  # fmt: skip
        assert (0, "") == (done.returncode, done.stderr)
        assert f"halving at {server.url}: {TEXT_ONLY}" in done.stdout
        assert "1.000" in done.stdout
    assert ({f"Bearer {KEY}"}, True) == (server.keys, server.most <= 2)
    done = command("compare", "warm", "cold", cwd=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert f"cold and warm: {TEXT_ONLY}." in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--env", "guess"], "--model is missing: {url} has halving, halving-large."),
        (["--env", "guess", "--model", "halvin"], "Did you mean 'halving'?"),
        (["--env", "guess", "--model", "halving", "--set", "endpoint.deadlin=3"], "'deadline'?"),
        (["--env", "guess", "--model", "halving", "--set", "endpoint=3"], "endpoint: must be a ta"),
        (["--model", "halving"], "env is missing"),
        (["--lm-eval", "gsm8k"], "takes a run or the folder of a model here, and no endpoint"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_sentence(
    server, tmp_path, arguments, told
) -> None:
    done = command("eval", server.url, *arguments, cwd=tmp_path)
    assert (2, 1) == (done.returncode, len(done.stderr.strip().splitlines()))
    assert told.format(url=server.url) in done.stderr


@pytest.mark.slow
def test_a_model_is_named_of_an_endpoint_only(tmp_path) -> None:
    done = command("eval", "runs/x", "--model", "m", "--env", "guess", cwd=tmp_path)
    assert (2, True) == (done.returncode, "runs/x is no URL" in done.stderr)
