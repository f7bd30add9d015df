"""Tasks, the text space, what `Guard` lets through, and how environments are made by id."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import isentrope
from isentrope import (
    ConfigError,
    EnvironmentContractError,
    EnvSpec,
    PluginError,
    Task,
    TaskSet,
    TextEnv,
    Unicode,
    UnknownNameError,
)
from isentrope.environments import Guard

HERE = __name__


class Echo(TextEnv):
    """Two turns; what reset and step return can be replaced."""

    def __init__(self, size: int = 3, **returned: Any) -> None:
        if size < 1:
            raise ValueError("size must be at least 1")
        self.tasks = TaskSet({"train": map(Task, "abc"[:size]), "test": [Task("z")]})
        self.returned = returned
        self.closed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        _, info = super().reset(seed=seed, options=options)
        self.turns = 0
        return self.returned.get("reset", ("Say something.", info))

    def step(self, action: str) -> Any:
        self.turns += 1
        done = self.turns == 2
        return self.returned.get("step", (action, 0.5, done, False, {"success": done}))

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str:
        return f"demonstration at {noise}"

    def close(self) -> None:
        self.closed += 1


class Plain(gymnasium.Env[str, str]):
    """No TextEnv."""


class Taskless(TextEnv):
    """Forgets its tasks."""


class Failing(TextEnv):
    """Cannot be made."""

    def __init__(self, why: str = "value") -> None:
        raise {"value": ValueError("no data"), "config": ConfigError("no licence")}[why]


@pytest.fixture
def echo() -> Iterator[Guard]:
    env = Guard(Echo(), "echo")
    yield env
    env.close()


# ---------------------------------------------------------------- tasks


def test_a_task_in_two_splits_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        TaskSet({"train": [Task("a"), Task("b")], "dev": [], "test": [Task("b")]})
    assert (
        "Task 'b' is in splits 'train' and 'test'; every task belongs to exactly one split, or "
        "evaluation would see training tasks."
    ) == str(caught.value)


def test_a_task_twice_in_a_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^Task 'a' is twice in split 'dev'; "):
        TaskSet({"train": [Task("b")], "dev": [Task("a"), Task("c"), Task("a")]})


def test_tasks_keep_their_order_and_splits_theirs() -> None:
    tasks = TaskSet({"train": (Task(i) for i in "cab"), "dev": [Task("z")]})
    assert ["train", "dev"] == list(tasks)
    assert 2 == len(tasks)
    assert ("c", "a", "b") == tuple(task.id for task in tasks["train"])


def test_a_task_is_found_whatever_its_split() -> None:
    tasks = TaskSet({"train": [Task("a", {"n": 1})], "dev": [Task("b", {"n": 2})]})
    assert {"n": 1} == tasks.find("a").data
    assert {"n": 2} == tasks.find("b").data


def test_an_unknown_split_is_an_error_that_names_the_nearest() -> None:
    tasks = TaskSet({"train": [Task("a")], "dev": [Task("b")]})
    with pytest.raises(UnknownNameError) as caught:
        tasks["trian"]
    assert "Split 'trian' does not exist. Did you mean 'train'?" == str(caught.value)
    assert ("trian", ("train", "dev")) == (caught.value.name, caught.value.options)


def test_an_unknown_task_is_an_error_that_names_the_nearest() -> None:
    tasks = TaskSet({"train": [Task("equation-1")], "dev": [Task("riddle")]})
    with pytest.raises(UnknownNameError, match=r"Task 'equation1' .* Did you mean 'equation-1'\?"):
        tasks.find("equation1")
    with pytest.raises(UnknownNameError, match=r"Known: equation-1, riddle\.$"):
        tasks.find("999")


def test_looking_for_a_split_is_no_error() -> None:
    tasks = TaskSet({"train": [Task("a")]})
    assert None is tasks.get("dev")
    assert "dev" not in tasks


# ---------------------------------------------------------------- reset


def test_an_environment_that_poses_another_task_than_it_was_asked_for_is_caught() -> None:
    class Wilful(Echo):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)

    guard = Guard(Wilful(), "wilful")
    drawn = guard.reset(seed=0)[1]["task"]
    other = next(task.id for task in guard.tasks["train"] if task.id != drawn)
    with pytest.raises(EnvironmentContractError, match=r"was asked for task .* and posed"):
        guard.reset(seed=0, options={"task": other})


def test_reset_takes_the_task_that_was_asked_for(echo: Guard) -> None:
    for task in "abcz":
        _, info = echo.reset(seed=0, options={"task": task})
        assert {"task": task} == info
        assert task == echo.task.id


def test_reset_draws_from_the_split_that_was_asked_for(echo: Guard) -> None:
    drawn = {echo.reset(seed=s, options={"split": "train"})[1]["task"] for s in range(40)}
    assert {"a", "b", "c"} == drawn
    assert "z" == echo.reset(seed=0, options={"split": "test"})[1]["task"]


def test_reset_draws_from_the_first_split_by_the_seed(echo: Guard) -> None:
    drawn = [echo.reset(seed=s)[1]["task"] for s in range(40)]
    assert {"a", "b", "c"} == set(drawn)
    assert drawn == [Echo().reset(seed=s)[1]["task"] for s in range(40)]


def test_an_unknown_reset_option_is_an_error_that_names_the_nearest(echo: Guard) -> None:
    with pytest.raises(UnknownNameError, match=r"reset option 'tsk' .* Did you mean 'task'\?"):
        echo.reset(options={"tsk": "a"})


# ---------------------------------------------------------------- the text space


@given(st.text())
def test_any_string_is_in_the_space(text: str) -> None:
    assert Unicode().contains(text)
    assert text in Unicode()


@pytest.mark.parametrize("other", [b"bytes", 1, None, ["a"], np.array(["a"])])
def test_nothing_else_is(other: object) -> None:
    assert not Unicode().contains(other)


@given(st.integers(0, 2**32 - 1))
def test_a_sample_is_a_valid_string_of_at_most_32_characters(seed: int) -> None:
    sample = Unicode(seed=seed).sample()
    assert sample == sample.encode("utf-8").decode("utf-8")
    assert len(sample) <= 32


def test_samples_come_from_the_whole_range_and_differ() -> None:
    space = Unicode(seed=0)
    samples = [space.sample() for _ in range(500)]
    points = [ord(c) for sample in samples for c in sample]
    assert 480 < len(set(samples))
    assert 0 < min(points) < 0x2000
    assert 0x10F000 < max(points) <= 0x10FFFF
    assert any(0xE000 <= p < 0xF000 for p in points), "what is behind the surrogates too"


def test_the_seed_decides_the_samples() -> None:
    first, second = Unicode(seed=7), Unicode()
    second.seed(7)
    assert [first.sample() for _ in range(5)] == [second.sample() for _ in range(5)]


def test_all_text_spaces_are_equal() -> None:
    assert Unicode(seed=1) == Unicode(seed=2)
    assert Unicode() != gymnasium.spaces.Text(5)
    assert "Unicode()" == repr(Unicode())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_space_works_in_a_gymnasium_vector(mode: str) -> None:
    name = "isentrope-tests/Echo-v0"
    gymnasium.register(name, entry_point=Echo, disable_env_checker=True)
    kwargs = {"shared_memory": False} if mode == "async" else {}
    try:
        envs = gymnasium.make_vec(name, num_envs=2, vectorization_mode=mode, vector_kwargs=kwargs)
        envs.action_space.seed(3)
        assert ("Say something.",) * 2 == envs.reset(seed=0)[0]
        actions = envs.action_space.sample()
        assert actions in envs.action_space
        observations, rewards, *_ = envs.step(actions)
        assert actions == observations
        assert observations in envs.observation_space
        assert [0.5, 0.5] == rewards.tolist()
        envs.close()
    finally:
        del gymnasium.registry[name]


# ---------------------------------------------------------------- the guard


def guarded(**returned: Any) -> Guard:
    return Guard(Echo(**returned), "echo")


def sentence(env: Guard, call: str) -> str:
    """Return the error of reset, or of the first step."""
    if call == "step":
        env.reset(seed=0)
    with pytest.raises(EnvironmentContractError) as caught:
        env.reset(seed=0) if call == "reset" else env.step("hello")
    return str(caught.value)


def test_a_right_environment_passes_through_unchanged(echo: Guard) -> None:
    assert ("Say something.", {"task": "a"}) == echo.reset(seed=0, options={"task": "a"})
    assert ("one", 0.5, False, False, {"success": False}) == echo.step("one")
    assert ("two", 0.5, True, False, {"success": True}) == echo.step("two")


def test_the_guard_shows_what_it_guards(echo: Guard) -> None:
    inner = echo.unwrapped
    assert isinstance(inner, Echo)
    assert inner.tasks is echo.tasks
    assert (0.0, 1.0) == echo.reward_range
    assert "demonstration at 0.25" == echo.demonstrate(np.random.default_rng(0), 0.25)
    assert Unicode() == echo.action_space == echo.observation_space
    echo.close()
    assert 1 == inner.closed


RESETS: list[tuple[Any, str]] = [
    ("Hi", "reset() must return (observation, info), not 'Hi' (str)"),
    (("Hi", {}, 1), "reset() must return (observation, info), not ('Hi', {}, 1) (tuple)"),
    (["Hi", {}], "reset() must return (observation, info), not ['Hi', {}] (list)"),
    (None, "reset() must return (observation, info), not None (NoneType)"),
    (("x" * (2**20 + 1), {}), "reset() must say at most 1,048,576 characters, not 1,048,577"),
    ((b"Hi", {}), "reset() must return a str as the observation, not b'Hi' (bytes)"),
    (("Hi", None), "reset() must return a dict as info, not None (NoneType)"),
]


@pytest.mark.parametrize(("returned", "expected"), RESETS)
def test_what_reset_may_not_return(returned: Any, expected: str) -> None:
    assert f"Environment 'echo': {expected}." == sentence(guarded(reset=returned), "reset")


STEPS = [
    (
        ("", 1.0, True, {}),
        "step() must return (observation, reward, terminated, truncated, info), "
        "not ('', 1.0, True, {}) (tuple)",
    ),
    (
        ["", 1.0, True, False, {}],
        "step() must return (observation, reward, terminated, truncated, info), "
        "not ['', 1.0, True, False, {}] (list)",
    ),
    ((1, 1.0, True, False, {}), "step() must return a str as the observation, not 1 (int)"),
    (("", "1", True, False, {}), "step() must return a finite number as the reward, not '1' (str)"),
    (
        ("", None, True, False, {}),
        "step() must return a finite number as the reward, not None (NoneType)",
    ),
    (
        ("", math.nan, True, False, {}),
        "step() must return a finite number as the reward, not nan (float)",
    ),
    (
        ("", math.inf, True, False, {}),
        "step() must return a finite number as the reward, not inf (float)",
    ),
    (
        ("", np.float32("-inf"), True, False, {}),
        "step() must return a finite number as the reward, not np.float32(-inf) (float32)",
    ),
    (("", 1.0, 1, False, {}), "step() must return a bool as terminated, not 1 (int)"),
    (("", 1.0, True, None, {}), "step() must return a bool as truncated, not None (NoneType)"),
    (("", 1.0, True, False, ()), "step() must return a dict as info, not () (tuple)"),
]


@pytest.mark.parametrize(("returned", "expected"), STEPS)
def test_what_step_may_not_return(returned: Any, expected: str) -> None:
    assert f"Environment 'echo': {expected}." == sentence(guarded(step=returned), "step")


MESSAGE = (
    'step(): info["messages"] must hold {"role": "system" | "user" | "assistant" | "tool", '
    '"content": str}, not '
)
INFOS = [
    ({"messages": ["hi"]}, MESSAGE + "'hi' (str)"),
    ({"messages": [{"role": "user"}]}, MESSAGE + "{'role': 'user'} (dict)"),
    (
        {"messages": [{"role": "human", "content": "hi"}]},
        MESSAGE + "{'role': 'human', 'content': 'hi'} (dict)",
    ),
    (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "tool", "content": 3}]},
        MESSAGE + "{'role': 'tool', 'content': 3} (dict)",
    ),
    (
        {"success": 0.5},
        'step(): info["success"] must be a bool, not 0.5 (float); a partial reward is not a '
        "success",
    ),
    (
        {"stop_reason": "timeout"},
        "step(): info[\"stop_reason\"] must be one of ['terminated', 'truncated', 'max_turns', "
        "'max_tokens', 'context', 'max_seconds', 'failed'], not 'timeout' (str)",
    ),
    (
        {"metrics": {"share": math.nan}},
        "step(): info[\"metrics\"]['share'] must be a finite number, not nan (float)",
    ),
    (
        {"metrics": {"share": "half"}},
        "step(): info[\"metrics\"]['share'] must be a finite number, not 'half' (str)",
    ),
]


@pytest.mark.parametrize(("info", "expected"), INFOS)
def test_what_info_may_not_say(info: dict[str, Any], expected: str) -> None:
    env = guarded(step=("", 1.0, True, False, info))
    assert f"Environment 'echo': {expected}." == sentence(env, "step")


def test_info_is_checked_after_reset_as_well() -> None:
    env = guarded(reset=("Hi", {"success": "yes"}))
    assert "reset(): info[\"success\"] must be a bool, not 'yes' (str)" in sentence(env, "reset")


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"success": np.True_},
        {"stop_reason": "context"},
        {"metrics": {"share": np.float32(0.5), "count": 3, "flag": True}},
        {"messages": [{"role": "tool", "content": ""}, {"role": "user", "content": "hi"}]},
        {"messages": ()},
        {"something": object()},
    ],
)
def test_what_info_may_say(info: dict[str, Any]) -> None:
    env = guarded(step=("", 1.0, True, False, info))
    env.reset(seed=0)
    assert info is env.step("hello")[4]


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.int64(1)])
def test_numbers_and_flags_of_any_kind_become_pythons_own(reward: Any) -> None:
    env = guarded(step=("", reward, np.True_, np.False_, {}))
    env.reset(seed=0)
    _, *found, _ = env.step("hello")
    assert [1.0, True, False] == found
    assert [float, bool, bool] == [type(value) for value in found]


def test_a_long_value_is_cut_in_the_sentence() -> None:
    text = sentence(guarded(reset=("x" * 10_000, None, None)), "reset")
    assert len(text) < 200
    assert text.endswith("... (tuple).")


ORDER = (
    "Environment 'echo': step() was called before reset() or after the episode's end; reset first."
)


def test_a_step_before_reset_is_an_error(echo: Guard) -> None:
    with pytest.raises(EnvironmentContractError) as caught:
        echo.step("hello")
    assert ORDER == str(caught.value)


@pytest.mark.parametrize("end", [(True, False), (False, True), (True, True)])
def test_a_step_after_the_end_is_an_error(end: tuple[bool, bool]) -> None:
    env = guarded(step=("", 1.0, *end, {}))
    env.reset(seed=0)
    env.step("hello")
    with pytest.raises(EnvironmentContractError) as caught:
        env.step("hello")
    assert ORDER == str(caught.value)
    env.reset(seed=0)
    env.step("hello")


@pytest.mark.parametrize("call", ["reset", "step"])
def test_a_step_after_a_broken_call_is_an_error(call: str) -> None:
    env = guarded(**{call: None})
    sentence(env, call)
    with pytest.raises(EnvironmentContractError, match=r"before reset\(\) or after"):
        env.step("hello")


def test_a_reset_that_fails_ends_the_episode_before_it() -> None:
    env = Echo()
    guard = Guard(env, "echo")
    guard.reset(seed=0)
    env.returned = {"reset": None}
    sentence(guard, "reset")
    with pytest.raises(EnvironmentContractError, match=r"before reset\(\) or after"):
        guard.step("hello")


def test_an_episode_that_goes_on_may_be_stepped_and_reset(echo: Guard) -> None:
    for _ in range(2):
        echo.reset(seed=0)
        echo.step("one")
    echo.step("two")


@pytest.mark.parametrize("action", [None, 3, b"hi", ["hi"]])
def test_an_action_must_be_text(echo: Guard, action: Any) -> None:
    echo.reset(seed=0)
    with pytest.raises(EnvironmentContractError, match=r"^Environment 'echo': an action must be a"):
        echo.step(action)
    assert 0 == echo.inner.turns, "the environment never saw it"  # type: ignore[attr-defined]


# ---------------------------------------------------------------- isentrope.make


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let an id name a class of this module."""
    from isentrope.plugins import registry

    def bring(name: str, **config: Any) -> None:
        spec = EnvSpec("brought", f"{HERE}:{name}", "A test's own", config=config)
        found = registry()
        monkeypatch.setattr(type(found), "find", lambda _, kind, env_id: evolve(spec, id=env_id))

    return bring


