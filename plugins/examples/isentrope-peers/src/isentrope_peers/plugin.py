"""What this distribution brings. Light: a library is imported when one of its games is made."""

from isentrope import EnvSpec, hookimpl

SPLITS = ("train", "dev", "test")


@hookimpl
def isentrope_environments() -> list[EnvSpec]:
    """Return the environments, each with one of its library's own to begin with."""
    return [
        EnvSpec(
            "gem",
            "isentrope_peers.gem:Gem",
            "A game of GEM: name = 'game:...'",
            SPLITS,
            config={"name": "game:GuessTheNumber-v0-easy"},
        ),
        EnvSpec(
            "textarena",
            "isentrope_peers.textarena:TextArena",
            "A game of TextArena for one player: name = '...-v0'",
            SPLITS,
            config={"name": "GuessTheNumber-v0"},
        ),
        EnvSpec(
            "reasoning-gym",
            "isentrope_peers.reasoning_gym:ReasoningGym",
            "A data set of reasoning-gym: dataset = '...', and its own settings",
            SPLITS,
            config={"dataset": "leg_counting"},
        ),
        EnvSpec(
            "skyrl",
            "isentrope_peers.skyrl:SkyRL",
            "An environment of skyrl-gym on your data, or on sums: name = '...'",
            SPLITS,
            config={"name": "gsm8k"},
        ),
    ]
