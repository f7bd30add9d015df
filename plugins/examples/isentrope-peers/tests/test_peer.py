"""What all four share: generators of their own, and sentences."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest

import isentrope
from isentrope_peers._peer import Generators, made, numbered

LIBRARY = None


def test_a_games_generators_go_on_where_it_left_them_whatever_others_draw() -> None:
    random.seed(5)
    expected = [random.random(), random.random()]
    game = Generators()
    with game.lent(5):
        found = [random.random()]
    random.seed(99)
    with game.lent():
        found.append(random.random())
    assert expected == found


def test_lending_leaves_the_process_its_own_generators_even_after_an_exception() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    with contextlib.suppress(KeyError), Generators().lent(7):
        random.random()
        raise KeyError(np.random.random())
    assert expected == (random.random(), np.random.random())


def test_no_two_tasks_have_the_same_number() -> None:
    tasks = numbered({"train": 3, "test": 2})
    numbers = {split: [task.data["number"] for task in tasks[split]] for split in tasks}
    assert {"train": [0, 1, 2], "test": [3, 4]} == numbers


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_a_split_without_tasks_is_refused(count: object) -> None:
    with pytest.raises(isentrope.ConfigError, match=r"splits\.test must be a whole number"):
        numbered({"train": 1, "test": count})  # type: ignore[dict-item]


def test_an_option_that_a_game_would_swallow_is_refused() -> None:
    def game(max_turns: int = 3, **_: object) -> int:
        return max_turns

    assert 4 == made("game", game, {"max_turns": 4})
    with pytest.raises(isentrope.UnknownNameError, match="Did you mean 'max_turns'"):
        made("game", game, {"max_turn": 4})
