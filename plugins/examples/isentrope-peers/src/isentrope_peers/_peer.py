"""What bringing in a library asks for, whichever it is."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from isentrope import ConfigError, Task, UnknownNameError

SPLITS: Mapping[str, int] = {"train": 1000, "dev": 100, "test": 100}
"""How many tasks each split has."""


def library(module: str, extra: str) -> Any:
    """Import a module of a library.

    Raises `ConfigError` that says what to install where the library is not there.
    """
    name, _, _ = module.partition(".")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and lacks something itself
            raise
        raise ConfigError(
            f"{name} is not installed: pip install 'isentrope-peers[{extra}]'."
        ) from error


def made(name: str, cls: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Return ``cls(**options)``; some libraries swallow options that they do not know.

    Raises `UnknownNameError` or `ConfigError`.
    """
    parameters = inspect.signature(cls).parameters.values()
    check_options(name, options, (p.name for p in parameters if p.kind is not p.VAR_KEYWORD))
    with explained(name):
        return cls(**options)


def check_options(name: str, options: Iterable[str], known: Iterable[str], hint: str = "") -> None:
    """Raise `UnknownNameError` where an option is none of the known."""
    names = tuple(known)
    for option in options:
        if option not in names:
            raise UnknownNameError(f"Option of {name!r}:", option, names, hint)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what a library raises as it makes something into one sentence (`ConfigError`)."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        if type(error) is LookupError:  # nltk's, twenty lines long
            words = "words averaged_perceptron_tagger_eng"
            reason = f"NLTK's words are not there; run: python -m nltk.downloader {words}"
        raise ConfigError(f"{name!r} cannot be made: {reason}.") from error


def numbered(splits: Mapping[str, int]) -> dict[str, list[Task]]:
    """Return as many tasks as each split is to have, each with a number of its own, from 0.

    Raises `ConfigError` where a split would have none.
    """
    tasks: dict[str, list[Task]] = {}
    first = 0
    for split, count in splits.items():
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"splits.{split} must be a whole number, at least 1; got {count!r}.")
        tasks[split] = [Task(f"{split}-{i}", {"number": first + i}) for i in range(count)]
        first += count
    return tasks


class Generators:
    """The process's random generators as one game knows them.

    These libraries draw from `random` and `numpy.random` themselves. A game's generators are put in
    place for each of its calls, and the process's own afterwards: games that take turns do not
    disturb each other, nor anything else.
    """

    def __init__(self) -> None:
        self._states: tuple[Any, Any] | None = None

    @contextmanager
    def lent(self, seed: int | None = None) -> Iterator[None]:
        """Put the game's generators in place, seeded anew where a seed is given."""
        others = _states()
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        elif self._states is not None:
            _set_states(self._states)
        try:
            yield
        finally:
            self._states = _states()
            _set_states(others)


def _states() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _set_states(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
