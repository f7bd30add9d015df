"""Advantage estimators: from the rewards of a group of G rollouts to one number each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from isentrope import AdvantageEstimator, Episode, validation

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class LeaveOneOut(AdvantageEstimator):
    """Each reward against the mean of the others: ``A_i = R_i - mean_{j != i} R_j``.

    Which is ``G / (G - 1) * (R_i - mean R)``. RLOO and LOOP (paper, section 2).
    """

    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """Return advantages [G]."""
        del episodes
        size = rewards.numel()
        return (rewards - rewards.mean()) * (size / (size - 1))


@frozen(kw_only=True)
class GroupNormalized(AdvantageEstimator):
    """Each reward against the group's mean, in standard deviations.

    ``A_i = (R_i - mean R) / (std R + eps)``. GRPO (paper, section 2; Shao et al. 2024).
    """

    correction: int = field(default=1, validator=validation.one_of((0, 1)))
    """Of the standard deviation: 1, the sample's (verl, TRL); 0, the population's (LOOP's code)."""
    eps: float = field(default=1e-6, validator=validation.real(above=0))

    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """Return advantages [G]."""
        del episodes
        return (rewards - rewards.mean()) / (rewards.std(correction=self.correction) + self.eps)


@frozen(kw_only=True)
class GroupCentered(AdvantageEstimator):
    """Each reward against the group's mean: ``A_i = R_i - mean R``. Dr. GRPO (Liu et al. 2025)."""

    def __call__(self, rewards: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """Return advantages [G]."""
        del episodes
        return rewards - rewards.mean()
