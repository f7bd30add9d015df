"""reasoning-gym's data sets: one question, one answer, scored by the data set itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from isentrope import GraderError, TaskSet, TextEnv, UnknownNameError
from isentrope_peers._peer import SPLITS, Generators, check_options, explained, library, numbered


class ReasoningGym(TextEnv):
    """A data set of reasoning-gym; a task is one of its items.

    dataset: as in ``reasoning_gym.create_dataset``. splits: how many tasks each has; items are
    numbered through, so that no two splits share one. seed: where the data set begins: item i of
    seed s is item i + 1 of seed s - 1. system_prompt: the name of one of reasoning-gym's, all of
    which ask for the answer in ``<answer>`` tags. settings: the data set's own
    (``min_animals=2``).

    The reward is what the data set's `score_answer` says of the last ``<answer>``; the full score
    is a success.

    Raises `ConfigError` for a data set, a prompt or a setting that does not exist or cannot be.
    """

    def __init__(
        self,
        dataset: str,
        *,
        splits: Mapping[str, int] = SPLITS,
        seed: int = 0,
        system_prompt: str = "default",
        **settings: Any,
    ) -> None:
        gym = library("reasoning_gym", "reasoning-gym")
        self._extract = gym.utils.extract_answer
        if dataset not in gym.factory.DATASETS:
            raise UnknownNameError("Data set of reasoning-gym", dataset, gym.factory.DATASETS)
        if system_prompt not in gym.utils.SYSTEM_PROMPTS:
            prompts = gym.utils.SYSTEM_PROMPTS
            raise UnknownNameError("System prompt of reasoning-gym", system_prompt, prompts)
        self._system = gym.utils.SYSTEM_PROMPTS[system_prompt].strip()
        _, config = gym.factory.DATASETS[dataset]
        known = (f.name for f in fields(config) if f.name != "size")
        check_options(dataset, settings, known, " How many tasks there are is for splits to say.")
        self.tasks = TaskSet(numbered(splits))
        self._generators = Generators()
        with self._generators.lent(0), explained(dataset):
            if "datasets" in settings:  # composite's; a config file cannot hold its class
                settings["datasets"] = [
                    gym.composite.DatasetSpec(**part) for part in settings["datasets"]
                ]
            size = sum(splits.values())
            self._dataset = gym.create_dataset(dataset, seed=seed, size=size, **settings)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Ask the question."""
        _, info = super().reset(seed=seed, options=options)
        number = self.task.data["number"]
        with self._generators.lent(number):
            self._entry = self._dataset[number]
        question = self._entry["question"]
        system = {"role": "system", "content": self._system}
        return question, {**info, "messages": [system, {"role": "user", "content": question}]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score the answer."""
        answer = self._extract(action)
        try:
            with self._generators.lent():
                reward = float(self._dataset.score_answer(answer, self._entry))
        except Exception as error:
            source = self._entry["metadata"].get("source_dataset", "the data set")
            raise GraderError(f"{source} cannot score {answer!r}: {error!r}") from error
        return "", reward, True, False, {"success": reward >= 1.0}

    def demonstrate(self, rng: np.random.Generator, noise: float = 0.0) -> str | None:
        """Give the data set's own answer; with probability `noise` one that is empty."""
        answer = self._entry["answer"]
        if answer is None:
            return None
        return f"<answer>{'' if rng.random() < noise else answer}</answer>"
