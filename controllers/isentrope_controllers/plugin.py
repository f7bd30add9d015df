"""What this package brings."""

from isentrope import ComponentSpec, hookimpl


@hookimpl
def isentrope_controllers() -> list[ComponentSpec]:
    """Return the controllers."""
    return [
        ComponentSpec(
            "controller",
            "entropy-ladder",
            "isentrope_controllers.ladder:EntropyLadder",
            "Doubles, halves and flips a knob to hold entropy (REPO)",
        ),
    ]
