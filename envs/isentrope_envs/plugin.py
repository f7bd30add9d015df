"""What this package brings."""

from isentrope import EnvSpec, hookimpl
from isentrope_envs.appworld.place import Place


@hookimpl
def isentrope_environments() -> list[EnvSpec]:
    """Return the environments."""
    return [
        EnvSpec(
            "appworld",
            "isentrope_envs.appworld.env:AppWorld",
            "Everyday tasks over nine apps, done by writing Python (AppWorld's own engine)",
            splits=("train", "dev", "test_normal", "test_challenge"),
            episodes=50,  # the engine leaks a megabyte with each world
            python=str(Place.default().python),
            setup="isentrope appworld install",
        ),
        EnvSpec(
            "appworld-served",
            "isentrope_envs.appworld.served:AppWorldServed",
            "The same from AppWorld's own servers, by HTTP: urls = [...], tasks = {...}",
        ),
        EnvSpec(
            "arithmetic",
            "isentrope_envs.arithmetic:Arithmetic",
            "Linear equations in one turn, with many equally right derivations",
            splits=("train", "dev", "test"),
            isolation="none",
        ),
        EnvSpec(
            "boxes",
            "isentrope_envs.boxes:Boxes",
            "Look into a box in a Python notebook, and submit what it asks for",
            splits=("train", "dev", "test"),
        ),
        EnvSpec(
            "guess",
            "isentrope_envs.guess:Guess",
            "Find a number in as few turns as halving needs, by asking higher or lower",
            splits=("train", "dev", "test"),
            isolation="none",
        ),
    ]
