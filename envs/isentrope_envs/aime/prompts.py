"""Prompts: how a problem is posed, and where its answer may stand."""

from __future__ import annotations

from attrs import frozen

_BOX = (
    "Please reason step by step, and put your final answer within \\boxed{}. The answer is an "
    "integer between 0 and 999 inclusive."
)
_PHRASE = (
    'Please reason step by step, and end with "Final Answer: The final answer is $ANSWER$. I hope '
    'it is correct." The answer is an integer between 0 and 999 inclusive.'
)


@frozen
class Prompt:
    """One way to pose a problem."""

    form: str
    """The user's message; ``{problem}`` stands for the problem."""
    thinking: bool | None = None
    """As `grade` takes it."""

    def pose(self, problem: str) -> str:
        """Return the user's message."""
        return self.form.replace("{problem}", problem)


PROMPTS: dict[str, Prompt] = {
    "qwen3": Prompt(f"{{problem}}\n\n{_BOX} /no_think"),
    "qwen3-thinking": Prompt(f"{{problem}}\n\n{_BOX}", thinking=True),
    "plain": Prompt(f"{{problem}}\n\n{_BOX}"),
    "minerva": Prompt(f"Problem:\n{{problem}}\n\n{_PHRASE}\n\nSolution:"),
}
"""By name. ``/no_think`` is the switch that Qwen3's models were trained to obey."""
