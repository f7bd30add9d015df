"""The paper's algorithms as compositions. What differs between two recipes is what you see."""

from __future__ import annotations

import attrs

from isentrope import Algorithm, component
from isentrope_objectives.advantages import GroupNormalized, LeaveOneOut
from isentrope_objectives.surrogates import Clipped, Reinforce
from isentrope_objectives.transforms import RepoR


def rloo() -> Algorithm:
    """REINFORCE against the other rollouts' mean, strictly on-policy."""
    return Algorithm(advantage=LeaveOneOut(), objective=Reinforce())


def grpo() -> Algorithm:
    """Group-normalised advantages under a symmetric clip, two epochs of minibatches of 128."""
    return Algorithm(
        advantage=GroupNormalized(),
        objective=Clipped(eps_low=0.2, eps_high=0.2),
        epochs=2,
        minibatch=128,
    )


def repo_r() -> Algorithm:
    """GRPO with REPO-R, whose zeta a bidirectional ladder moves to hold the first entropy."""
    ladder = component("controller", "entropy-ladder", knob="repo_r.zeta", low=1e-4, high=0.05)
    return attrs.evolve(grpo(), transforms=[RepoR(zeta=1e-4)], controllers=[ladder])