def test_make_returns_a_guarded_environment() -> None:
    env = isentrope.make("arithmetic", grading="derivation")
    assert isinstance(env, Guard)
    assert "derivation" == env.unwrapped.grading  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentContractError, match=r"^Environment 'arithmetic': "):
        env.step("hello")


def test_make_names_the_nearest_environment() -> None:
    with pytest.raises(UnknownNameError, match=r"'arithmetics' .* Did you mean 'arithmetic'\?"):
        isentrope.make("arithmetics")


def test_make_names_the_nearest_option_of_a_base_too() -> None:
    with pytest.raises(UnknownNameError) as caught:
        isentrope.make("appworld-served", tuns=3)
    assert (
        "Option of environment 'appworld-served': 'tuns' does not exist. Did you mean 'turns'?"
    ) == str(caught.value)
    assert {"urls", "tasks", "preset", "turns"} < set(caught.value.options)


def test_make_names_the_nearest_option() -> None:
    with pytest.raises(UnknownNameError) as caught:
        isentrope.make("arithmetic", graading="answer")
    assert (
        "Option of environment 'arithmetic': 'graading' does not exist. Did you mean 'grading'?"
    ) == str(caught.value)


def test_make_refuses_a_wrong_value_in_the_environments_own_words() -> None:
    with pytest.raises(ConfigError, match="must be 'answer' or 'derivation'; got 'proof'"):
        isentrope.make("arithmetic", grading="proof")


