"""What this package brings."""

from isentrope import ComponentSpec, hookimpl


@hookimpl
def isentrope_objectives() -> list[ComponentSpec]:
    """Return the estimators, transforms, objectives and recipes."""
    here = "isentrope_objectives"
    return [
        ComponentSpec(
            "advantage",
            "leave-one-out",
            f"{here}.advantages:LeaveOneOut",
            "Reward against the mean of the group's others (RLOO, LOOP)",
        ),
        ComponentSpec(
            "advantage",
            "group-normalized",
            f"{here}.advantages:GroupNormalized",
            "Reward against the group's mean, in standard deviations (GRPO)",
        ),
        ComponentSpec(
            "transform",
            "repo-r",
            f"{here}.transforms:RepoR",
            "Rescales advantages by surprise, to raise or lower entropy (REPO-R)",
        ),
        ComponentSpec(
            "objective",
            "reinforce",
            f"{here}.surrogates:Reinforce",
            "The plain policy gradient, strictly on-policy",
        ),
        ComponentSpec(
            "objective",
            "clipped",
            f"{here}.surrogates:Clipped",
            "PPO's clipped surrogate, symmetric or not (GRPO, LOOP, DAPO)",
        ),
        ComponentSpec(
            "recipe", "rloo", f"{here}.recipes:rloo", "Leave-one-out REINFORCE, on-policy"
        ),
        ComponentSpec(
            "recipe", "grpo", f"{here}.recipes:grpo", "Group-normalised, symmetric clip, 2 epochs"
        ),
        ComponentSpec(
            "recipe",
            "repo-r",
            f"{here}.recipes:repo_r",
            "GRPO + REPO-R under a bidirectional entropy ladder",
        ),
    ]
