"""What this distribution brings. Light: it is imported to list it, what it names only to use it."""

from isentrope import EnvSpec, hookimpl

SPLITS = ("train", "dev", "test")


@hookimpl
def isentrope_environments() -> list[EnvSpec]:
    """Return the environments."""
    swaps = "isentrope_example_env.swaps:Swaps"
    return [
        EnvSpec("example/swaps", swaps, "Sort 5 letters, two of them swapped a turn", SPLITS),
        EnvSpec(
            "example/swaps-hard",
            swaps,
            "Sort 7 letters, two of them swapped a turn",
            SPLITS,
            config={"letters": 7},
        ),
    ]
