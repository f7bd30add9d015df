"""The proof that an engine samples from what was published: its log-probs beside the learner's.

An adapter that a server did not load, loaded under an older one's cache, applied to no layer, or
to another model: all of it samples fluently. So after each publication every server completes a
fixed prompt, longer than two blocks of any server's prefix cache, and the learner scores what came.
At a high temperature: at 1, any two policies that are sure of themselves agree on what they say.

Shape legend: P tokens of a prompt, N tokens of its completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.func import functional_call

from isentrope.config import Dtype
from isentrope.engines import Completion, Sampling
from isentrope.episodes import Episode, Segment, StopReason
from isentrope.errors import EngineError
from isentrope.learner.head import TokenScores
from isentrope.models import LanguageModel
from isentrope.rollout.collector import RolloutCollector

TOKENS = 16
"""Sampled by each server."""
TEMPERATURE = 2.0
"""The highest that vLLM takes."""
_LONGEST = 288
"""Tokens of the prompt; a block has 16 on GPUs, and 128 on CPUs."""
_TEXT = (
    "A gas expands into an empty half of its box and never comes back by itself. What could be "
    "said of it before, in one word, takes many afterwards: where it is, and how it moves. Along "
    "an isentrope nothing of that kind is lost, and every step can be taken back. "
)
_TOLERANCE: dict[Dtype, float] = {"float32": 3e-4, "float16": 0.01, "bfloat16": 0.05}


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


SAMPLING = Sampling(max_tokens=TOKENS, temperature=TEMPERATURE)


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


async def prove(
    collector: RolloutCollector, config: Any, model: LanguageModel, dtype: Dtype
) -> None:
    """Have servers that were sent nothing prove that they sample from `model`.

    Raises `EngineError` where they do not.
    """
    if not getattr(config, "proven", False):
        return
    asked = prompt(model, collector.context)
    drawn = await collector.sample_on_each(asked, SAMPLING)
    expected = (model_logp(model, None, asked, c.ids, temperature=TEMPERATURE) for c in drawn)
    scores = [TokenScores(torch.tensor(logp), None, None) for logp in expected]
    allowed = getattr(config, "tolerance", None) or tolerance(dtype)
    Proof.of(episodes(asked, drawn), scores).check(0, allowed)


@frozen
class Proof:
    """How far each server's log-probs are from the learner's, nats."""

    means: tuple[float, ...]
    maxima: tuple[float, ...]
    without: tuple[tuple[float, float], ...] = ()
    """Mean distance of each server's, and of the learner's own, from those of the policy without
    its adapters; empty where there are none."""

    @classmethod
    def of(
        cls,
        episodes: Sequence[Episode],
        scores: Sequence[TokenScores],
        without: Sequence[TokenScores] = (),
    ) -> Proof:
        """Compare with the policy's scores, and with those `without` its adapters."""
        theirs = [
            torch.from_numpy(s.logp[s.sampled]).double() for e in episodes for s in e.segments
        ]
        apart = [(x.logp - y).abs() for x, y in zip(scores, theirs, strict=True)]
        return cls(
            tuple(float(x.mean()) for x in apart),
            tuple(float(x.max()) for x in apart),
            tuple(
                (float((y - base.logp).abs().mean()), float((x.logp - base.logp).abs().mean()))
                for x, y, base in zip(scores, theirs, without, strict=False)
            ),
        )

    def check(self, version: int, tolerance: float) -> None:
        """Raise `EngineError` where a server samples from something else.

        From the policy without its adapters, too, where that is within the tolerance: a server is
        then much nearer to it than to the policy.
        """
        for place, (mean, most) in enumerate(zip(self.means, self.maxima, strict=True)):
            server = (
                f"Server {place + 1} of {len(self.means)} does not sample from version {version} "
                f"of the policy, as it should: on {TOKENS} tokens its log-probs are {mean:.3g} "
                f"nats from the policy's in the mean, {most:.3g} at the most"
            )
            if not mean <= tolerance:
                raise EngineError(
                    f"{server}; {tolerance:g} was expected at most (engine.tolerance). It may "
                    "serve another model, compute in another dtype, or have loaded the adapter "
                    "wrongly."
                )
            if place < len(self.without):
                to_base, moved = self.without[place]
                if 2 * to_base < min(mean, moved):
                    raise EngineError(
                        f"{server}, and {to_base:.3g} from those of the model without the "
                        "adapter: it was loaded, and applied to nothing."
                    )


@torch.no_grad()
def model_logp(
    model: LanguageModel,
    weights: Mapping[str, Tensor] | None,
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    temperature: float,
    top_k: int = 0,
) -> list[float]:
    """Return the log-probability of each token of a completion [N], nats, computed in float32.

    Of the distribution at that temperature, over the `top_k` most likely tokens (0: all). weights:
    what to use in place of the model's own, by name.
    """
    policy = model.model
    was_training = policy.training
    policy.train(False)
    try:
        ids = torch.tensor([[*prompt, *completion]], device=policy.device)
        inputs = {"input_ids": ids, "use_cache": False}
        output = (
            policy(**inputs)
            if weights is None
            else functional_call(policy, dict(weights), (), inputs)
        )
    finally:
        policy.train(was_training)
    scores = output.logits[0, len(prompt) - 1 : -1].float() / temperature  # [N, V]
    if top_k:
        least = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    chosen = torch.tensor(completion, device=scores.device)[:, None]
    found: list[float] = scores.log_softmax(-1).gather(-1, chosen)[:, 0].tolist()
    return found
