"""What this distribution brings. Light: it is imported to list it, what it names only to use it."""

from isentrope import EnvSpec, hookimpl


@hookimpl
def isentrope_environments() -> list[EnvSpec]:
    """Return the environments."""
    return [
        EnvSpec(
            "{{cookiecutter.id}}",
            "{{cookiecutter.package}}.environment:{{cookiecutter.class_name}}",
            "Say a word backwards",
            splits=("train", "test"),
        )
    ]
