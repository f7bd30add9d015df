"""What this package brings."""

from isentrope import ComponentSpec, hookimpl

_HERE = "isentrope_objectives"


@hookimpl
def isentrope_objectives() -> list[ComponentSpec]:
    """Return the estimators, transforms, objectives and recipes."""
    recipes = (
        ComponentSpec("recipe", name, f"{_HERE}.recipes:{name.replace('-', '_')}", summary)
        for name, summary in _RECIPES.items()
    )
    return [*_PARTS, *recipes]


_PARTS = (
    ComponentSpec(
        "advantage",
        "leave-one-out",
        f"{_HERE}.advantages:LeaveOneOut",
        "Reward against the mean of the group's others (RLOO, LOOP)",
    ),
    ComponentSpec(
        "advantage",
        "group-normalized",
        f"{_HERE}.advantages:GroupNormalized",
        "Reward against the group's mean, in standard deviations (GRPO)",
    ),
    ComponentSpec(
        "advantage",
        "group-centered",
        f"{_HERE}.advantages:GroupCentered",
        "Reward against the group's mean (Dr. GRPO)",
    ),
    ComponentSpec(
        "transform",
        "repo-r",
        f"{_HERE}.transforms:RepoR",
        "Rescales advantages by surprise, to raise or lower entropy (REPO-R)",
    ),
    ComponentSpec(
        "transform",
        "repo-d",
        f"{_HERE}.transforms:RepoD",
        "Takes the token's surprise from its advantage: an entropy bonus in effect (REPO-D)",
    ),
    ComponentSpec(
        "transform",
        "decorrelate",
        f"{_HERE}.transforms:Decorrelate",
        "REPO-D with the coefficient at which entropy stays, to first order",
    ),
    ComponentSpec(
        "transform",
        "truncated-importance",
        f"{_HERE}.transforms:TruncatedImportance",
        "Weighs tokens that an older policy, or another precision, sampled",
    ),
    ComponentSpec(
        "objective",
        "reinforce",
        f"{_HERE}.surrogates:Reinforce",
        "The plain policy gradient, strictly on-policy",
    ),
    ComponentSpec(
        "objective",
        "clipped",
        f"{_HERE}.surrogates:Clipped",
        "PPO's clipped surrogate, symmetric or not (GRPO, LOOP, DAPO)",
    ),
    ComponentSpec(
        "objective",
        "sequence-clipped",
        f"{_HERE}.surrogates:SequenceClipped",
        "The clip on the ratio of whole episodes (GSPO)",
    ),
    ComponentSpec(
        "objective",
        "entropy-bonus",
        f"{_HERE}.surrogates:EntropyBonus",
        "A bonus for exact entropy, to be added as a regularizer",
    ),
    ComponentSpec(
        "objective",
        "kl-to-start",
        f"{_HERE}.surrogates:KlToStart",
        "Pulls back to the policy that the run started from; a regularizer",
    ),
)
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
