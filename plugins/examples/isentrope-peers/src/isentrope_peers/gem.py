"""GEM's games (``gem-llm``).

GEM's own interface is Gymnasium's with text, so a game is `isentrope.GymText` with three things
seen to: its randomness, the line that asks for the next move (GEM's wrappers add it to the
observation), and what counts as winning. The conversation itself is the history that GEM's
``concat_chat`` wrapper would build.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from isentrope import ConfigError, GymText, UnknownNameError
from isentrope_peers._peer import SPLITS, Generators, explained, library, made


class Gem(GymText):
    """A game of GEM; a task is a seed of it.

    name: as in ``gem.make``: ``"game:Sudoku-v0-easy"``. splits: how many tasks each has. options:
    the game's own (``max_turns=5``).

    A game gives parts of its reward on the way; a turn that it cannot read ends it with -0.1. Won
    is what it congratulates for. Running out of the game's own turns ends it like any other move:
    the reward for how far it got counts.

    Raises `ConfigError` for what is no game, or cannot be made.
    """

    def __init__(self, name: str, *, splits: Mapping[str, int] = SPLITS, **options: Any) -> None:
        game = _Game(name, options)
        super().__init__(lambda: game, splits=splits, reward_range=(-0.1, 1.0))


class _Game(gymnasium.Env[str, str]):
    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        library("gem.envs", "gem")  # which fills the registry
        known = library("gem.envs.registration", "gem").ENV_REGISTRY
        _require_game(name, known)
        spec = known[name]
        self._generators = Generators()
        with self._generators.lent(0), explained(name):  # the constructor draws a first game
            module, _, cls = spec.entry_point.partition(":")
            make = getattr(library(module, "gem"), cls)
            self._game = made(name, make, {**spec.kwargs, **options})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        del options  # GymText hands over a seed alone
        with self._generators.lent(seed):
            observation, info = self._game.reset(seed=seed)
        return _asking(observation, info), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        with self._generators.lent():
            observation, reward, terminated, truncated, info = self._game.step(action)
        if not (terminated or truncated):
            return _asking(observation, info), float(reward), False, False, {}
        won = {"success": "Congratulations" in observation}
        # Out of its own turns it says both; it rewards how far it got, so that it is its end.
        return observation, float(reward), bool(terminated), not terminated, won


def _require_game(name: str, known: Mapping[str, Any]) -> None:
    if name.startswith("game:") and name in known:
        return
    kind, _, rest = name.partition(":")
    if kind == "rg" and name in known:
        raise ConfigError(
            f"{name!r} would draw its training and its test tasks from the same 500; use the "
            f"environment 'reasoning-gym' with dataset = {rest!r}."
        )
    if name in known:
        raise ConfigError(
            f"{name!r} draws its tasks from a data set on a hub, the same for training and for "
            "test; only GEM's games can be used: game:..."
        )
    raise UnknownNameError("Game of GEM", name, (n for n in known if n.startswith("game:")))


def _asking(observation: str, info: Mapping[str, Any]) -> str:
    return "\n".join(part for part in (observation.rstrip("\n"), info.get("suffix")) if part)
