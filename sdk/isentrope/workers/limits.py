"""What an environment in a worker may use before it is stopped."""

from __future__ import annotations

from typing import get_args

from attrs import field, frozen, validators

from isentrope.specs import Isolation
from isentrope.validation import one_of, real, whole


@frozen(kw_only=True)
class WorkerConfig:
    """Processes for environments that do not run in the run's own."""

    isolation: Isolation | None = field(
        default=None, validator=validators.optional(one_of(get_args(Isolation)))
    )
    """Where environments run; None: where they declare."""
    count: int = field(default=16, validator=whole(1))
    """How many at most; as many episodes run at a time."""
    ray: str | None = field(
        default=None, validator=validators.optional(validators.instance_of(str))
    )
    """Address of a Ray cluster whose machines they run on: ``"auto"``, ``"host:port"``, or
    ``"local"`` for one of its own here. None: this machine, without Ray."""
    start_deadline: float = field(default=120.0, validator=real(above=0))
    """Seconds of wall time to import and construct an environment."""
    deadline: float = field(default=30.0, validator=real(above=0))
    """Seconds of wall time for a reset or a step; then it is killed with all that it started."""
    memory_gib: float = field(default=4.0, validator=real(above=0))
    """For each process."""
    cpu_seconds: float = field(default=600.0, validator=real(above=0))
    """Processor time of an episode."""
    processes: int = field(default=64, validator=whole(1))
    """Processes and threads that one may have."""
