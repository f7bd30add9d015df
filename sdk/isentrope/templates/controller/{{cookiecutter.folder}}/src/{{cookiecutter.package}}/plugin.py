"""What this distribution brings. Light: it is imported to list it, what it names only to use it."""

from isentrope import ComponentSpec, hookimpl


@hookimpl
def isentrope_controllers() -> list[ComponentSpec]:
    """Return the controller."""
    return [
        ComponentSpec(
            "controller",
            "{{cookiecutter.id}}",
            "{{cookiecutter.package}}.controller:{{cookiecutter.class_name}}",
            "Moves a knob in proportion to the entropy that is missing",
        )
    ]
