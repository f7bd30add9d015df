"""An attempt: one rollout of one task, as an evaluation keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, fields_dict, frozen

from isentrope.episodes import Episode, Message, Status, StopReason
from isentrope.runs import episode_record


@frozen
class Attempt:
    """One rollout of one task, as an evaluation keeps it: everything of its episode but tokens."""

    task: str
    rollout: int
    """0 .. k-1."""
    seed: int
    """The environment's, which is the same for all attempts at a task and for every policy."""
    reward: float
    success: bool
    judged: bool
    """False where the environment ended it and did not say whether that was a success."""
    status: Status = field(converter=Status)
    stop_reason: StopReason = field(converter=StopReason)
    turns: int
    tokens: int | None
    """That the policy sampled; None where its endpoint did not count them."""
    metrics: Mapping[str, float] = field(repr=False)
    messages: Sequence[Message] = field(repr=False)
    report: str = field(repr=False)
    """What the environment says of the end, for people."""
    error: str | None = field(repr=False)
    retried: int = 0
    """Requests to an endpoint that were made again."""

    @classmethod
    def of(cls, episode: Episode) -> Attempt:
        """Keep an episode."""
        return cls(**episode_record(episode))

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Attempt:
        """Read what was written of one; raises `KeyError` or `ValueError` where it is none."""
        names = fields_dict(cls).keys() - {"retried"}
        return cls(retried=record.get("retried", 0), **{name: record[name] for name in names})

    def record(self) -> dict[str, Any]:
        """Return what `read` makes the same attempt of."""
        said = {name: getattr(self, name) for name in fields_dict(type(self))}
        return said if self.retried else {k: v for k, v in said.items() if k != "retried"}

    @property
    def failed(self) -> bool:
        """Whether its environment, grader or engine failed: it is then neither right nor wrong."""
        return self.status is not Status.OK

    @property
    def truncated(self) -> bool:
        """Whether a limit ended it."""
        return self.stop_reason not in (StopReason.TERMINATED, StopReason.FAILED)
