"""Trackers: what shows a run elsewhere while it trains. They observe; nothing depends on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

Number = float | int
"""NaN and the infinities among them."""


@frozen(kw_only=True)
class TrackedRun:
    """What a tracker learns of a run when it starts."""

    name: str
    """Of the run folder."""
    folder: Path
    """One of the tracker's own in the run folder. What it keeps there is there when the run goes
    on: the id that a server gave, say."""
    config: Mapping[str, Any] = field(repr=False)
    """The run's whole configuration as plain data: tables, lists, numbers, strings."""
    iteration: int
    """The first that it will be told of; above 0 where the run goes on, or was without it."""

    @property
    def flat_config(self) -> dict[str, str | Number]:
        """The configuration by dotted paths, ``"rollout.tasks"``, without what is None or empty."""
        return dict(_flatten("", self.config))


def _flatten(path: str, value: Any) -> Iterator[tuple[str, str | Number]]:
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)  # type: ignore[assignment]  # numbers for keys
    else:
        if value is not None:
            yield path, value
        return
    for key, item in inner:
        yield from _flatten(f"{path}.{key}" if path else str(key), item)


class Tracker(Protocol):
    """What shows one run. It lives in a process of its own, and may take its time there.

    Whatever it raises is the end of it, and never of the run, which warns of it once.
    """

    def log(self, iteration: int, metrics: Mapping[str, Number]) -> None:
        """Take an iteration's numbers, under the names that ``metrics.jsonl`` has.

        Without those that are None, which there was nothing to measure of, and without sentences.
        Iterations come in order; if the run ``rewinds`` it, from an earlier one on again.
        """
        ...

    def close(self, failed: bool) -> None:
        """Finish. failed: the run ended by an error, or was killed."""
        ...


class TrackerConfig(Protocol):
    """A frozen attrs config that starts its tracker: what a ``tracker`` entry point names.

    Its fields are plain data: numbers, strings, lists, tables, or None. It may also have:

    - ``rewinds = True``, a class attribute: its tracker forgets all from `TrackedRun.iteration` on
      when it starts. A run that was killed goes on from its last checkpoint, before iterations that
      its trackers know already. One that rewinds is told of them again; any other is not, and keeps
      what it was told first.
    - ``check()``: called before the run loads anything, in its own process. Raises `ConfigError`
      where the tracker cannot work, for the want of a package, say.
    """

    def start(self, run: TrackedRun) -> Tracker:
        """Begin to show a run, or go on with it."""
        ...
