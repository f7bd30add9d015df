"""The recipe. Another plugin's parts come in by kind and id, never by an import."""

from __future__ import annotations

from isentrope import Algorithm, component
from isentrope_example_algorithm.cispo import Cispo
from isentrope_example_algorithm.entropy_pi import EntropyPI


def cispo_pi() -> Algorithm:
    """CISPO, with REPO-R's zeta under proportional-integral control to hold the first entropy.

    Advantages and the mean over all tokens are MiniMax-M1's. Transform, controller and all numbers
    are ours, for the embedded tiny policy.
    """
    return Algorithm(
        advantage=component("advantage", "group-normalized"),
        transforms=[component("transform", "repo-r", zeta=0.0)],
        objective=Cispo(),
        controllers=[EntropyPI(knob="repo_r.zeta", low=-0.5, high=0.5)],
        aggregation="token-mean",
        minibatch=128,
    )
