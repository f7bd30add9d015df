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
            "advantage",
            "group-centered",
            f"{here}.advantages:GroupCentered",
            "Reward against the group's mean (Dr. GRPO)",
        ),
        ComponentSpec(
            "transform",
            "repo-r",
            f"{here}.transforms:RepoR",
            "Rescales advantages by surprise, to raise or lower entropy (REPO-R)",
        ),
        ComponentSpec(
            "transform",
            "repo-d",
            f"{here}.transforms:RepoD",
            "Takes the token's surprise from its advantage: an entropy bonus in effect (REPO-D)",
        ),
        ComponentSpec(
            "transform",
            "decorrelate",
            f"{here}.transforms:Decorrelate",
            "REPO-D with the coefficient at which entropy stays, to first order",
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
            "objective",
            "sequence-clipped",
            f"{here}.surrogates:SequenceClipped",
            "The clip on the ratio of whole episodes (GSPO)",
        ),
        ComponentSpec(
            "objective",
            "entropy-bonus",
            f"{here}.surrogates:EntropyBonus",
            "A bonus for exact entropy, to be added as a regularizer",
        ),
        *(
            ComponentSpec("recipe", name, f"{here}.recipes:{name.replace('-', '_')}", summary)
            for name, summary in _RECIPES.items()
        ),
    ]


_RECIPES = {
    "rloo": "Leave-one-out REINFORCE, on-policy",
    "grpo": "Group-normalised, symmetric clip, 2 epochs",
    "dr-grpo": "GRPO without dividing by deviation and length",
    "loop": "GRPO with leave-one-out advantages",
    "dapo": "LOOP with a higher upper clip",
    "gspo": "LOOP with the clip on whole episodes' ratios",
    "adapo": "DAPO whose upper clip moves to hold entropy",
    "grpo-bonus": "GRPO + entropy bonus under an entropy ladder",
    "repo-r": "REPO-R under an entropy ladder, on GRPO or another recipe",
    "repo-d": "REPO-D under an entropy ladder, on GRPO or another recipe",
}
