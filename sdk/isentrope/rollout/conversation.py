"""What an episode is to its policy: a conversation, be it of tokens or of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from isentrope.episodes import Message, Segment, StopReason, Usage


@frozen
class Said:
    """A turn of the policy."""

    text: str | None
    """None where it could not speak at all: what it was told leaves no room."""
    cut: StopReason | None = None
    """The limit that cut it off, if one did; the environment then never hears it."""


class Conversation(Protocol):
    """The policy's side of one episode, whose opening it has been told."""

    @property
    def full(self) -> bool:
        """Whether no turn fits any more, as far as that is known before the policy is asked."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What is known of tokens where there are no segments."""
        ...

    async def speak(self) -> Said:
        """Have the policy take its next turn.

        Raises `EngineError` where this one fails, and any other `IsentropeError` where all would.
        """
        ...

    def hear(self, messages: Sequence[Message]) -> None:
        """Tell the policy what the environment answers."""
        ...

    def segments(self) -> tuple[Segment, ...]:
        """Return the tokens so far; none of a policy that is reached by text alone."""
        ...
