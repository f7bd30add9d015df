"""Errors that a user can cause, or can act upon.

Each is one sentence: what was wrong, what was expected, and the nearest right spelling. The command
line prints that sentence and no traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class IsentropeError(Exception):
    """Base of every error that Isentrope raises on purpose."""

    place = ""
    """Where in the configuration, such as ``"rollout.group"``; added on the way out."""
    rank: int | None = None
    """The only rank of several that met it; None: all of them did, or there is but one."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross process boundaries whole, whatever the constructor takes."""
        return type(self).__new__, (type(self), *self.args), vars(self)

    def __str__(self) -> str:
        sentence = str(self.args[0]) if self.args else ""  # KeyError's own __str__ would quote it
        sentence = f"{self.place}: {sentence}" if self.place else sentence
        return sentence if self.rank is None else f"On rank {self.rank}: {sentence}"


class ConfigError(IsentropeError, ValueError):
    """A configuration or a composition that cannot work."""


class UnknownNameError(ConfigError, KeyError):
    """A name (of a component, knob, key, task, split) that nothing answers to.

    `name` and `options` carry the data behind the sentence.
    """

    def __init__(self, what: str, name: str, options: Iterable[str], hint: str = "") -> None:
        self.name = name = str(name)
        self.options = tuple(dict.fromkeys(options))
        super().__init__(f"{what} {name!r} does not exist.{nearest(name, self.options)}{hint}")


class PluginError(IsentropeError):
    """A plugin that was asked for by name and cannot be used; the message carries the cause."""


class EnvironmentContractError(IsentropeError):
    """An environment broke its contract: a wrong type, no finite reward, a step too many."""


class GraderError(IsentropeError):
    """What judges an episode failed, and not what the policy acts in; raised by an environment."""


class EngineError(IsentropeError):
    """An engine could not complete a request, or answered with something impossible."""


class TrainingError(IsentropeError):
    """A run that cannot go on; everything written before stays."""


class OtherRankError(IsentropeError):
    """Another rank failed, and says why; this one only stops."""


@contextmanager
def within(key: str) -> Iterator[None]:
    """Say in an error that passes through where in the configuration it happened."""
    try:
        yield
    except IsentropeError as error:
        error.place = f"{key}.{error.place}" if error.place else key
        raise


def nearest_path(path: Path, cutoff: float = 0.6, among: str = "*") -> str:
    """Return ``" Did you mean 'x'?"`` where something like a path that does not exist is there.

    among: a glob; ``"*/"`` for folders alone.
    """
    if path.exists():
        return ""
    beside = sorted(other.name for other in path.absolute().parent.glob(among))
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=cutoff)
    return f" Did you mean {str(path.with_name(close[0]))!r}?" if close else ""


def nearest(name: str, options: Iterable[str], limit: int = 12) -> str:
    """Return ``" Did you mean 'x'?"`` where something is close, and what exists where it is not."""
    known = sorted(options)
    swapped = [option for option in known if sorted(option) == sorted(name)]
    close = swapped or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    if not known:
        return " There are none."
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return f" Known: {', '.join(known[:limit])}{more}."
