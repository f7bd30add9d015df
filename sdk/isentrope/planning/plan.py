"""What a plan says."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from isentrope.config import TrainConfig


@frozen
class PlannedPart:
    """One component of a run."""

    slot: str
    """What it is in the configuration: ``"env"``, ``"objective"``, ``"repo_r"``."""
    id: str
    origin: str
    """The distribution that brings it, or the path of a class that none brings."""


@frozen
class PlannedModel:
    """The model's shape, from its config."""

    name: str
    """Of its class."""
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    positions: int
    parameters: int
    trainable: int
    """Parameters that are trained: all, or those of adapters."""


@frozen
class MemoryRow:
    """What one thing takes of a rank's memory, bytes, at each of three moments."""

    name: str
    starting: int = 0
    """While the model is loaded, before it is sharded."""
    collecting: int = 0
    """While episodes are sampled."""
    learning: int = 0
    """At the peak of the largest micro-batch."""


@frozen
class PlannedMemory:
    """What a run takes of the memory of its first rank, which has most."""

    rows: tuple[MemoryRow, ...]
    ranks: int
    device: str
    """``"cpu"`` or ``"cuda"``."""
    limit: int | None
    """Bytes that the rank's device has, if that is known."""

    @property
    def total(self) -> MemoryRow:
        """All rows together."""
        return MemoryRow(
            "together",
            *(
                sum(getattr(row, moment) for row in self.rows)
                for moment in ("starting", "collecting", "learning")
            ),
        )


@frozen
class PlannedIteration:
    """What an iteration is, at most."""

    episodes: int
    context: int
    """Tokens of an episode."""
    sampled: int
    """Tokens that the policy samples in all episodes."""
    steps: int
    """Optimizer steps."""


@frozen
class Plan:
    """What a run would be. ``str(plan)`` is what ``isentrope train --dry-run`` prints."""

    config: TrainConfig = field(repr=False)
    parts: tuple[PlannedPart, ...]
    tasks: Mapping[str, int] | None
    """Tasks by split; None where the environment cannot be asked."""
    model: PlannedModel | None
    memory: PlannedMemory | None
    iteration: PlannedIteration | None
    missing: tuple[str, ...]
    """Sentences: what is not on this machine that the run needs."""
    problems: tuple[str, ...]
    """Sentences: why the run cannot be, wherever it is started."""
    notes: tuple[str, ...]
    """Sentences: what this plan does not know, or leaves to others."""

    @property
    def ready(self) -> bool:
        """Whether the run could start here."""
        return not self.missing and not self.problems

    def __str__(self) -> str:
        """Return a page of text."""
        from isentrope.planning.page import page

        return "\n".join(page(self))
