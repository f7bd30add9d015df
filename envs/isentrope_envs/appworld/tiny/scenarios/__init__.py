"""The scenarios, and which splits have which."""

from __future__ import annotations

from isentrope_envs.appworld.tiny.scenarios.changes import alarm, pay, todo
from isentrope_envs.appworld.tiny.scenarios.errands import copy, likes, shop
from isentrope_envs.appworld.tiny.scenarios.questions import balance, cards, city, notes, profile
from isentrope_envs.appworld.tiny.tasks import Scenario

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("profile", 1, profile),
        Scenario("cards", 1, cards),
        Scenario("city", 1, city),
        Scenario("balance", 1, balance),
        Scenario("notes", 1, notes),
        Scenario("alarm", 2, alarm),
        Scenario("todo", 2, todo),
        Scenario("pay", 2, pay),
        Scenario("copy", 2, copy),
        Scenario("shop", 3, shop),
        Scenario("likes", 3, likes),
    )
}
SPLITS = {
    "train": tuple(SCENARIOS),
    "dev": ("cards", "city", "notes", "alarm", "todo", "shop"),
    "test_normal": ("profile", "city", "balance", "alarm", "pay", "likes"),
    "test_challenge": ("copy", "pay", "shop", "likes"),
}
"""The engine's splits, each with at least two difficulties."""
VARIANTS = 3
"""Tasks of a scenario in a split."""
