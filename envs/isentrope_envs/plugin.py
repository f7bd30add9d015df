"""What this package brings."""

from isentrope import ComponentSpec, EnvSpec, hookimpl
from isentrope_envs.appworld.place import Place


@hookimpl
def isentrope_environments() -> list[EnvSpec]:
    """Return the environments."""
    return [
        EnvSpec(
            "aime",
            "isentrope_envs.aime.hosted:Aime",
            "AIME problems, graded exactly, and beside it as lm-eval does",
            splits=("train", "aime24", "aime25"),
        ),
        EnvSpec(
            "aime-like",
            "isentrope_envs.aime_like:AimeLike",
            "Generated problems with whole answers at four levels, which a tiny policy can begin",
            splits=("train", "dev", "test"),
            isolation="none",
        ),
        EnvSpec(
            "appworld",
            "isentrope_envs.appworld.env:AppWorld",
            "Everyday tasks over nine apps, done by writing Python (AppWorld's own engine)",
            splits=("train", "dev", "test_normal", "test_challenge"),
            episodes=50,  # the engine leaks a megabyte with each world
            python=str(Place.default().python),
            setup="isentrope appworld install",
            fault="isentrope_envs.appworld.interpreter:fault",
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


@hookimpl
def isentrope_commands() -> list[ComponentSpec]:
    """Return the verbs of the command line."""
    return [
        ComponentSpec(
            "command",
            "appworld",
            "isentrope_envs.appworld.commands:app",
            "Install AppWorld, in an interpreter of its own, or remove it; score, and pack",
        )
    ]


@hookimpl
def isentrope_checks() -> list[ComponentSpec]:
    """Return what the doctor asks."""
    return [
        ComponentSpec(
            "check",
            "appworld",
            "isentrope_envs.appworld.checks:check",
            "Whether AppWorld is installed and whole",
        )
    ]
