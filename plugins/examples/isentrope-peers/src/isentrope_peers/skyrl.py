"""skyrl-gym's environments (``skyrl-gym``), which judge answers to questions that you bring.

One is made for each episode from a row of data in SkyRL's own format: ``prompt`` (messages),
``env_class``, and what that environment asks for, such as ``reward_spec.ground_truth``. Without
data it is given sums.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from isentrope import ConfigError, Task, TaskSet, TextEnv, UnknownNameError
from isentrope_peers._peer import explained, library

RANGES = {
    "gsm8k": (0.0, 1.0),
    # A wrong answer in the right form earns a part of 0.2, and the right one ends it with 1.
    "gsm8k_multi_turn": (0.0, 1.2),
    "aime": (-1.0, 1.0),
}
"""Bounds of the return of each environment that can be used."""
REFUSED = {
    "lcb": "it runs the code that the policy writes in its own process, unprotected",
    "search": "it needs a search server",
    "searchcode": "it needs a search server, and runs the policy's code unprotected",
    "text2sql": "it needs the data bases of its data sets, which do not come with it",
}
ASKING = {
    "gsm8k": ("#### ", 'output the final answer after "####".'),
    "gsm8k_multi_turn": ("#### ", 'output the final answer after "####".'),
    "aime": ("Answer: ", "end with a line of the form Answer: $Answer."),
}
"""How an answer begins that the environment can read, and how a question asks for that."""


class SkyRL(TextEnv):
    """An environment of skyrl-gym; a task is a row of your data.

    name: as in ``skyrl_gym.make``: gsm8k, gsm8k_multi_turn or aime. data: a file of rows for each
    split, ``{"train": "train.parquet", "test": "validation.jsonl"}``. None: additions of two
    numbers up to 99, put as that environment wants them.

    Reward and end of an episode are the environment's; a success is a last turn with reward 1.

    Raises `ConfigError` for an environment that cannot be used, and for data that are not there or
    lack what it needs.
    """

    def __init__(self, name: str, *, data: Mapping[str, str] | None = None) -> None:
        known = library("skyrl_gym", "skyrl").registry
        if name not in RANGES:
            if name in REFUSED and name in known:
                raise ConfigError(f"skyrl-gym's {name!r} cannot be used: {REFUSED[name]}.")
            raise UnknownNameError("Environment of skyrl-gym", name, RANGES)
        self._name = name
        self.reward_range = RANGES[name]  # type: ignore[misc]  # this one's own
        self.tasks = _sums(name) if data is None else _read(name, tuple(data.items()))
        self._env: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Put the question."""
        _, info = super().reset(seed=seed, options=options)
        self.close()
        self._env = _made(self._name, self.task.data["extras"])
        messages, _ = self._env.init(copy.deepcopy(self.task.data["prompt"]))
        return _text(messages), {**info, "messages": messages}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Hand it the turn."""
        answer = self._env.step(action)
        messages, reward = answer["observations"], float(answer["reward"])
        if not answer["done"]:
            return _text(messages), reward, False, False, {"messages": messages}
        numbers = {k: float(v) for k, v in self._env.get_metrics().items() if _is_number(v)}
        info = {"success": reward >= 1.0, "metrics": numbers}
        return _text(messages), reward, True, False, info

    def close(self) -> None:
        """Close the environment of the present episode."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str | None:
        """Give the answer; with probability `noise` ten times it."""
        if self._name == "gsm8k_multi_turn":
            return None  # it pays most for being wrong until the last turn
        beginning, _ = ASKING[self._name]
        return f"{beginning}{self._env.ground_truth}{'0' if rng.random() < noise else ''}"


@functools.cache  # an iteration makes many environments
def _sums(name: str) -> TaskSet:
    _, how = ASKING[name]
    key = "reward_model" if name == "aime" else "reward_spec"
    tasks = [
        Task(
            f"{a}+{b}",
            {
                "prompt": [{"role": "user", "content": f"What is {a} + {b}? Please {how}"}],
                "extras": {key: {"ground_truth": str(a + b)}, "extra_info": {}},
            },
        )
        for a in range(100)
        for b in range(a, 100)
    ]
    tasks.sort(key=lambda task: sha256(task.id.encode()).digest())
    return TaskSet({"train": tasks[1000:], "dev": tasks[:500], "test": tasks[500:1000]})


@functools.cache
def _read(name: str, data: tuple[tuple[str, str], ...]) -> TaskSet:
    """Read the rows of each split.

    Raises `ConfigError` where a file or something of a row is missing.
    """
    return TaskSet(
        {
            split: [
                Task(f"{split}-{i}", _row(name, row, f"{path}, row {i}"))
                for i, row in enumerate(_rows(Path(path)))
            ]
            for split, path in data
        }
    )


def _rows(path: Path) -> Iterable[Any]:
    if not path.is_file():
        raise ConfigError(f"There is no file {str(path)!r}.")
    if path.suffix == ".parquet":
        rows: list[Any] = library("pyarrow.parquet", "skyrl").read_table(path).to_pylist()
        return rows
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines, explained(str(path)):
            return [json.loads(line) for line in lines]
    raise ConfigError(f"{str(path)!r} must be a .parquet or a .jsonl file.")


def _row(name: str, row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), list):
        raise ConfigError(f"{where}: a row needs a prompt, which is a list of messages.")
    extras = {key: value for key, value in row.items() if key not in ("prompt", "env_class")}
    if (its_own := row.get("env_class", name)) != name:
        raise ConfigError(f"{where}: env_class is {its_own!r}, and the environment is {name!r}.")
    with explained(f"{name} of {where}"):
        _made(name, extras).close()  # that it has all that it asks for is known now
    return {"prompt": row["prompt"], "extras": extras}


def _made(name: str, extras: Mapping[str, Any]) -> Any:
    return library("skyrl_gym", "skyrl").make(name, extras=copy.deepcopy(dict(extras)))


def _text(messages: Iterable[Mapping[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))
