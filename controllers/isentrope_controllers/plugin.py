"""What this package brings."""

from isentrope import ComponentSpec, hookimpl


@hookimpl
def isentrope_controllers() -> list[ComponentSpec]:
    """Return the controllers."""
    here = "isentrope_controllers"
    return [
        ComponentSpec(
            "controller",
            "entropy-ladder",
            f"{here}.entropy:EntropyLadder",
            "Doubles, halves and flips a knob to hold entropy (REPO, adaptive bonus)",
        ),
        ComponentSpec(
            "controller",
            "entropy-scale",
            f"{here}.entropy:EntropyScale",
            "Scales a positive knob up and down to hold entropy (ADAPO)",
        ),
        ComponentSpec(
            "controller",
            "schedule",
            f"{here}.schedule:Scheduled",
            "Moves a knob along a schedule, whatever happens",
        ),
    ]
