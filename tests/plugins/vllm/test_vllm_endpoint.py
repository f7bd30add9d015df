"""Evaluating through vLLM's own chat endpoint: what a policy says there, it says in tokens too."""

from __future__ import annotations

from pathlib import Path

import pytest

import isentrope
from isentrope import ConfigError, Endpoint, Evaluation, Status, StopReason
from isentrope_plugins.vllm.server import NAME, Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

CONTEXT = 1024
GREEDY = {"top_p": 1e-6, "max_tokens": 16, "workers": {"isolation": "none"}}


class Endless(isentrope.TextEnv):
    """Talks until no more fits."""

    def __init__(self) -> None:
        self.tasks = isentrope.TaskSet({"test": [isentrope.Task("t")]})

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed, options=options)
        return "A number from 1 to 7. 3 guesses.", info

    def step(self, action):
        return "higher", 0.0, False, False, {}


@pytest.fixture
def url(server: Server) -> str:
    return f"{server.url}/v1"


def test_without_chance_the_same_is_said_in_text_as_in_tokens(
    url: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Over several turns, if tokens are written anew before each, as a chat server does.

    The endpoint's count of tokens is then that of the tokens that were sampled.
    """
    endpoint = Endpoint(url=url, model=NAME, at_a_time=16)
    there = isentrope.evaluate(endpoint, "guess", tasks=24, rollout=GREEDY, out=tmp_path)
    anew = {**GREEDY, "history": "template"}
    here = isentrope.evaluate(str(tiny_model), "guess", tasks=24, rollout=anew)
    assert sum(a.turns for a in there.attempts) > 48
    assert here.attempts == there.attempts
    assert 0.0 == there.against(here).differences["reward"].value
    again = Endpoint(url=url, model=NAME, at_a_time=1, deadline=60)  # which changes no result
    assert there.attempts == isentrope.evaluate(
        again, "guess", tasks=24, rollout=GREEDY, out=tmp_path
    ).attempts  # fmt: skip
    assert there.path == Evaluation.read(tmp_path).path


def test_a_conversation_fills_the_servers_context_and_is_truncated(url: str) -> None:
    result = isentrope.evaluate(
        Endpoint(url=url, model=NAME), Endless, rollout={**GREEDY, "max_turns": CONTEXT}
    )
    (attempt,) = result.attempts
    assert (StopReason.CONTEXT, Status.OK) == (attempt.stop_reason, attempt.status)
    assert 5 < attempt.turns < CONTEXT / 2


def test_a_wrong_model_is_told_which_there_are(url: str) -> None:
    with pytest.raises(ConfigError, match=r"model 'bass' does not exist. Did you mean 'base'\?"):
        isentrope.evaluate(Endpoint(url=url, model="bass"), "guess", tasks=64)
