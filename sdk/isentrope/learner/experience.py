"""From episodes to trajectories with advantages: grouping, filtering, counting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from isentrope.episodes import Episode, Status
from isentrope.errors import ConfigError
from isentrope.learner.head import TokenScores
from isentrope.learner.packing import Trajectory
from isentrope.parts import AdvantageEstimator


@frozen
class Experience:
    """What an iteration has to learn from, and what was left out of it."""

    trajectories: tuple[Trajectory, ...]
    episodes_failed: int
    """Masked: environment or engine failed."""
    episodes_cancelled: int
    """Given up: enough others were done."""
    episodes_empty: int
    """Nothing was sampled: the first prompt already filled the context."""
    groups_short: int
    """Dropped: fewer rollouts were left than `rollout.min_group`."""
    groups_zero: int
    """Dropped: all rewards equal, so no policy gradient."""


def usable(episodes: Sequence[Episode]) -> list[Episode]:
    """Return the episodes that may be learnt from."""
    return [e for e in episodes if e.status is Status.OK and e.sampled_tokens > 0]


def experience(
    episodes: Sequence[Episode],
    scores: Sequence[TokenScores],
    estimator: AdvantageEstimator,
    *,
    failed: int = 0,
    cancelled: int = 0,
    empty: int = 0,
    min_group: int = 2,
    keep_zero_groups: bool = False,
    references: Sequence[Tensor] | None = None,
) -> Experience:
    """Group usable episodes by task and seed, estimate advantages, and filter.

    scores: what the policy says of each episode's sampled tokens, [t] float32. references: what the
    one that the run started from said, if asked for.
    """
    members: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        members[episode.task, episode.seed].append(i)
    trajectories: list[Trajectory] = []
    short = zero = 0
    for group, indices in enumerate(members.values()):
        if len(indices) < min_group:
            short += 1
            continue
        of_group = [episodes[i] for i in indices]
        rewards = torch.tensor([e.reward for e in of_group], dtype=torch.float64)
        # By the rewards themselves: an advantage computed in floating point need not be exactly 0.
        if not keep_zero_groups and rewards.max() == rewards.min():
            zero += 1
            continue
        lengths = [scores[i].logp.numel() for i in indices]
        advantages = _per_token(estimator, rewards, of_group, lengths)
        trajectories += [
            Trajectory(e, group, scores[i], a, None if references is None else references[i])
            for e, i, a in zip(of_group, indices, advantages, strict=True)
        ]
    return Experience(tuple(trajectories), failed, cancelled, empty, short, zero)


def _per_token(
    estimator: AdvantageEstimator,
    rewards: Tensor,
    episodes: Sequence[Episode],
    lengths: Sequence[int],
) -> list[Tensor]:
    """Spread a group's advantages over tokens, [t] float32 each, and check what came back."""
    advantages = estimator(rewards, episodes)
    name = type(estimator).__name__
    if isinstance(advantages, Tensor) and advantages.dim() == 1:
        advantages = list(advantages)
    if not isinstance(advantages, Sequence) or not all(isinstance(a, Tensor) for a in advantages):
        raise ConfigError(
            f"{name} must return a tensor [G] or a list of G tensors; got {advantages!r}."
        )
    if len(advantages) != len(episodes):
        raise ConfigError(
            f"{name} returned {len(advantages)} advantages for a group of {len(episodes)}."
        )
    spread = []
    for advantage, length in zip(advantages, lengths, strict=True):
        if advantage.numel() not in (1, length):
            raise ConfigError(
                f"{name} returned {advantage.numel()} advantages for an episode of {length} "
                "sampled tokens; expected one, or one for each token."
            )
        if not bool(advantage.isfinite().all()):
            raise ConfigError(
                f"{name} returned {advantage.tolist()} for rewards {rewards.tolist()}."
            )
        spread.append(advantage.detach().float().reshape(-1).expand(length))
    return spread