def test_an_id_may_stand_for_a_configuration_that_a_user_overrides(brought: Any) -> None:
    brought("Echo", size=2)
    assert 2 == len(isentrope.make("brought").tasks["train"])
    assert 1 == len(isentrope.make("brought", size=1).tasks["train"])


def test_an_error_of_a_constructor_names_the_environment(brought: Any) -> None:
    brought("Echo")
    with pytest.raises(ConfigError) as caught:
        isentrope.make("brought", size=0)
    assert "Environment 'brought' cannot be made: ValueError: size must be at least 1" == str(
        caught.value
    )


def test_an_error_of_ours_passes_as_it_is(brought: Any) -> None:
    brought("Failing")
    with pytest.raises(ConfigError, match=r"^no licence$"):
        isentrope.make("brought", why="config")
    with pytest.raises(
        ConfigError, match=r"^Environment 'brought' cannot be made: ValueError: no data$"
    ):
        isentrope.make("brought")


def test_make_refuses_a_class_that_is_no_text_environment(brought: Any) -> None:
    brought("Plain")
    with pytest.raises(PluginError) as caught:
        isentrope.make("brought")
    assert (
        "Environment 'brought' is a Plain; an EnvSpec must name a subclass of isentrope.TextEnv."
    ) == str(caught.value)


def test_make_refuses_an_environment_without_tasks(brought: Any) -> None:
    brought("Taskless")
    with pytest.raises(PluginError) as caught:
        isentrope.make("brought")
    assert ("Environment 'brought' has no tasks: set self.tasks to a TaskSet.") == str(caught.value)


def test_make_names_a_class_that_cannot_be_imported(brought: Any) -> None:
    brought("Ecco")
    with pytest.raises(PluginError, match=r"'brought' \(.*:Ecco\) failed to import: Attribute"):
        isentrope.make("brought")
