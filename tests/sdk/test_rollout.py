"""Chat templates, the token ledger, and the collector, against scripted engines."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable, Sequence

import pytest
from attrs import define, field

import isentrope
from isentrope import (
    Completion,
    ConfigError,
    EngineError,
    LanguageModel,
    RolloutConfig,
    Sampling,
    Status,
    StopReason,
    Task,
    TaskSet,
    TextEnv,
    TokenLedger,
    WeightsRef,
)
from isentrope.rollout.chat import ChatTemplate
from isentrope.rollout.collector import Request, RolloutCollector
from isentrope.rollout.hosting import LocalHost
from isentrope_plugins.tiny.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["higher lower guess a number"], 300)
END = TOKENIZER.eos_token_id
TEMPLATE = ChatTemplate(TOKENIZER, [END])

# The shape of Qwen3's own: earlier turns lose their thinking, and a newline follows every turn.
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@define
class ScriptedEngine:
    """Says what it is told to say, and remembers what it was asked."""

    say: Callable[[Sequence[int], Sampling], Completion]
    prompts: list[list[int]] = field(factory=list)
    samplings: list[Sampling] = field(factory=list)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, conversation: object = None
    ) -> Completion:
        self.prompts.append(list(prompt))
        self.samplings.append(sampling)
        await asyncio.sleep(0)
        return self.say(prompt, sampling)

    async def publish(self, weights: WeightsRef) -> None:
        raise AssertionError("nothing is published here")

    async def close(self) -> None: ...


def spoken(text: str, *, end: bool = True) -> Completion:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"] + [END] * end
    return Completion(ids, [-0.5] * len(ids), "stop" if end else "length", version=3)


class Countdown(TextEnv):
    """Ends after `turns`; `mischief` says what it does wrong, and when."""

    def __init__(self, turns: int = 3, mischief: str = "") -> None:
        self.turns, self.mischief = turns, mischief
        self.tasks = TaskSet({"train": [Task("a"), Task("b")]})
        self.closed = 0

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed, options=options)
        if self.mischief == "reset":
            raise RuntimeError("no floor")
        self.left = self.turns
        return f"begin {self.task.id}", info

    def step(self, action):
        self.left -= 1
        if self.mischief == "exit":
            sys.exit(0)
        if self.mischief == "raise":
            raise ZeroDivisionError("boom")
        reward = float("nan") if self.mischief == "nan" else 0.25
        over = self.left == 0
        truncated = over and self.mischief == "truncate"
        return f"left {self.left}", reward, over and not truncated, truncated, {"success": over}


@pytest.fixture
def collect(monkeypatch: pytest.MonkeyPatch):
    made: list[Countdown] = []

    def run(engine: ScriptedEngine, *, context: int = 10_000, rollouts: int = 2, **config):
        env_config = config.pop("env", {})

        def make(env_id: str, **_: object) -> TextEnv:
            from isentrope.environments import Guard

            made.append(Countdown(**env_config))
            return Guard(made[-1], env_id)

        limits = RolloutConfig(**{"max_tokens": 50, **config})
        collector = RolloutCollector(
            LocalHost(lambda: make("countdown")),
            limits,
            engine,
            TEMPLATE,
            limits.sampling([END]),
            context,
            version=3,
        )
        requests = [Request(t, 7, r, 100 * r) for t in "ab" for r in range(rollouts)]
        return asyncio.run(collector.collect(requests))

    return run


def test_the_ledger_is_what_was_sent_and_what_came_back_in_order() -> None:
    ledger = TokenLedger(TEMPLATE, [{"role": "user", "content": "guess"}])
    prompt = list(ledger.ids)
    first = spoken("12")
    assert "12" == ledger.policy_said(first)
    ledger.environment_said([{"role": "user", "content": "higher"}])
    between = ledger.ids[len(prompt) + len(first.ids) :]
    second = spoken("14")
    ledger.policy_said(second)
    (segment,) = ledger.segments()
    assert [*prompt, *first.ids, *between, *second.ids] == segment.ids.tolist()
    assert "<|user|>higher<|end|><|assistant|>" == TOKENIZER.decode(between)
    sampled = [False] * len(prompt) + [True] * 3 + [False] * len(between) + [True] * 3
    assert sampled == segment.sampled.tolist()
    assert [0] * (len(prompt) + 3) + [1] * (len(between) + 3) == segment.turn.tolist()
    assert [3 if s else -1 for s in sampled] == segment.version.tolist()
    assert [-0.5 if s else 0.0 for s in sampled] == segment.logp.tolist()


def test_sampled_tokens_survive_a_tokenizer_that_would_encode_their_text_otherwise() -> None:
    letters = [TOKENIZER.convert_tokens_to_ids(c) for c in "guess"]  # "guess" is one token
    assert letters != TOKENIZER("guess", add_special_tokens=False)["input_ids"]
    ledger = TokenLedger(TEMPLATE, [{"role": "user", "content": "?"}])
    said = ledger.policy_said(Completion([*letters, END], [0.0] * 6, "stop", 0))
    ledger.environment_said([{"role": "user", "content": "no"}])
    assert "guess" == said
    (segment,) = ledger.segments()
    assert [*letters, END] == segment.ids[segment.sampled].tolist()


def test_a_template_that_rewrites_history_rewrites_nothing_that_was_sampled() -> None:
    tokenizer = train_tokenizer(["x"], 300)
    tokenizer.chat_template = FORGETFUL
    template = ChatTemplate(tokenizer, [END])
    ledger = TokenLedger(template, [{"role": "user", "content": "q"}])
    ids = tokenizer("<think>so</think>5", add_special_tokens=False)["input_ids"] + [END]
    ledger.policy_said(Completion(ids, [0.0] * len(ids), "stop", 0))
    ledger.environment_said([{"role": "user", "content": "no"}])
    assert (
        "<|user|>\nq<|end|>\n<|assistant|>\n<think>so</think>5<|end|>\n"
        "<|user|>\nno<|end|>\n<|assistant|>\n"
    ) == tokenizer.decode(ledger.ids)


def test_several_messages_and_a_system_prompt_are_rendered_by_the_template() -> None:
    ids = TEMPLATE.opening(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    )
    assert "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>" == TOKENIZER.decode(ids)
    reply = TEMPLATE.reply(
        [{"role": "tool", "content": "42"}, {"role": "user", "content": "so?"}], END
    )
    assert "<|tool|>42<|end|><|user|>so?<|end|><|assistant|>" == TOKENIZER.decode(reply)


def test_a_tokenizer_without_a_chat_template_is_refused_with_advice() -> None:
    bare = types.SimpleNamespace(chat_template=None, name_or_path="some/base-model")
    with pytest.raises(ConfigError, match="some/base-model has no chat template"):
        ChatTemplate(bare, [END])


def test_an_episode_runs_to_its_end_and_adds_up_its_rewards(collect) -> None:
    engine = ScriptedEngine(lambda p, s: spoken("ok"))
    episodes = collect(engine)
    assert [("a", 0), ("a", 1), ("b", 0), ("b", 1)] == [(e.task, e.rollout) for e in episodes]
    for episode in episodes:
        assert (Status.OK, StopReason.TERMINATED, True) == (
            episode.status,
            episode.stop_reason,
            episode.success,
        )
        assert 0.75 == episode.reward
        assert ["user", "assistant"] * 3 == [m["role"] for m in episode.messages]
        assert not episode.truncated


def test_every_turn_of_every_rollout_is_sampled_with_a_seed_of_its_own(collect) -> None:
    engine = ScriptedEngine(lambda p, s: spoken("ok"))
    collect(engine, rollouts=3)
    # Tasks share the requests' sampling seeds here, so 3 rollouts x 3 turns are distinct.
    assert 9 == len({s.seed for s in engine.samplings})


def test_prompts_sent_to_the_engine_grow_by_exactly_what_was_said(collect) -> None:
    engine = ScriptedEngine(lambda p, s: spoken("ok"))
    (episode, *_) = collect(engine, rollouts=1)
    (segment,) = episode.segments
    own = [p for p in engine.prompts if p == segment.ids[: len(p)].tolist()]
    assert 3 == len(own)


@pytest.mark.parametrize(
    ("mischief", "told"),
    [
        ("raise", "ZeroDivisionError: boom"),
        ("reset", "RuntimeError: no floor"),
        ("nan", "must return a finite number as the reward, not nan"),
    ],
)
def test_a_failing_environment_is_a_failed_episode_with_its_reason(collect, mischief, told) -> None:
    episodes = collect(ScriptedEngine(lambda p, s: spoken("ok")), env={"mischief": mischief})
    assert {Status.ENV_ERROR} == {e.status for e in episodes}
    assert {StopReason.FAILED} == {e.stop_reason for e in episodes}
    assert all(told in (e.error or "") for e in episodes)
    assert not any(e.success for e in episodes)


def test_an_empty_completion_is_a_failure_of_the_engine(collect) -> None:
    episodes = collect(ScriptedEngine(lambda p, s: Completion((), (), "stop", 0)))
    assert {Status.ENGINE_ERROR} == {e.status for e in episodes}
    assert "empty completion" in (episodes[0].error or "")


def test_an_engine_that_raises_fails_only_the_episodes_it_fails(collect) -> None:
    def say(prompt: Sequence[int], sampling: Sampling) -> Completion:
        if "begin b" in TOKENIZER.decode(prompt):
            raise EngineError("out of luck")
        return spoken("ok")

    episodes = collect(ScriptedEngine(say))
    assert [Status.OK] * 2 + [Status.ENGINE_ERROR] * 2 == [e.status for e in episodes]


def test_a_turn_of_nothing_but_the_stop_token_is_an_empty_action(collect) -> None:
    episodes = collect(ScriptedEngine(lambda p, s: spoken("")))
    assert [""] * 3 == [m["content"] for m in episodes[0].messages if m["role"] == "assistant"]
    assert 3 == episodes[0].sampled_tokens


def test_limits_truncate_with_their_reason_and_are_no_success(collect) -> None:
    cut = collect(ScriptedEngine(lambda p, s: spoken("long", end=False)))
    assert {StopReason.MAX_TOKENS} == {e.stop_reason for e in cut}
    assert {0} == {e.turns for e in cut}
    few = collect(ScriptedEngine(lambda p, s: spoken("ok")), max_turns=2)
    assert {StopReason.MAX_TURNS} == {e.stop_reason for e in few}
    assert {(0.25, 0.25)} == {e.rewards for e in few}
    assert {0.0} == {e.reward for e in few}  # not to finish is to fail
    for episode in (*cut, *few):
        assert episode.truncated
        assert not episode.success


def test_a_context_that_fills_up_truncates_and_never_overflows(collect) -> None:
    engine = ScriptedEngine(
        lambda p, s: (
            spoken("o" * (s.max_tokens - 1)) if s.max_tokens > 1 else spoken("o", end=False)
        )
    )
    opening = len(TEMPLATE.opening([{"role": "user", "content": "begin a"}]))
    episodes = collect(engine, context=opening + 20, max_tokens=8)
    assert {StopReason.CONTEXT} == {e.stop_reason for e in episodes}
    for prompt, sampling in zip(engine.prompts, engine.samplings, strict=True):
        assert len(prompt) + sampling.max_tokens <= opening + 20


def test_a_prompt_longer_than_the_context_samples_nothing(collect) -> None:
    engine = ScriptedEngine(lambda p, s: spoken("ok"))
    episodes = collect(engine, context=5)
    assert {(StopReason.CONTEXT, 0)} == {(e.stop_reason, e.sampled_tokens) for e in episodes}
    assert [] == engine.prompts


def test_an_environments_own_truncation_is_kept_apart_from_its_end(collect) -> None:
    episodes = collect(ScriptedEngine(lambda p, s: spoken("ok")), env={"mischief": "truncate"})
    assert {StopReason.TRUNCATED} == {e.stop_reason for e in episodes}


def test_running_into_a_limit_never_pays_where_rewards_are_costs(collect, monkeypatch) -> None:
    monkeypatch.setattr(Countdown, "reward_range", (-1.0, 0.0))
    cut = collect(ScriptedEngine(lambda p, s: spoken("long", end=False)))
    assert {((), -1.0)} == {(e.rewards, e.reward) for e in cut}


def test_a_completion_of_a_stale_policy_is_a_failure_of_the_engine(collect) -> None:
    stale = Completion((5, END), (-1.0, -1.0), "stop", version=2)
    episodes = collect(ScriptedEngine(lambda p, s: stale))
    assert {Status.ENGINE_ERROR} == {e.status for e in episodes}
    assert "version 2 of the policy, but 3 was published" in (episodes[0].error or "")


def test_a_completion_without_all_its_log_probs_is_a_failure_of_the_engine(collect) -> None:
    short = Completion((5, END), (-1.0,), "stop", version=3)
    episodes = collect(ScriptedEngine(lambda p, s: short))
    assert "1 log-probs for 2 tokens" in (episodes[0].error or "")


def test_control_tokens_that_an_environment_quotes_stay_text() -> None:
    quoted = TEMPLATE.opening([{"role": "user", "content": "say <|end|><|assistant|> now"}])
    assert 1 == quoted.count(END)
    assert 1 == quoted.count(TOKENIZER.convert_tokens_to_ids("<|assistant|>"))
    assert "say <\u200b|end|>" in TOKENIZER.decode(quoted)


def test_a_template_whose_turns_end_in_no_stop_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'<\|end\|>', which is none of the model's stop tokens"):
        ChatTemplate(TOKENIZER, [TOKENIZER.pad_token_id])


def test_a_template_that_drops_the_assistants_turns_is_refused() -> None:
    tokenizer = train_tokenizer(["x"], 300)
    tokenizer.chat_template = "{{ messages[-1].content }}<|end|>"
    with pytest.raises(ConfigError, match="drops an assistant's turn"):
        ChatTemplate(tokenizer, [END])


def test_an_environment_that_exits_the_process_only_fails_its_episode(collect) -> None:
    episodes = collect(ScriptedEngine(lambda p, s: spoken("ok")), env={"mischief": "exit"})
    assert {Status.ENV_ERROR} == {e.status for e in episodes}


def test_stop_ids_come_from_tokenizer_and_generation_config() -> None:
    configured = types.SimpleNamespace(eos_token_id=[9, END])
    model = types.SimpleNamespace(generation_config=configured, device="cpu")
    assert (END, 9) == LanguageModel(model, TOKENIZER).stop_ids


# ---------------------------------------------------------------- history as the template has it


def forgetful() -> ChatTemplate:
    tokenizer = train_tokenizer(["higher lower guess a number"], 300)
    tokenizer.chat_template = FORGETFUL
    return ChatTemplate(tokenizer, [tokenizer.eos_token_id])


def converse(template: ChatTemplate, turns: Sequence[str], history: str) -> TokenLedger:
    """Have a policy say these turns, each answered with "go on"; return the ledger."""
    ledger = TokenLedger(template, [{"role": "user", "content": "begin"}], history)  # type: ignore[arg-type]
    for turn in turns:
        ledger.policy_said(spoken(turn))
        ledger.environment_said([{"role": "user", "content": "go on"}])
    return ledger


def test_a_template_that_drops_thinking_begins_a_new_segment_each_turn() -> None:
    turns = ["<think>a</think>1", "<think>b</think>2", "<think>c</think>3"]
    appended = converse(forgetful(), turns, "append").segments()
    anew = converse(forgetful(), turns, "template").segments()
    assert (1, 3) == (len(appended), len(anew))
    for turn, segment in enumerate(anew):
        seen = TOKENIZER.decode(segment.ids)
        assert turns[turn] in seen, "what was sampled is there, thinking and all"
        assert all(f"</think>{i}" not in seen for i in range(1, turn + 1))
        assert {turn} == set(segment.turn[segment.sampled].tolist())
    sampled = [s.ids[s.sampled].tolist() for s in (*appended, *anew)]
    assert sampled[0] == [i for part in sampled[1:] for i in part]


def test_a_template_that_keeps_everything_stays_in_one_segment() -> None:
    turns = ["1", "2", "a number"]
    appended, anew = (converse(TEMPLATE, turns, h) for h in ("append", "template"))
    assert appended.ids == anew.ids
    assert 1 == len(anew.segments())
    assert appended.segments() == anew.segments()


def test_what_was_sampled_in_another_way_than_it_is_tokenized_stays_as_it_was() -> None:
    """Tokens of single bytes, where the tokenizer would write one for the word."""
    word = TOKENIZER("higher", add_special_tokens=False)["input_ids"]
    letters = [i for c in "higher" for i in TOKENIZER(c, add_special_tokens=False)["input_ids"]]
    assert word != letters
    ledger = TokenLedger(TEMPLATE, [{"role": "user", "content": "begin"}], "template")
    ledger.policy_said(Completion([*letters, END], [-1.0] * (len(letters) + 1), "stop", 3))
    ledger.environment_said([{"role": "user", "content": "go on"}])
    ledger.policy_said(spoken("1"))
    first, second = ledger.segments()
    assert [*letters, END] == first.ids[first.sampled].tolist()
    assert "higher" in TOKENIZER.decode(second.ids[~second.sampled])
    assert 1 == second.turn[second.sampled].min()


@pytest.mark.slow
def test_a_run_learns_from_episodes_in_several_segments(tiny_run) -> None:
    options = {**tiny_run, "env": "guess", "iterations": 2}
    options["rollout"] = {**tiny_run["rollout"], "history": "template", "max_turns": 3}
    run = isentrope.train(**options)
    assert all(m["segments_per_episode"] >= 1 for m in run.metrics)
    assert all(m["mismatch_max"] < 1e-4 for m in run.metrics)
