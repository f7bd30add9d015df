"""`check_engine`: what an engine must do, carried out on a real model.

Shape legend: P tokens of a prompt, N tokens of its completion, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import attrs
import numpy as np
from attrs import define, field

from isentrope.engines import (
    Completion,
    Engine,
    EngineConfig,
    EngineUse,
    Sampling,
    WeightsRef,
)
from isentrope.errors import EngineError
from isentrope.models import LanguageModel
from isentrope.testing._report import Inspection, Report, describe, require

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 8
RANK = 4
"""Of published adapters."""
PROMPT_LENGTHS = (3, 7, 1, 5)
VERSION = 7
"""Of the weights that are published; none that an engine would arrive at by counting."""


def check_engine(
    engine_config: EngineConfig, model: LanguageModel, *, logp_tolerance: float = 1e-4
) -> Report:
    """Check the engine that a config builds, against the model itself.

    One that takes adapters is published adapters of every linear layer but the last. One that says
    that it is not seeded need not draw the same again (``deterministic``, ``independent``), only
    not always the same (``random``).

    Prompts are random token ids. logp_tolerance: how far the engine's log-probabilities may be from
    those of the model's own forward pass in its own precision, nats; 1e-4 suits float32.

    Cannot be called where an event loop runs already.
    """
    return asyncio.run(_check(engine_config, model, logp_tolerance))


async def _check(config: EngineConfig, model: LanguageModel, tolerance: float) -> Report:
    inspection = Inspection(type(config).__name__)
    probe = _Probe(config, model, tolerance)
    await _run(inspection, "builds", probe.builds)
    if probe.engine is None:
        return inspection.report()
    draws: dict[str, Callable[[], Awaitable[None]]] = {"random": probe.random}
    if probe.seeded:
        draws = {"deterministic": probe.deterministic, "independent": probe.independent}
    checks: dict[str, Callable[[], Awaitable[None]]] = {
        "completion": probe.completion,
        **draws,
        "logp": probe.logp,
        "stop": probe.stop,
        "length": probe.length,
        "empty-prompt": probe.empty_prompt,
        "unknown-tensor": probe.unknown_tensor,
        "publish": probe.publish,
        "copies": probe.copies,
        "close": probe.close,
    }
    for check, method in checks.items():
        if not await _run(inspection, check, method) and check == "completion":
            break  # all others rest on it
    if not probe.closed:
        await _run(inspection, "close", probe.close)
    return inspection.report()


async def _run(inspection: Inspection, check: str, method: Callable[[], Awaitable[None]]) -> bool:
    """Run a check that awaits, and note its outcome."""
    error: Exception | None = None
    try:
        await method()
    except Exception as raised:  # the engine is a stranger's code
        error = raised

    def outcome() -> None:
        if error is not None:
            raise error

    return inspection.run(check, outcome)


@define
class _Probe:
    """The checks, by name, and the engine that they share."""

    config: EngineConfig
    model: LanguageModel
    tolerance: float
    """nats"""
    engine: Engine | None = None
    closed: bool = False
    version: int = 0
    """Of the weights that the engine should sample from."""
    weights: Mapping[str, Tensor] | None = None
    """Those weights; None: the model's."""
    prompts: tuple[tuple[int, ...], ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Draw the prompts."""
        rng = np.random.default_rng(0)
        vocabulary = self.model.model.get_input_embeddings().get_parameter("weight").shape[0]
        self.prompts = tuple(
            tuple(int(i) for i in rng.integers(vocabulary, size=length))
            for length in PROMPT_LENGTHS
        )

    @property
    def seeded(self) -> bool:
        """Whether the engine claims to draw the same again."""
        return bool(getattr(self.engine, "seeded", True))

    async def draw_the_same(
        self, prompt: tuple[int, ...], seed: int = 0, **sampling: object
    ) -> Completion:
        """Ask for a completion that will come again."""
        if not self.seeded:
            sampling["top_k"] = 1
        return await self.draw(prompt, seed, **sampling)

    async def draw(self, prompt: tuple[int, ...], seed: int = 0, **sampling: object) -> Completion:
        """Ask the shared engine for one completion."""
        assert self.engine is not None
        options = {"max_tokens": TOKENS, "seed": seed, **sampling}
        return await self.engine.generate(prompt, Sampling(**options))  # type: ignore[arg-type]

    async def builds(self) -> None:
        """The config builds something with an engine's methods."""
        rank = RANK if self.takes_adapters else None
        use = EngineUse(context=self.model.context, rank=rank)
        made = self.config.build(self.model, use)
        require(isinstance(made, Engine), f"build() returned {describe(made)}, which is no Engine")
        self.engine = made

    async def completion(self) -> None:
        """A completion is whole: as many log-probs as ids, a reason, the present version."""
        for prompt in self.prompts:
            found = await self.draw(prompt)
            require(isinstance(found, Completion), f"it returned {describe(found)}")
            require(found.ids, "a completion holds no token")
            require(
                len(found.ids) == len(found.logp),
                f"a completion has {len(found.ids)} ids and {len(found.logp)} log-probs",
            )
            require(
                found.finish_reason in ("stop", "length"),
                f"finish_reason is {found.finish_reason!r}",
            )
            require(
                found.version == self.version,
                f"the version is {found.version}, where {self.version} was published",
            )

    async def deterministic(self) -> None:
        """The seed decides a completion, and different seeds give different ones."""
        seen = set()
        for seed in range(6):
            first, second = [await self.draw(self.prompts[0], seed) for _ in range(2)]
            require(first.ids == second.ids, f"seed {seed} gave two completions of one prompt")
            seen.add(first.ids)
        require(len(seen) > 1, "six seeds gave the same completion: is the seed used?")

    async def random(self) -> None:
        """Completions of one prompt are not always the same."""
        seen = {(await self.draw(self.prompts[0], seed)).ids for seed in range(6)}
        require(len(seen) > 1, "six draws gave the same completion: is the temperature used?")

    async def independent(self) -> None:
        """What else is in flight makes no difference.

        One prompt in four may differ, as batches of another shape may round another way.
        """
        alone = [await self.draw(p, seed) for seed, p in enumerate(self.prompts)]
        others = [
            self.draw(p, 100 + n, temperature=0.5 + 0.2 * n, max_tokens=1 + 3 * n)
            for n, p in enumerate((*self.prompts, *self.prompts))
        ]
        together = await asyncio.gather(
            *others[::2], *(self.draw(p, s) for s, p in enumerate(self.prompts)), *others[1::2]
        )
        found = together[len(others[::2]) :][: len(alone)]
        differ = sum(a.ids != b.ids for a, b in zip(alone, found, strict=True))
        require(
            differ <= len(alone) // 4,
            f"{differ} of {len(alone)} completions were others with requests beside them",
        )

    async def logp(self) -> None:
        """Log-probs are the model's own, of the distribution that was sampled from."""
        await self._compare_logp("", temperature=1.0)
        await self._compare_logp(" at temperature 0.7", temperature=0.7)
        await self._compare_logp(" with top_k 4", temperature=1.0, top_k=4)

    async def _compare_logp(self, how: str, temperature: float, top_k: int = 0) -> None:
        from isentrope.learner.proof import model_logp

        for prompt in self.prompts:
            drawn = await self.draw(prompt, temperature=temperature, top_k=top_k)
            expected = model_logp(
                self.model, self.weights, prompt, drawn.ids, temperature=temperature, top_k=top_k
            )
            for position, (ours, theirs) in enumerate(zip(expected, drawn.logp, strict=True)):
                require(
                    abs(ours - theirs) <= self.tolerance,
                    f"token {position} of a completion{how} has log-prob {theirs:.6g} by the "
                    f"engine and {ours:.6g} by the model",
                )

    async def stop(self) -> None:
        """A stop id ends the completion, and is kept."""
        for seed, prompt in enumerate(self.prompts):
            whole = await self.draw_the_same(prompt, seed)
            middle = whole.ids[len(whole.ids) // 2]
            expected = whole.ids[: whole.ids.index(middle) + 1]
            stopped = await self.draw_the_same(prompt, seed, stop_ids=(middle,))
            require(
                stopped.ids == expected,
                f"with stop id {middle}, where {whole.ids} was drawn without, it drew "
                f"{stopped.ids}, not {expected}",
            )
            require(
                stopped.finish_reason == "stop",
                f"finish_reason is {stopped.finish_reason!r} after a stop id",
            )

    async def length(self) -> None:
        """Without a stop id a completion is exactly as long as it may be."""
        for limit in (1, 2, TOKENS):
            found = await self.draw(self.prompts[0], max_tokens=limit)
            require(
                len(found.ids) == limit,
                f"with max_tokens {limit} and no stop ids it drew {len(found.ids)} tokens",
            )
            require(
                found.finish_reason == "length",
                f"finish_reason is {found.finish_reason!r} at max_tokens",
            )

    async def empty_prompt(self) -> None:
        """An empty prompt is refused."""
        await _require_refusal(self.draw(()), "an empty prompt")

    async def unknown_tensor(self) -> None:
        """Weights that the model does not have are refused, and nothing changes."""
        import torch

        assert self.engine is not None
        before = await self.draw_the_same(self.prompts[0])
        weights, _ = self._other_weights(VERSION)
        if weights.adapter is None:
            wrong = {**self.model.model.state_dict(), "no.such.weight": torch.zeros(2)}
            weights = attrs.evolve(weights, tensors=wrong)
        else:
            name = "base_model.model.no.such.layer.lora_{}.weight"
            more = {name.format(part): torch.zeros(RANK, RANK) for part in "AB"}
            adapter = attrs.evolve(weights.adapter, tensors={**weights.adapter.tensors, **more})
            weights = attrs.evolve(weights, adapter=adapter)
        await _require_refusal(self.engine.publish(weights), "an unknown tensor")
        after = await self.draw_the_same(self.prompts[0])
        require(
            (before.ids, before.version) == (after.ids, after.version)
            and np.allclose(before.logp, after.logp, rtol=0, atol=self.tolerance),
            "refused weights changed something",
        )

    async def publish(self) -> None:
        """Published weights are sampled from, under their version."""
        assert self.engine is not None
        weights, self.weights = self._other_weights(VERSION)
        await self.engine.publish(weights)
        self.version = VERSION
        await self.completion()
        await self._compare_logp(" after publishing", temperature=1.0)

    async def copies(self) -> None:
        """What the learner does to its weights after publishing does not reach the engine."""
        assert self.engine is not None
        weights, _ = self._other_weights(VERSION + 1)
        await self.engine.publish(weights)
        before = await self.draw_the_same(self.prompts[0])
        published = weights.tensors if weights.adapter is None else weights.adapter.tensors
        for tensor in published.values():
            tensor.mul_(-3)
        after = await self.draw_the_same(self.prompts[0])
        require(
            before.ids == after.ids
            and np.allclose(before.logp, after.logp, rtol=0, atol=self.tolerance),
            "a change to the published tensors changed what is sampled; copy them",
        )

    @property
    def takes_adapters(self) -> bool:
        """Whether publications bring adapters."""
        return bool(getattr(self.config, "takes_adapters", False))

    def _other_weights(self, version: int) -> tuple[WeightsRef, dict[str, Tensor]]:
        """Return other weights to publish, and the same as tensors of the model."""
        from isentrope.testing._model import adapted, perturbed

        if not self.takes_adapters:
            tensors = perturbed(self.model)
            return WeightsRef(version, tensors), tensors
        adapter, merged = adapted(self.model, RANK, seed=version)
        return WeightsRef(version, adapter=adapter), merged

    async def close(self) -> None:
        """Closing twice is allowed."""
        assert self.engine is not None
        self.closed = True
        await self.engine.close()
        await self.engine.close()


async def _require_refusal(call: Awaitable[object], what: str) -> None:
    try:
        await call
    except EngineError:
        return
    except Exception as error:
        require(False, f"{what} raised {describe(error)}, where an EngineError was expected")
    require(False, f"{what} was accepted, where an EngineError was expected")
