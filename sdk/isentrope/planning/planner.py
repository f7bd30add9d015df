"""How a plan is made: from the configuration, the model's shape, and what is on this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from isentrope.components import env_spec, id_of
from isentrope.config import LearnerConfig, TrainConfig, read_config
from isentrope.errors import ConfigError, IsentropeError
from isentrope.loop import resumed_config
from isentrope.planning.plan import (
    MemoryRow,
    Plan,
    PlannedIteration,
    PlannedMemory,
    PlannedModel,
    PlannedPart,
)
from isentrope.plugins import registry
from isentrope.runs import Run, check_free
from isentrope.tracking import check_trackers
from isentrope.workers.nursery import kept_warm

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from isentrope.learner.memory import LearnerMemory

GIB = 1024**3


@kept_warm()
def plan(
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    resume: Run | str | Path | None = None,
    gpus: str | None = None,
    **overrides: Any,
) -> Plan:
    """Say what `isentrope.train` would do with this configuration, and what memory that takes.

    Makes no run folder, loads no weights, starts no engine; only the environment is made, to count
    its tasks.

    gpus: what the learner would have, if that is not what is here: ``"8x80"`` for eight of 80 GiB.
    Else it is this machine, with as many ranks as torchrun's ``WORLD_SIZE`` says, or one.

    Raises `ConfigError` where the composition cannot work, as `isentrope.train` does; what else
    keeps the run from starting is in the plan.
    """
    if resume is not None:
        run = resume if isinstance(resume, Run) else Run(Path(resume))
        resolved = resumed_config(run, config, overrides, _Unasked)
    else:
        run = None
        resolved = read_config(config, overrides, _Unasked)
    return _Planner(resolved, gpus, run).plan()


@frozen(kw_only=True)
class _Unasked(TrainConfig):
    """A configuration whose environment was not made: it may not be installed."""

    def __attrs_post_init__(self) -> None:
        """Check all else."""
        self.check_composition()


@attrs.define
class _Planner:
    """A plan in the making."""

    config: TrainConfig
    gpus: str | None
    run: Run | None
    missing: list[str] = field(factory=list, init=False)
    problems: list[str] = field(factory=list, init=False)
    notes: list[str] = field(factory=list, init=False)

    def plan(self) -> Plan:
        ranks, limit = self._device()
        config = self.config
        if self.run is None and config.out is not None:
            with self._noted():
                check_free(config.out)
        if self.run is not None:
            done = len(self.run.metrics)
            self.notes.append(f"The run goes on after {done} of {config.iterations} iterations.")
        with self._noted():
            check_trackers(config.trackers)
        tasks = self._tasks()
        for part in (config.model, config.engine):
            absent = getattr(part, "missing", lambda: None)()
            if absent is not None:
                self.missing.append(absent)
        architecture = self._architecture()
        model = memory = iteration = None
        context = config.rollout.context
        if architecture is not None:
            with self._noted():
                context = config.rollout.context_within(_positions(architecture))
                model, memory = self._sizes(architecture, context, ranks, limit)
        if context is not None:
            iteration = _iteration(config, context)
        return Plan(
            config,
            tuple(_parts(config)),
            tasks,
            model,
            memory,
            iteration,
            tuple(self.missing),
            tuple(self.problems),
            tuple(self.notes),
        )

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Note what is wrong, and go on."""
        try:
            yield
        except IsentropeError as error:
            self.problems.append(str(error))

    @property
    def device(self) -> str:
        """Where the policy computes, without a number."""
        return str(getattr(self.config.model, "device", "cpu")).partition(":")[0]

    def _device(self) -> tuple[int, int | None]:
        """Return how many ranks there are, and the bytes that each has."""
        import torch

        if self.gpus is not None:
            return self._given()
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if self.device == "cpu":
            if self.config.learner.cpu_offload:
                self.problems.append(
                    "learner.cpu_offload takes a policy off a GPU, but it is on the CPU."
                )
            return ranks, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks
        if not torch.cuda.is_available():
            self.missing.append(
                f"The model's device is {self.device!r}, and torch sees no GPU here: to plan for "
                "eight of 80 GiB elsewhere, add --gpus 8x80."
            )
            return ranks, None
        if ranks > torch.cuda.device_count():
            self.missing.append(
                f"There are {ranks} ranks (WORLD_SIZE), and {torch.cuda.device_count()} GPUs here."
            )
        return ranks, torch.cuda.get_device_properties(0).total_memory

    def _given(self) -> tuple[int, int]:
        found = re.fullmatch(r"([1-9]\d*)x(\d+(?:\.\d+)?)", self.gpus or "")
        if found is None:
            raise ConfigError(f"gpus must be like 8x80, eight of 80 GiB each; got {self.gpus!r}.")
        if self.device == "cpu":
            raise ConfigError(
                f"gpus is {self.gpus}, but the model is on the CPU: set model.device = 'cuda'."
            )
        return int(found[1]), int(float(found[2]) * GIB)

    def _tasks(self) -> dict[str, int] | None:
        ref = self.config.env
        spec = env_spec(ref.id)
        if spec.python is not None and not Path(spec.python).is_file():
            setup = f": {spec.setup}" if spec.setup else ""
            self.missing.append(f"The environment {ref.id!r} is not installed here{setup}.")
            return None
        with self._noted():
            return self.config.count_tasks()
        return None

    def _architecture(self) -> PreTrainedConfig | None:
        asked = getattr(self.config.model, "architecture", None)
        if asked is None:
            self.notes.append(
                f"The model {id_of(self.config.model)!r} does not say its shape before it is "
                "built, so memory is not planned."
            )
            return None
        try:
            return asked()  # type: ignore[no-any-return]  # by the protocol
        except ConfigError as error:
            self.missing.append(str(error))
            return None

    def _sizes(
        self, architecture: PreTrainedConfig, context: int, ranks: int, limit: int | None
    ) -> tuple[PlannedModel, PlannedMemory]:
        config = self.config
        model, learner = _measured(
            architecture.to_json_string(use_diff=False),
            config.learner,
            config.rollout.temperature,
            ranks,
            context,
            config.algorithm.needs_of_experience,
            self.device,
        )
        engine = self._engine(architecture, context)
        memory = PlannedMemory(
            tuple(_rows(learner, engine, config.learner, ranks, self.device)),
            ranks,
            self.device,
            limit,
        )
        self._check(memory, context)
        self._note(model, learner, ranks)
        return model, memory

    def _engine(self, architecture: PreTrainedConfig, context: int) -> Mapping[str, int]:
        """Return what the engine takes of the first rank's device."""
        config = self.config
        told = getattr(config.engine, "memory", None)
        if told is None:
            self.notes.append(f"The engine {id_of(config.engine)!r} does not say what it takes.")
            return {}
        at_once = config.rollout.tasks * config.rollout.group
        with self._noted():
            found: Mapping[str, int] = told(
                on_meta(architecture), config.engine_use(context), at_once
            )
            device = str(getattr(config.engine, "device", None) or self.device).partition(":")[0]
            if found and device != self.device:
                self.notes.append(f"The engine takes its share of another device, {device}.")
                return {}
            if not found:
                self.notes.append(
                    "What the engine's servers take is their own, also where they are on the "
                    "learner's GPUs; whether they answer is asked when the run starts."
                )
            return found
        return {}

    def _check(self, memory: PlannedMemory, context: int) -> None:
        """Note where it does not fit."""
        from isentrope.learner.rehearsal import advice

        if memory.limit is None:
            return
        total, there = memory.total, f"and there are {memory.limit / GIB:,.1f}"
        if total.starting > memory.limit:
            self.problems.append(
                f"While the run starts, its first rank needs {total.starting / GIB:,.1f} GiB, "
                f"{there}: "
                + (
                    "it loads the whole model, in float32."
                    if memory.device == "cpu"
                    else "let more ranks share the weights, or servers sample."
                )
            )
        if total.collecting > memory.limit:
            self.problems.append(
                f"While episodes are sampled, the first rank needs {total.collecting / GIB:,.1f} "
                f"GiB, {there}: lower rollout.context or the engine's batch, or let servers sample."
            )
        if total.learning > memory.limit:
            needed = f"{total.learning / GIB:,.1f} GiB are needed, {there}"
            self.problems.append(advice(self.config.learner, context, needed))

    def _note(self, model: PlannedModel, learner: LearnerMemory, ranks: int) -> None:
        """Say what is not in the table."""
        config = self.config
        if self.device == "cpu":
            self.notes.append("Not in the table: Python and its libraries, environments, episodes.")
        else:
            whole = f"{4 * model.parameters / GIB:,.1f} GiB"
            sharded = config.learner.shards(ranks)
            sent = "sends every rank its shards" if sharded else "hands it to the GPU"
            self.notes += [
                "Not in the table: CUDA's context, NCCL's buffers, and what the allocator leaves "
                "unused between tensors.",
                f"The machine's own memory: the first rank loads the model there ({whole}, in "
                f"float32), {sent}, and gathers the policy there to save it.",
            ]
        if config.learner.cpu_offload:
            shards = (learner.resident + learner.gradients) / GIB
            self.notes.append(f"The shards are in the machine's memory: {shards:,.1f} GiB a rank.")
        if config.learner.head == "cut-cross-entropy":
            self.notes.append("The head is counted as Isentrope's own, which takes more on a GPU.")
        if "reference_logp" in config.algorithm.needs:
            self.notes.append(
                "The start policy's log-probs are another pass with the adapters switched off: no "
                "second copy of the model."
            )


