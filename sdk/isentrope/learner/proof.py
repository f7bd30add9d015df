"""The proof that an engine samples from what was published: its log-probs beside the learner's.

An adapter that a server did not load, loaded under an older one's cache, applied to no layer, or
to another model: all of it samples fluently. So after each publication every server completes a
fixed prompt, longer than two blocks of any server's prefix cache, and the learner scores what came.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import frozen

from isentrope.config import Dtype
from isentrope.engines import Completion, Sampling
from isentrope.episodes import Episode, Segment, StopReason
from isentrope.errors import TrainingError
from isentrope.learner.head import TokenScores
from isentrope.models import LanguageModel

TOKENS = 16
"""Sampled by each server."""
_LONGEST = 288
"""Tokens of the prompt; a block has 16 on GPUs, and 128 on CPUs."""
_TEXT = (
    "A gas expands into an empty half of its box and never comes back by itself. What could be "
    "said of it before, in one word, takes many afterwards: where it is, and how it moves. Along "
    "an isentrope nothing of that kind is lost, and every step can be taken back. "
)
_TOLERANCE: dict[Dtype, float] = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.15}


def tolerance(dtype: Dtype) -> float:
    """Return how far log-probs may differ in the mean, nats, where both sides compute in `dtype`.

    Measured on tiny models: 1e-5 in float32, 0.02 in bfloat16. A wrong adapter: 0.2 to 2.
    """
    return _TOLERANCE[dtype]


def prompt(model: LanguageModel, context: int) -> list[int]:
    """Return the fixed prompt's token ids, as many as leave room for a completion."""
    room = min(_LONGEST, context - TOKENS)
    ids: list[int] = []
    while len(ids) < room:
        ids += model.tokenizer.encode(_TEXT, add_special_tokens=False)
    return ids[: max(room, 1)]


def sampling(temperature: float) -> Sampling:
    """Return how the completion is drawn."""
    return Sampling(max_tokens=TOKENS, temperature=temperature)


def episodes(prompt: Sequence[int], drawn: Sequence[Completion]) -> list[Episode]:
    """Return completions in the form in which the learner scores them."""
    found = []
    for place, completion in enumerate(drawn):
        n, rest = len(completion.ids), len(prompt)
        segment = Segment(
            ids=[*prompt, *completion.ids],
            sampled=[False] * rest + [True] * n,
            logp=[0.0] * rest + list(completion.logp),
            turn=[0] * (rest + n),
            version=[-1] * rest + [completion.version] * n,
        )
        found.append(Episode("proof", 0, place, (segment,), (), (), False, StopReason.MAX_TOKENS))
    return found


@frozen
class Proof:
    """How far each server's log-probs are from the learner's, nats."""

    means: tuple[float, ...]
    maxima: tuple[float, ...]

    @classmethod
    def of(cls, episodes: Sequence[Episode], scores: Sequence[TokenScores]) -> Proof:
        """Compare."""
        means, maxima = [], []
        for episode, scored in zip(episodes, scores, strict=True):
            (segment,) = episode.segments
            theirs = segment.logp[segment.sampled].astype(np.float64)
            apart = np.abs(scored.logp.double().numpy() - theirs)
            means.append(float(apart.mean()))
            maxima.append(float(apart.max()))
        return cls(tuple(means), tuple(maxima))

    def check(self, version: int, tolerance: float) -> None:
        """Raise `TrainingError` where a server samples from something else."""
        for place, (mean, most) in enumerate(zip(self.means, self.maxima, strict=True)):
            if not mean <= tolerance:
                raise TrainingError(
                    f"Server {place + 1} of {len(self.means)} does not sample from version "
                    f"{version} of the policy, which it was sent: on {TOKENS} tokens its log-probs "
                    f"are {mean:.3g} nats from the learner's in the mean, {most:.3g} at the most; "
                    f"{tolerance:g} was expected at most (engine.tolerance). It may serve another "
                    "model, compute in another dtype, or have loaded the adapter wrongly."
                )
