"""The paper's algorithms as compositions. What differs between two recipes is what you see.

Constants are the paper's, where it prints them (section 6, C.3). The controllers' ranges are ours,
each chosen of four (docs/entropy-dynamics.md, figures/tuning.svg).
"""

from __future__ import annotations

from typing import Any

import attrs

from isentrope import Algorithm, component, recipe
from isentrope_objectives.advantages import GroupCentered, GroupNormalized, LeaveOneOut
from isentrope_objectives.surrogates import Clipped, EntropyBonus, Reinforce, SequenceClipped
from isentrope_objectives.transforms import RepoD, RepoR

LOW, HIGH = 0.01, 0.1
"""Bounds of |zeta| and |coef|, where ladders begin and end."""


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


def dr_grpo() -> Algorithm:
    """GRPO without its two divisions: by the group's deviation, and by each episode's length.

    In the length's place stands a constant, which only scales the loss.
    """
    return attrs.evolve(
        grpo(),
        advantage=GroupCentered(),
        aggregation="seq-mean-token-sum-norm",
        norm_length=1024,
    )


def loop() -> Algorithm:
    """GRPO with RLOO's advantages: leave-one-out, not divided by a deviation."""
    return attrs.evolve(grpo(), advantage=LeaveOneOut())


def dapo() -> Algorithm:
    """LOOP with room upwards: a ratio may rise further than it may fall."""
    return attrs.evolve(loop(), objective=Clipped(eps_low=0.2, eps_high=0.28))


def gspo() -> Algorithm:
    """LOOP with the ratio, and its clip, of whole episodes in place of tokens."""
    return attrs.evolve(loop(), objective=SequenceClipped(eps_low=3e-4, eps_high=4e-4))


def adapo() -> Algorithm:
    """DAPO whose upper bound moves to hold the first entropy."""
    controller = component(
        "controller", "entropy-scale", knob="objective.eps_high", low=0.02, high=5.0
    )
    return attrs.evolve(dapo(), controllers=[controller])


def grpo_bonus() -> Algorithm:
    """GRPO with an entropy bonus whose weight a ladder moves to hold the first entropy."""
    bonus = EntropyBonus(coef=LOW)
    return attrs.evolve(grpo(), regularizers=[bonus], controllers=[_ladder("entropy_bonus.coef")])


def repo_r(on: str = "grpo") -> Algorithm:
    """REPO-R, whose zeta a ladder moves to hold the first entropy.

    on: the recipe that it is added to.
    """
    return _under_a_ladder(recipe(on), RepoR(zeta=LOW))


def repo_d(on: str = "grpo") -> Algorithm:
    """REPO-D, whose zeta a ladder moves to hold the first entropy.

    on: the recipe that it is added to.
    """
    return _under_a_ladder(recipe(on), RepoD(zeta=LOW))


def _under_a_ladder(to: Algorithm, transform: RepoR | RepoD) -> Algorithm:
    """Add a transform, and a ladder that moves its zeta, whatever its slot will be called."""
    added = attrs.evolve(to, transforms=[*to.transforms, transform])
    (slot,) = [name for name, part in added.slots().items() if part is transform]
    return attrs.evolve(added, controllers=[*to.controllers, _ladder(f"{slot}.zeta")])


def _ladder(knob: str) -> Any:
    return component("controller", "entropy-ladder", knob=knob, low=LOW, high=HIGH)
