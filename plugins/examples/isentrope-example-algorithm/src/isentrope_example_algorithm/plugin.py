"""What this distribution brings. Light: it is imported to list it, what it names only to use it."""

from isentrope import ComponentSpec, hookimpl

HERE = "isentrope_example_algorithm"


@hookimpl
def isentrope_objectives() -> list[ComponentSpec]:
    """Return the objective and the recipe."""
    return [
        ComponentSpec(
            "objective",
            "example/cispo",
            f"{HERE}.cispo:Cispo",
            "Policy gradient under clipped importance weights (CISPO)",
        ),
        ComponentSpec(
            "recipe",
            "example/cispo-pi",
            f"{HERE}.recipes:cispo_pi",
            "CISPO + REPO-R under proportional-integral entropy control",
        ),
    ]


@hookimpl
def isentrope_controllers() -> list[ComponentSpec]:
    """Return the controller."""
    return [
        ComponentSpec(
            "controller",
            "example/entropy-pi",
            f"{HERE}.entropy_pi:EntropyPI",
            "Holds entropy by proportional-integral control of a knob",
        ),
    ]
