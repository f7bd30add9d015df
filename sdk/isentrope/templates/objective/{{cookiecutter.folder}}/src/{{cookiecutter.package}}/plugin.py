"""What this distribution brings. Light: it is imported to list it, what it names only to use it."""

from isentrope import ComponentSpec, hookimpl


@hookimpl
def isentrope_objectives() -> list[ComponentSpec]:
    """Return the objective."""
    return [
        ComponentSpec(
            "objective",
            "{{cookiecutter.id}}",
            "{{cookiecutter.package}}.objective:{{cookiecutter.class_name}}",
            "Policy gradient under a weight that is bounded above",
        )
    ]
