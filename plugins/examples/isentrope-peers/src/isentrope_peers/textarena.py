"""TextArena's games for one player (``textarena``).

TextArena hands out messages: the prompt, what the game says, its board, and what players said. A
turn's observation is the messages since the last, worded as its ``LLMObservationWrapper`` words
them, without the policy's own words, which the conversation holds already. Its wrappers for actions
(brackets around a bare move) are kept; those for observations would repeat the conversation in
every turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from isentrope import ConfigError, GymText, UnknownNameError
from isentrope_peers._peer import SPLITS, Generators, explained, library, made

RANGES = {"Klondike": (-1.0, 52.0), "Set": (-1.0, 20.0)}
"""Games whose reward is a count; -1 is TextArena's own for a move that is none. Others: -1 to 1."""


class TextArena(GymText):
    """A game of TextArena for one player; a task is a seed of it.

    name: as in ``textarena.make``: ``"Sudoku-v0-easy"``. splits: how many tasks each has. options:
    the game's own (``max_turns=5``).

    The reward comes at the end. Won is the highest there is (1; 20 sets, 52 cards); the game's own
    limit of turns ends it, and what it gives for how far it got counts.
    ``info["metrics"]["invalid_move"]`` says whether it ended at a move that is none.

    Raises `ConfigError` for a game of several players, or one that cannot be made.
    """

    def __init__(self, name: str, *, splits: Mapping[str, int] = SPLITS, **options: Any) -> None:
        game = _Game(name, options)
        ends = RANGES.get(name.partition("-v")[0], (-1.0, 1.0))
        super().__init__(lambda: game, splits=splits, reward_range=ends)


class _Game(gymnasium.Env[str, str]):
    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        arena = library("textarena", "textarena")
        known = arena.envs.registration.ENV_REGISTRY
        if name not in known:
            raise UnknownNameError("Game of TextArena", name, known)
        spec = known[name]
        self._players_words = arena.ObservationType.PLAYER_ACTION
        self._generators = Generators()
        with self._generators.lent(0), explained(name):
            module, _, cls = spec.entry_point.partition(":")
            make = getattr(library(module, "textarena"), cls)
            if not plays_alone(make):
                raise ConfigError(
                    f"{name!r} has several players, and the policy plays alone; choose a game "
                    "for one, such as 'GuessTheNumber-v0'."
                )
            self._bare = made(name, make, {**spec.kwargs, **options})
            self._game = self._bare
            for wrapper in spec.default_wrappers or ():
                if issubclass(wrapper, arena.ActionWrapper):
                    self._game = wrapper(self._game)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        del options  # GymText hands over a seed alone
        with self._generators.lent(seed):
            self._game.reset(num_players=1, seed=seed)
        return self._news(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        with self._generators.lent():
            done, _ = self._game.step(action)
        if not done:
            return self._news(), 0.0, False, False, {}
        rewards, about = self._game.close()
        metrics = {"invalid_move": float(about[0]["invalid_move"])}
        return self._news(), float(rewards[0]), True, False, {"metrics": metrics}

    def _news(self) -> str:
        """Return the messages since the last turn."""
        _, messages = self._bare.get_observation()
        roles = self._bare.state.role_mapping
        return "\n".join(
            f"[{roles.get(sender, f'Player {sender}')}] {said}"
            for sender, said, kind in messages
            if kind is not self._players_words
        )


def plays_alone(game: Any) -> bool:
    """Say whether a game's class is for one player.

    The registry does not say. A game's `reset` builds the state of so many players: its code names
    it, which is found out without playing (to set up a Sokoban takes ten seconds).
    """
    return "SinglePlayerState" in game.reset.__code__.co_names
