"""What a policy is told: a preset is a prompt, which code blocks are run, and what is said again.

The words are ours. ``appworld`` follows AppWorld's own ReAct agent, which runs the first block of a
turn; ``loop`` follows LOOP's (Chen et al. 2025), which runs them all and repeats the task after
each output; ``short`` is the task alone, for models too small to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from isentrope import ALL_BLOCKS, FIRST_BLOCK, CodeBlocks, ConfigError

RULES = """\
You are {first_name} {last_name}'s assistant (e-mail {email}, phone {phone_number}). It is {date}. \
You act by writing Python, which runs in a notebook: variables stay from turn to turn, and you see \
what your code prints.

The apps are at hand as `apis.APP.API(...)`: keyword arguments in, JSON out. Nothing else reaches \
them: no web, no files of the machine, no shell.

- Find out which APIs there are: `print(apis.api_docs.show_app_descriptions())`, \
`print(apis.api_docs.show_api_descriptions(app_name=...))`, and before the first use of one \
`print(apis.api_docs.show_api_doc(app_name=..., api_name=...))`.
- `apis.supervisor` knows {first_name}: profile, addresses, cards, and passwords of accounts. Most \
apps want an `access_token`, which their `login` returns.
- Lists come in pages: go on until a page is empty.
- Words such as "my files" or "my friends" mean {first_name}'s own, as the apps know them: never \
guess an address or a number that an app can tell you.
- Take small steps: print what you need to see, and read it before you go on.
- When all is done, call `apis.supervisor.complete_task()`; where the task asks for something, \
`complete_task(answer=...)`, with nothing but the answer. It ends everything.

Write one block of code a turn, between ```python and ```.
"""
EXAMPLE = (
    ("user", "Task: How many alarms do I have on my phone?"),
    (
        "assistant",
        "I look up which API lists alarms.\n```python\nprint(apis.api_docs.show_api_descriptions("
        "app_name='phone'))\n```",
    ),
    ("user", "Output:\n```\n(a list, in which there is show_alarms)\n```"),
    (
        "assistant",
        "It will want a token, so I log in first.\n```python\nme = apis.supervisor.show_profile()\n"
        "passwords = {p['account_name']: p['password'] for p in "
        "apis.supervisor.show_account_passwords()}\ntoken = apis.phone.login("
        "username=me['phone_number'], password=passwords['phone'])['access_token']\nalarms, page "
        "= [], 0\nwhile found := apis.phone.show_alarms(access_token=token, page_index=page):\n"
        "    alarms += found\n    page += 1\nprint(len(alarms))\n```",
    ),
    ("user", "Output:\n```\n4\n```"),
    (
        "assistant",
        "There are 4.\n```python\napis.supervisor.complete_task(answer=4)\n```",
    ),
)
REMINDER = "\n\nThe task, once more: {instruction}"


@frozen
class Preset:
    """How a policy is spoken to, and heard."""

    blocks: CodeBlocks
    rules: str = ""
    """The system's message; empty: none, and no example."""
    reminder: str = ""
    """What is added to every output."""
    turns: int | None = None
    """How many there are, after which what was done is judged; None: the run's limits are all."""

    def opening(self, task: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return the first messages. task: instruction, date, and the supervisor's four fields."""
        if not self.rules:
            return [{"role": "user", "content": str(task["instruction"])}]
        example = [{"role": role, "content": content} for role, content in EXAMPLE]
        asked = f"That was an example. Now your own.\n\nTask: {task['instruction']}"
        return [
            {"role": "system", "content": self.rules.format(**task)},
            *example,
            {"role": "user", "content": asked},
        ]

    def answer(self, output: str, task: Mapping[str, Any]) -> str:
        """Return what a policy is told after a turn."""
        if not self.rules:
            return output
        return f"Output:\n```\n{output}\n```{self.reminder.format(**task)}"


PRESETS: dict[str, Preset] = {
    "appworld": Preset(FIRST_BLOCK, RULES),
    "loop": Preset(ALL_BLOCKS, RULES, REMINDER, turns=40),
    "short": Preset(ALL_BLOCKS),
}


def preset(name: str) -> Preset:
    """Return a preset; raises `ConfigError` for a name that there is not."""
    try:
        return PRESETS[name]
    except (KeyError, TypeError):
        raise ConfigError(f"preset must be one of {list(PRESETS)}; got {name!r}.") from None


def capped(output: str, limit: int) -> str:
    """Cut an output that is too long at the end of a line, and say so.

    limit: characters; at about four to a token.
    """
    if len(output) <= limit:
        return output
    kept = output[:limit]
    kept = kept[: kept.rfind("\n") + 1] or kept
    return f"{kept}[... {len(output) - len(kept):,} more characters were cut off ...]"
