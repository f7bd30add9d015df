"""What an advantage estimator must do, carried out; part of `check_objective`.

Shape legend: G rollouts of a group, t sampled tokens of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from isentrope.episodes import Episode, Segment, StopReason
from isentrope.parts import AdvantageEstimator
from isentrope.testing._report import describe, require

if TYPE_CHECKING:
    from torch import Tensor

GROUPS: tuple[tuple[float, ...], ...] = (
    (0.0, 1.0),
    (1.0, 0.0, 0.5, 0.25, -1.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    (-3.0, 40.0, 1e-3),
)
EQUAL: tuple[tuple[float, ...], ...] = ((0.0, 0.0), (1.0,) * 6, (0.1,) * 3)


def estimator_checks(estimator: AdvantageEstimator) -> dict[str, Callable[[], None]]:
    """Return the checks by name."""

    def shape() -> None:
        """One number for each rollout, or one for each of its sampled tokens."""
        for rewards in (*GROUPS, *EQUAL):
            _estimate(estimator, rewards, range(len(rewards)))

    def finite() -> None:
        """Finite numbers, for the smallest group too."""
        for rewards in GROUPS:
            _require_finite(estimator, rewards)

    def equal_rewards() -> None:
        """Finite numbers where nothing tells the rollouts apart."""
        for rewards in EQUAL:
            _require_finite(estimator, rewards)

    def permutation() -> None:
        """A rollout's advantage does not depend on its place in the group."""
        for rewards in GROUPS:
            order = np.random.default_rng(len(rewards)).permutation(len(rewards))
            straight = _estimate(estimator, rewards, range(len(rewards)))
            shuffled = _estimate(estimator, rewards, [int(i) for i in order])
            for place, rollout in enumerate(order):
                require(
                    np.allclose(straight[rollout], shuffled[place], rtol=1e-6, atol=1e-8),
                    f"with rewards {rewards} in another order, the rollout of reward "
                    f"{rewards[rollout]:g} got {describe(shuffled[place].tolist())}, not "
                    f"{describe(straight[rollout].tolist())}",
                )

    def pure() -> None:
        """Called twice it returns the same, and it leaves the rewards alone."""
        import torch

        given = torch.tensor(GROUPS[1], dtype=torch.float64)
        episodes = _episodes(GROUPS[1])
        first, second = (_arrays(estimator(given, episodes)) for _ in range(2))
        same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        require(same, "two calls on the same group differ")
        require(tuple(given.tolist()) == GROUPS[1], "it changed the rewards in place")

    return {
        "shape": shape,
        "finite": finite,
        "equal-rewards": equal_rewards,
        "permutation": permutation,
        "pure": pure,
    }


def _require_finite(estimator: AdvantageEstimator, rewards: Sequence[float]) -> None:
    found = _estimate(estimator, rewards, range(len(rewards)))
    require(
        all(np.isfinite(a).all() for a in found),
        f"rewards {tuple(rewards)} gave {describe([a.tolist() for a in found])}",
    )


def _estimate(
    estimator: AdvantageEstimator, rewards: Sequence[float], order: Sequence[int]
) -> list[np.ndarray]:
    """Return each rollout's advantages, [] or [t], the group being in that order."""
    import torch

    every = _episodes(rewards)
    episodes = [every[i] for i in order]
    given = torch.tensor([rewards[i] for i in order], dtype=torch.float64)
    answer = estimator(given, episodes)
    if isinstance(answer, torch.Tensor):
        require(
            answer.shape == given.shape,
            f"it returned shape {tuple(answer.shape)} for a group of {len(rewards)}",
        )
        return _arrays(answer)
    lengths = [len(a) for a in answer]
    expected = [e.sampled_tokens for e in episodes]
    require(
        lengths == expected,
        f"it returned {lengths} advantages for episodes of {expected} sampled tokens",
    )
    return _arrays(answer)


def _arrays(answer: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    return [a.detach().double().numpy() for a in answer]


def _episodes(rewards: Sequence[float]) -> list[Episode]:
    """Return a group of one-turn episodes, each longer than the one before."""
    return [
        Episode(
            task="task",
            seed=0,
            rollout=i,
            segments=(_segment(3 + i),),
            messages=(),
            rewards=(reward,),
            success=reward == max(rewards),
            stop_reason=StopReason.TERMINATED,
        )
        for i, reward in enumerate(rewards)
    ]


def _segment(sampled: int) -> Segment:
    """Return two prompt tokens and `sampled` sampled ones."""
    mask = np.arange(2 + sampled) >= 2
    return Segment(
        ids=np.arange(2 + sampled),
        sampled=mask,
        logp=np.where(mask, -0.5, 0.0),
        turn=np.zeros(2 + sampled),
        version=np.where(mask, 0, -1),
    )
