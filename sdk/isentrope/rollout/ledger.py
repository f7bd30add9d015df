"""The token ledger: every id of an episode, in order, written once."""

from __future__ import annotations

from collections.abc import Sequence

from isentrope.engines import Completion
from isentrope.episodes import Message, Segment
from isentrope.rollout.chat import ChatTemplate


class TokenLedger:
    """Append-only record of what the policy was told and what it sampled.

    What was sampled is never decoded and encoded again: `ids` is exactly the concatenation of what
    was sent to the engine and what came back. An environment's turn is the chat template's own
    delta, appended; earlier turns stay as they were sampled whatever the template would do to them.
    """

    def __init__(self, template: ChatTemplate, messages: Sequence[Message]) -> None:
        self._template = template
        self.ids: list[int] = []
        """Everything so far: the next prompt."""
        self._sampled: list[bool] = []
        self._logp: list[float] = []
        self._turn: list[int] = []
        self._version: list[int] = []
        self._turns = 0
        self._append(template.opening(messages))

    def policy_said(self, completion: Completion) -> str:
        """Append a sampled turn; return it as text."""
        n = len(completion.ids)
        self.ids += completion.ids
        self._sampled += [True] * n
        self._logp += completion.logp
        self._turn += [self._turns] * n
        self._version += [completion.version] * n
        self._turns += 1
        return self._template.text(completion.ids)

    def environment_said(self, messages: Sequence[Message]) -> None:
        """Append an environment's turn, up to where the assistant speaks again."""
        self._append(self._template.reply(messages, self.ids[-1]))

    def segments(self) -> tuple[Segment, ...]:
        """Return the record."""
        return (Segment(self.ids, self._sampled, self._logp, self._turn, self._version),)

    def _append(self, ids: Sequence[int]) -> None:
        n = len(ids)
        self.ids += ids
        self._sampled += [False] * n
        self._logp += [0.0] * n
        self._turn += [self._turns] * n
        self._version += [-1] * n
