"""The token ledger: every id of an episode, in order, written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from isentrope.engines import Completion
from isentrope.episodes import Message, Segment
from isentrope.rollout.chat import ChatTemplate


class TokenLedger:
    """Append-only record of what the policy was told and what it sampled.

    What was sampled is never decoded and encoded again: ``ids`` is exactly the concatenation of
    what was sent to the engine and what came back. By default an environment's turn is the chat
    template's own delta, appended; earlier turns stay as they were sampled whatever the template
    would do to them.

    history: ``"template"`` has the template write the whole conversation anew before each turn, as
    chat servers do. Where that does not begin with what the policy saw and sampled (thinking was
    dropped, or text is tokenized in another way than it was sampled), a new segment begins.
    """

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        history: Literal["append", "template"] = "append",
    ) -> None:
        self._template = template
        self._anew = history == "template"
        self._messages = list(messages)
        self._closed: list[Segment] = []
        self._turns = 0
        self._begin(template.opening(messages))

    def policy_said(self, completion: Completion) -> str:
        """Append a sampled turn; return it as text."""
        n = len(completion.ids)
        self.ids += completion.ids
        self._sampled += [True] * n
        self._logp += completion.logp
        self._turn += [self._turns] * n
        self._version += [completion.version] * n
        self._turns += 1
        text = self._template.text(completion.ids)
        self._messages.append({"role": "assistant", "content": text})
        return text

    def environment_said(self, messages: Sequence[Message]) -> None:
        """Append an environment's turn, up to where the assistant speaks again."""
        self._messages += messages
        if not self._anew:
            self._append(self._template.reply(messages, self.ids[-1]))
            return
        ids = self._template.opening(self._messages)
        seen = len(self.ids)
        if ids[:seen] == self.ids:
            self._append(ids[seen:])
        else:
            self._closed.append(self._segment())
            self._begin(ids)

    def segments(self) -> tuple[Segment, ...]:
        """Return the record; a last segment in which nothing was sampled is left out."""
        if self._closed and not any(self._sampled):
            return tuple(self._closed)
        return (*self._closed, self._segment())

    def _begin(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        """All of the present segment so far: the next prompt."""
        self._sampled: list[bool] = []
        self._logp: list[float] = []
        self._turn: list[int] = []
        self._version: list[int] = []
        self._append(ids)

    def _segment(self) -> Segment:
        return Segment(self.ids, self._sampled, self._logp, self._turn, self._version)

    def _append(self, ids: Sequence[int]) -> None:
        n = len(ids)
        self.ids += ids
        self._sampled += [False] * n
        self._logp += [0.0] * n
        self._turn += [self._turns] * n
        self._version += [-1] * n