def on_meta(architecture: PreTrainedConfig) -> PreTrainedModel:
    """Return a model without numbers, in float32 as training wants it.

    Raises `ConfigError` where there is no causal language model of this config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # whose methods are not typed
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(architecture, dtype=torch.float32)
    except ValueError as error:
        name = type(architecture).__name__
        raise ConfigError(f"transformers has no causal language model of a {name}.") from error
    return model


@lru_cache(maxsize=64)  # a table of recipes and seeds asks for the same again and again
def _measured(
    architecture: str,
    learner: LearnerConfig,
    temperature: float,
    ranks: int,
    context: int,
    needs: frozenset[str],
    device: str,
) -> tuple[PlannedModel, LearnerMemory]:
    """Return a model's shape, and what learning takes; architecture: a config as JSON."""
    from transformers import AutoConfig

    from isentrope.learner.memory import learner_memory
    from isentrope.learner.policy import Policy

    config = AutoConfig.for_model(**json.loads(architecture))
    model = on_meta(config)
    parameters = sum(p.numel() for p in model.parameters())
    policy = Policy(model, temperature, learner.lora, learner.head)
    policy.check_needs(needs)
    policy.check_context(context)
    trainable = sum(p.numel() for p in policy.trainable())
    found = PlannedModel(
        name=policy.name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        positions=_positions(config),
        parameters=parameters,
        trainable=trainable,
    )
    memory = learner_memory(
        policy, learner, ranks=ranks, context=context, needs=needs, device=device
    )
    return found, memory


