"""What an entropy controller steers towards, and by which measure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from attrs import field, fields, frozen

from isentrope.errors import ConfigError, UnknownNameError
from isentrope.parts import Controller, Estimator, Statistics
from isentrope.validation import is_real, one_of

Points = tuple[tuple[int, float], ...]


def _points(given: Any) -> Points:
    if is_real(given):
        return ((0, float(given)),)
    pairs: Any = sorted(given.items(), key=str) if isinstance(given, Mapping) else given
    wanted = f"A schedule must be a number, or pairs of iteration and number; got {given!r}."
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
        raise ConfigError(wanted)
    points = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not is_real(pair[1]):
            raise ConfigError(wanted)
        iteration = int(pair[0]) if isinstance(pair[0], str) and pair[0].isdecimal() else pair[0]
        if not isinstance(iteration, int) or isinstance(iteration, bool) or iteration < 0:
            raise ConfigError(wanted)
        points.append((iteration, float(pair[1])))
    if len({iteration for iteration, _ in points}) < len(points):
        raise ConfigError(f"A schedule must have one value for an iteration; got {given!r}.")
    return tuple(sorted(points))


@frozen
class Schedule:
    """A number that may change with the iteration: straight lines between points, flat outside.

    Raises `ConfigError` for what is neither a number nor pairs of iteration and number.
    """

    points: Points = field(converter=_points)
    """(iteration, value) in order; a plain number is the one point (0, number)."""

    @classmethod
    def read(cls, value: Any) -> Schedule:
        """Return a schedule from a number, pairs, a mapping, or a schedule."""
        return value if isinstance(value, cls) else cls(value)

    def plain(self) -> float | list[list[float]]:
        """Return what `read` takes: a number where it never changes."""
        constant = len(self.points) == 1 and self.points[0][0] == 0
        return self.points[0][1] if constant else [list(point) for point in self.points]

    def __call__(self, iteration: int) -> float:
        """Return the value at an iteration."""
        after = bisect_right(self.points, iteration, key=lambda point: point[0])
        if after == 0:
            return self.points[0][1]
        start, low = self.points[after - 1]
        if after == len(self.points):
            return low
        end, high = self.points[after]
        return low + (high - low) * (iteration - start) / (end - start)


def _optional(value: Any) -> Schedule | None:
    return None if value is None else Schedule.read(value)


@frozen(kw_only=True)
class EntropyTarget:
    """The entropy to hold: by default that of the first iteration.

    A plain number is one in nats; ``EntropyTarget(of_initial=0.8)`` is a fraction of the first
    iteration's; ``EntropyTarget(nats={0: 0.6, 200: 0.3})`` falls in a straight line.

    Raises `ConfigError` where both are given, or a target is negative.
    """

    of_initial: Schedule | None = field(default=None, converter=_optional)
    """As a multiple of the first iteration's; neither given: 1."""
    nats: Schedule | None = field(default=None, converter=_optional)
    """In nats per token."""
    estimator: Estimator = field(default="sampled", validator=one_of(get_args(Estimator)))
    """``"sampled"``: the mean of -log pi over the sampled tokens, which costs nothing (REPO's).
    ``"exact"``: the mean entropy of their full distributions, which has less noise."""

    def __attrs_post_init__(self) -> None:
        """Check what the fields mean together."""
        if self.of_initial is not None and self.nats is not None:
            raise ConfigError("EntropyTarget takes of_initial or nats, not both.")
        if any(value < 0 for _, value in self._schedule.points):
            raise ConfigError(f"A target entropy must not be negative; got {self._schedule}.")

    @classmethod
    def read(cls, value: Any) -> EntropyTarget:
        """Return a target from a schedule of nats, a table, a target, or None: the default."""
        if value is None:
            return cls()
        if not isinstance(value, Mapping) or (value and all(str(k).isdecimal() for k in value)):
            return value if isinstance(value, cls) else cls(nats=value)
        known = [a.name for a in fields(cls)]
        for key in value:
            if key not in known:
                raise UnknownNameError("Key", str(key), known)
        return cls(**value)

    @property
    def needs(self) -> frozenset[str]:
        """What must be measured for it; a controller's `needs` passes it on."""
        return frozenset({"entropy"} if self.estimator == "exact" else ())

    def __call__(self, statistics: Statistics) -> float:
        """Return the target in this iteration, nats per token."""
        value = self._schedule(statistics.iteration)
        if self.nats is not None:
            return value
        if self.estimator == "sampled":
            return value * statistics.initial_entropy
        return value * _measured(statistics.initial_exact_entropy)

    def missing(self, statistics: Statistics) -> float:
        """Return how much entropy is missing, nats per token; negative where there is too much."""
        if self.estimator == "sampled":
            return self(statistics) - statistics.entropy
        return self(statistics) - _measured(statistics.exact_entropy)

    @property
    def _schedule(self) -> Schedule:
        return self.nats or self.of_initial or Schedule(1.0)


def _target(value: Any) -> EntropyTarget:
    return EntropyTarget.read(value)


@frozen(kw_only=True)
class EntropyController(Controller):
    """A controller with a target; what is left to write is `moves` and `update`."""

    target: EntropyTarget = field(factory=EntropyTarget, converter=_target)
    """Entropy to hold; a number is nats per token. Default: the first iteration's."""

    @property
    def needs(self) -> frozenset[str]:
        """What the target's estimator needs."""
        return self.target.needs

    def target_entropy(self, statistics: Statistics) -> float:
        """Return the target in this iteration, nats per token."""
        return self.target(statistics)


def _measured(entropy: float | None) -> float:
    if entropy is None:
        raise ConfigError(
            "An exact entropy target needs the exact entropy measured: its controller must pass "
            "on the target's needs."
        )
    return entropy
