"""What a rollout leaves behind: an `Episode` of token `Segment`s, rewards and a reason to stop.

Shape legend: N tokens of a segment, prompt and environment tokens included.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, TypedDict

import numpy as np
from attrs import cmp_using, field, frozen
from numpy.typing import ArrayLike, NDArray

Role = Literal["system", "user", "assistant", "tool"]
TEXT_ONLY = "text only: through an endpoint; not token-faithful"
"""How everything is marked that was measured so."""


class Message(TypedDict):
    """One chat message."""

    role: Role
    content: str


class Status(StrEnum):
    """Whether an episode may be learnt from. A failure is data of its own, never reward 0."""

    OK = "ok"
    ENV_ERROR = "env_error"
    """It raised, or broke its contract."""
    TIMEOUT = "timeout"
    """A call did not come back within its deadline, or used up its processor time."""
    CRASHED = "crashed"
    """Its process ended."""
    OUT_OF_MEMORY = "out_of_memory"
    GRADER_ERROR = "grader_error"
    """It raised `GraderError`: what judges the policy failed, not what it acts in."""
    ENGINE_ERROR = "engine_error"
    CANCELLED = "cancelled"
    """A straggler, when enough episodes were done; no failure."""


class StopReason(StrEnum):
    """Why an episode ended."""

    TERMINATED = "terminated"
    """The environment reached its own end."""
    TRUNCATED = "truncated"
    """The environment cut the episode off by a limit of its own."""
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    """A turn was cut off at the sampling limit; the environment never saw it."""
    CONTEXT = "context"
    """The next turn would not fit into the policy's context."""
    MAX_SECONDS = "max_seconds"
    """The episode took longer than the run allows."""
    FAILED = "failed"
    """It is not ``ok``; `Episode.status` and `Episode.error` say how."""


def _integers(values: ArrayLike) -> NDArray[np.int64]:
    return np.asarray(values, np.int64)


def _flags(values: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(values, np.bool_)


def _reals(values: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


_same = cmp_using(np.array_equal)


@frozen
class Segment:
    """Tokens that the policy saw as one context, in order, never re-tokenised.

    An episode is one segment unless its chat template rewrites history (see `TokenLedger`).
    """

    ids: NDArray[np.int64] = field(converter=_integers, eq=_same, repr=False)
    """[N] token ids."""
    sampled: NDArray[np.bool_] = field(converter=_flags, eq=_same, repr=False)
    """[N] True for tokens that the policy sampled; only these are trained on."""
    logp: NDArray[np.float32] = field(converter=_reals, eq=_same, repr=False)
    """[N] the engine's own log-probability of each sampled token, nats; 0 elsewhere."""
    turn: NDArray[np.int64] = field(converter=_integers, eq=_same, repr=False)
    """[N] index of the assistant's turn that the token belongs to, or that it leads to."""
    version: NDArray[np.int64] = field(converter=_integers, eq=_same, repr=False)
    """[N] policy version that sampled each token; -1 elsewhere."""

    def __attrs_post_init__(self) -> None:
        """Check that something comes before the first sampled token: nothing predicts it else."""
        if self.sampled[:1].any():
            raise ValueError("The first token of a segment cannot be a sampled one.")


@frozen
class Usage:
    """What an endpoint says that an episode took: text alone is seen of it, and no token."""

    tokens: int | None
    """That the policy sampled, by the endpoint's own count; None where it did not count a turn."""
    retried: int
    """Requests that were made again."""


@frozen
class Episode:
    """One rollout of one task."""

    task: str
    seed: int
    """Environment seed; every rollout of a group has the same."""
    rollout: int
    """Index in the group, 0 .. G-1."""
    segments: tuple[Segment, ...]
    messages: tuple[Message, ...]
    """The conversation as text, for people; learning reads `segments`."""
    rewards: tuple[float, ...]
    """One per environment step."""
    success: bool
    """As the environment said at the end; apart from reward, since a part is not the whole."""
    stop_reason: StopReason
    penalty: float = 0.0
    """Brings the return of an episode that a limit of the run cut off down to the environment's
    lowest: not to finish is to fail, and running on must never pay."""
    status: Status = Status.OK
    error: str | None = None
    """Traceback or message of a failure."""
    metrics: Mapping[str, float] = field(factory=dict)
    """The environment's own numbers at the end (reward parts, ...)."""
    report: str = ""
    """What the environment says of the end, for people: which tests failed, and how."""
    judged: bool = True
    """False where the environment ended the episode and left out whether that was a success."""
    usage: Usage | None = None
    """Of a policy behind an endpoint, whose episodes have no segments."""

    @property
    def reward(self) -> float:
        """The return: undiscounted sum of step rewards, and the penalty."""
        return float(sum(self.rewards)) + self.penalty

    @property
    def truncated(self) -> bool:
        """Whether a limit, and not the environment's own end, stopped the episode."""
        return self.stop_reason not in (StopReason.TERMINATED, StopReason.FAILED)

    @property
    def sampled_tokens(self) -> int:
        """How many tokens the policy sampled."""
        return sum(int(s.sampled.sum()) for s in self.segments)

    @property
    def turns(self) -> int:
        """How many turns the environment has answered."""
        return len(self.rewards)