def _positions(architecture: PreTrainedConfig) -> int:
    positions = getattr(architecture, "max_position_embeddings", None)
    if not isinstance(positions, int):
        name = type(architecture).__name__
        raise ConfigError(f"{name} has no max_position_embeddings; it is not supported.")
    return positions


def _rows(
    learner: LearnerMemory,
    engine: Mapping[str, int],
    config: LearnerConfig,
    ranks: int,
    device: str,
) -> Iterator[MemoryRow]:
    """Return what takes memory of the first rank, by name; nothing that takes none."""
    sharded, here = config.shards(ranks), not config.cpu_offload
    weights, rest = learner.frozen * here, learner.trained * here
    apart = device == "cpu" and sharded  # shards take the place of what was loaded
    if apart:
        yield MemoryRow("the model as it is loaded, float32", starting=learner.loaded)
    elif sharded:
        yield MemoryRow("a layer, whole until it is sharded", starting=learner.loaded)
    if learner.frozen:
        stored = config.dtype if sharded else "float32"
        yield MemoryRow(f"frozen weights, {stored}", 0 if apart else weights, weights, weights)
    yield MemoryRow("trained weights, float32", 0 if apart else rest, rest, rest)
    adam = learner.optimizer * here
    yield MemoryRow("AdamW's moments, float32", 0, adam, adam)
    yield MemoryRow("gradients, float32", learning=learner.gradients * here)
    if sharded:
        yield MemoryRow("layers gathered whole", learning=learner.gathered)
    yield MemoryRow("activations kept for the backward pass", learning=learner.kept)
    yield MemoryRow("beside them at its peak", learning=learner.passing)
    for name, size in engine.items():
        stays = name == "weights"
        of = f"the engine's {name}"
        yield MemoryRow(of, size if stays else 0, size, size if stays else 0)


def _iteration(config: TrainConfig, context: int) -> PlannedIteration:
    rollout, algorithm = config.rollout, config.algorithm
    episodes = rollout.tasks * rollout.group
    minibatch = min(algorithm.minibatch or episodes, episodes)
    return PlannedIteration(
        episodes=episodes,
        context=context,
        sampled=episodes * min(context, rollout.max_turns * rollout.max_tokens),
        steps=algorithm.epochs * -(-episodes // minibatch),
    )


def _parts(config: TrainConfig) -> Iterator[PlannedPart]:
    """Return every component of the run, and where it comes from."""
    yield _part("env", config.env.id, "environment")
    yield _of_instance("model", config.model)
    yield _of_instance("engine", config.engine)
    if config.algorithm.recipe:
        yield _part("recipe", config.algorithm.recipe, "recipe")
    for slot, part in config.algorithm.slots().items():
        yield _of_instance(slot, part)
    for tracker in config.trackers:
        yield _of_instance("tracker", tracker)


def _part(slot: str, name: str, kind: str) -> PlannedPart:
    return PlannedPart(slot, name, registry().origin(kind, name))


def _of_instance(slot: str, instance: object) -> PlannedPart:
    name = id_of(instance)
    brought = [r for r in registry().rows if r.id == name and r.state == "ok"]
    return PlannedPart(slot, name, brought[0].origin if brought else name)
