"""`Diagnosis`: what a check yields."""

from __future__ import annotations

from typing import Literal, get_args

from attrs import field, frozen, validators

from isentrope.errors import ConfigError
from isentrope.validation import one_of

State = Literal["ok", "absent", "broken"]


@frozen
class Diagnosis:
    """One thing that was looked at.

    Raises `ConfigError` where what is not ok has no fix.
    """

    name: str = field(validator=validators.instance_of(str))
    state: State = field(validator=one_of(get_args(State)))
    """``"absent"`` for what may be missing: an engine that is not installed, no GPU."""
    message: str = field(validator=validators.instance_of(str))
    """What was found."""
    fix: str = field(default="", validator=validators.instance_of(str))
    """What to do about it, a command if there is one; needed unless it is ok."""

    def __attrs_post_init__(self) -> None:
        """Check that the next question is answered."""
        if self.state != "ok" and not self.fix:
            raise ConfigError(f"Diagnosis.fix is missing: {self.name} is {self.state}.")
