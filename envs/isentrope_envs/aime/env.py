"""The environment: one problem, one answer, or a few attempts at it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from isentrope import ConfigError, GraderError, TextEnv, UnknownNameError
from isentrope_envs.aime import judge
from isentrope_envs.aime.data import SOURCES, load
from isentrope_envs.aime.filters import FILTERS
from isentrope_envs.aime.grading import Reason, grade
from isentrope_envs.aime.minerva import utilities
from isentrope_envs.aime.prompts import PROMPTS

_WRONG = {
    Reason.NO_ANSWER: "There was no answer in that.",
    Reason.UNFINISHED_THINKING: "There was no answer in that.",
    Reason.SEVERAL_VALUES: "The answer is a single integer.",
}


class Aime(TextEnv):
    """Solve an AIME problem: the right whole number earns 1 and is a success, all else earns 0.

    train, aime24, aime25: where the splits come from: the path of a ``.jsonl``, ``.json`` or
    ``.parquet`` file or of a folder, or the id of a data set of the hub. ``""`` leaves one out.

    prompt: how a problem is posed: ``"qwen3"`` (thinking off), ``"qwen3-thinking"``, ``"plain"`` or
    ``"minerva"``, which asks for the phrase that lm-eval reads.

    attempts: how many answers there may be; after a wrong one the policy is told so.

    filters: which problems are trained on, by the names of `FILTERS`.

    ``info["metrics"]``, at the end: ``minerva_exact``, lm-eval's own verdict on the last answer;
    ``attempts``; and for each `Reason`, whether it was the last one's. `manifest` says how the
    splits came to be.
    """

    def __init__(
        self,
        train: str = SOURCES["train"],
        aime24: str = SOURCES["aime24"],
        aime25: str = SOURCES["aime25"],
        prompt: str = "qwen3",
        attempts: int = 1,
        filters: Iterable[str] = tuple(FILTERS),
    ) -> None:
        if prompt not in PROMPTS:
            raise UnknownNameError("Prompt", prompt, PROMPTS)
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise ConfigError(f"attempts must be a whole number, at least 1; got {attempts!r}.")
        try:
            utilities()
        except GraderError as error:
            raise ConfigError(str(error)) from error
        corpus = load(train, aime24, aime25, tuple(filters))
        self.tasks, self.manifest = corpus.tasks, corpus.manifest
        self._prompt = PROMPTS[prompt]
        self._attempts = attempts

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Pose a problem."""
        _, info = super().reset(seed=seed, options=options)
        self._made = 0
        return self._prompt.pose(self.task.data["problem"]), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Grade an answer; the episode ends if it is right, or was the last attempt.

        Raises `GraderError` where no verdict is to be had, which is never the answer's doing.
        """
        answer = str(self.task.data["answer"])
        verdict = grade(action, answer, thinking=self._prompt.thinking)
        self._made += 1
        left = self._attempts - self._made
        if not verdict.correct and left > 0:
            said = _WRONG.get(verdict.reason, "That is not the answer.")
            return f"{said} Attempts left: {left}.", 0.0, False, False, {}
        metrics = {
            "minerva_exact": float(verdict.minerva_exact),
            "attempts": float(self._made),
            **{reason.value: float(reason is verdict.reason) for reason in Reason},
        }
        report = f"{verdict.reason}: {verdict.extracted!r} for {answer}"
        info = {"success": verdict.correct, "metrics": metrics, "report": report}
        return "", float(verdict.correct), True, False, info

    def close(self) -> None:
        """End the processes that judge."""
        judge.close()
        super().close()
