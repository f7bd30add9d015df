"""The configuration of a run: one frozen record, the same from Python, TOML and the run folder."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import attrs
import tomli_w
from attrs import field, frozen, validators

from isentrope.algorithms import Algorithm
from isentrope.components import component, id_of, make
from isentrope.engines import EngineConfig, EngineUse, Sampling
from isentrope.errors import ConfigError, IsentropeError, UnknownNameError, nearest_path, within
from isentrope.models import ModelConfig
from isentrope.plugins import registry
from isentrope.specs import EnvRef
from isentrope.structuring import fields, structure, unstructure
from isentrope.trackers import TrackerConfig
from isentrope.validation import flag, instance_of, one_of, real, whole
from isentrope.workers.limits import WorkerConfig

if TYPE_CHECKING:
    import torch

_DEFAULT_IDS = {"model": "tiny-qwen3", "engine": "transformers"}
"""Ids, looked up among the plugins like any other."""
History = Literal["append", "template"]
Head = Literal["chunked", "cut-cross-entropy"]
Dtype = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["constant", "linear", "cosine"]
_one_or_more = whole(1)
_positive = real(above=0)


@frozen(kw_only=True)
class EarlyStop:
    """How many episodes suffice, where a few stragglers hold up all the others.

    Which are left out depends on how long they take.
    """

    of_group: float = field(default=2 / 3, validator=real(0, 1))
    """Share of every group."""
    of_all: float = field(default=0.9, validator=real(0, 1))
    """Share of all."""


@frozen(kw_only=True)
class RolloutConfig:
    """How experience is collected."""

    split: str = "train"
    """The environment's task split to train on."""
    tasks: int = field(default=32, validator=_one_or_more)
    """Tasks (groups) per iteration."""
    group: int = field(
        default=8,
        validator=whole(
            2,
            "an advantage compares rollouts of the same task, and one has nothing to be compared "
            "with",
        ),
    )
    """Rollouts of each task, G."""
    temperature: float = field(default=1.0, validator=_positive)
    top_p: float = field(default=1.0, validator=real(high=1, above=0))
    top_k: int = field(default=0, validator=whole(0))
    max_tokens: int = field(default=256, validator=_one_or_more)
    """Sampled tokens per turn; a turn cut off here ends the episode as truncated."""
    max_turns: int = field(default=30, validator=_one_or_more)
    """Turns per episode."""
    context: int | None = field(default=None, validator=validators.optional(_one_or_more))
    """Tokens per episode, prompt included; None: what the model's positions allow."""
    history: History = field(default="append", validator=one_of(get_args(History)))
    """What the policy sees of its earlier turns: what it sampled, or what the chat template makes
    of them. Where that differs, a new segment begins: more to learn from, and to compute."""
    max_seconds: float | None = field(default=None, validator=validators.optional(_positive))
    """Wall time of an episode. One whose policy is at work by then is truncated, any other failed
    (``timeout``). Results then depend on the machine's speed. None: no limit."""
    retries: int = field(default=1, validator=whole(0))
    """How often an episode is begun again, on a fresh environment, after its environment failed."""
    min_group: int = field(default=2, validator=whole(2))
    """Rollouts of a group that must be left for it to be learnt from."""
    max_failure_rate: float = field(default=0.5, validator=real(0, 1))
    """Share of an iteration's episodes that may fail before the run stops."""
    early_stop: EarlyStop | None = field(
        default=None, validator=validators.optional(instance_of(EarlyStop))
    )
    """When to give up the slowest episodes of an iteration, in training; None: never."""
    staleness: int = field(default=0, validator=whole(0))
    """How many updates old the policy may be that sampled what is learnt from. 0: collecting and
    learning take turns. 1: the next iteration's episodes are collected while this one's are learnt
    from. Results then depend on the machine's speed, and the entropy that is logged and controlled
    is that of the policies that sampled."""
    workers: WorkerConfig = field(factory=WorkerConfig, validator=instance_of(WorkerConfig))

    def context_within(self, positions: int) -> int:
        """Return how many tokens an episode may have, given a model's positions."""
        if self.context is not None and self.context > positions:
            raise ConfigError(
                f"rollout.context ({self.context} tokens) is more than the model's positions "
                f"({positions})."
            )
        return self.context or positions

    def sampling(self, stop_ids: tuple[int, ...]) -> Sampling:
        """Return the sampling parameters of a turn."""
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop_ids=stop_ids,
        )


@frozen(kw_only=True)
class LoraConfig:
    """Train low-rank adapters (PEFT) on every linear layer, not the full weights."""

    r: int = field(default=16, validator=_one_or_more)
    alpha: float = field(default=32.0, validator=_positive)
    head: bool = field(default=False, validator=flag())
    """Also adapt the output layer, unless it is the embedding too."""


@frozen(kw_only=True)
class LearnerConfig:
    """How the policy is updated: AdamW."""

    lr: float = field(default=3e-4, validator=real(high=1, above=0))
    schedule: Schedule = field(default="constant", validator=one_of(get_args(Schedule)))
    """What becomes of the rate until the last of `TrainConfig.iterations`: it stays, or falls to
    zero along a line or a cosine."""
    warmup: int = field(default=0, validator=whole(0))
    """Iterations over which the rate first rises from zero."""
    weight_decay: float = field(default=0.0, validator=real(0))
    """Of matrices; biases and gains of norms are left alone."""
    betas: tuple[float, float] = field(default=(0.9, 0.95))
    max_grad_norm: float = field(default=1.0, validator=_positive)
    """Gradients are scaled down to this L2 norm."""
    lora: LoraConfig | None = field(
        default=None, validator=validators.optional(instance_of(LoraConfig))
    )
    """None: train the full weights."""
    head: Head = field(default="chunked", validator=one_of(get_args(Head)))
    """How log-probs come from hidden states: Isentrope's own way, or cut-cross-entropy's, which
    knows no entropy and whose softmax gradient is not exact (package extra ``gpu``)."""
    dtype: Dtype = field(default="float32", validator=one_of(get_args(Dtype)))
    """What the policy computes in. Its trained weights, their gradients' sums, log-probs and ratios
    are float32 whatever it is; float16 scales the loss, and is for GPUs (docs/numerics.md)."""
    micro_batch_tokens: int = field(default=4096, validator=_one_or_more)
    """Tokens per forward pass of a rank; changes memory and speed, never the gradient."""
    activation_checkpointing: bool = field(default=False, validator=flag())
    """Compute each layer again in the backward pass instead of keeping its activations."""
    cpu_offload: bool = field(default=False, validator=flag())
    """Keep the shards of a policy on a GPU in the CPU's memory when they are not needed."""
    probe: int = field(default=32, validator=whole(0))
    """Episodes of each iteration whose exact entropy is measured before and after the update, on
    the same tokens, beside the change that theory predicts. 0: none."""

    def shards(self, ranks: int) -> bool:
        """Whether so many ranks wrap the policy in FSDP2; a single one may have to as well."""
        return ranks > 1 or self.dtype != "float32" or self.cpu_offload

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype`, as torch has it."""
        import torch

        return getattr(torch, self.dtype)  # type: ignore[no-any-return]  # its names are torch's

    @betas.validator
    def _check_betas(self, _: attrs.Attribute[Any], value: object) -> None:
        pair = value if isinstance(value, (tuple, list)) and len(value) == 2 else ()
        if not pair or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in pair):
            raise ConfigError(f"LearnerConfig.betas must be two numbers in [0, 1); got {value!r}.")


@frozen(kw_only=True)
class EvaluationConfig:
    """How the policy is evaluated while it trains; the best one is kept (`Run.best`)."""

    every: int = field(default=10, validator=_one_or_more)
    """Iterations between evaluations."""
    split: str = "dev"
    """The environment's task split."""
    k: int = field(default=4, validator=_one_or_more)
    """Rollouts per task."""
    tasks: int | None = field(
        default=64,
        validator=validators.optional(_one_or_more),  # type: ignore[arg-type]  # 64 is an int
    )
    """Only the first so many tasks; None: all."""


@frozen(kw_only=True)
class TrainConfig:
    """Everything that decides a training run.

    The composition is checked here, before anything is loaded: environment and split, algorithm
    against sampling, sizes.
    """

    env: EnvRef
    algorithm: Algorithm
    model: ModelConfig = field(factory=lambda: component("model", _DEFAULT_IDS["model"]))
    engine: EngineConfig = field(factory=lambda: component("engine", _DEFAULT_IDS["engine"]))
    rollout: RolloutConfig = field(factory=RolloutConfig)
    learner: LearnerConfig = field(factory=LearnerConfig)
    evaluation: EvaluationConfig | None = None
    """None: no evaluation while training."""
    initial_entropy: float | None = field(default=None, validator=validators.optional(real(0)))
    """H_0, nats per token, for controllers that hold the initial entropy. None: that of this run's
    first iteration. A run that goes on from another's policy may keep the other's."""
    iterations: int = field(default=100, validator=_one_or_more)
    seed: int = field(default=0, validator=whole(0))
    """Decides everything random in the run."""
    threads: int = field(default=1, validator=_one_or_more)
    """torch's intra-op threads. One is fastest for tiny models: with more, handing work out costs
    more than the work (measured: 10 to 30 times slower on a busy two-core machine)."""
    stop_after_idle: int = field(default=10, validator=_one_or_more)
    """Iterations in a row with nothing to learn from (every group's rewards equal) that end the
    run."""
    checkpoint_every: int = field(default=10, validator=_one_or_more)
    """Iterations between checkpoints; there is always one at the end."""
    trackers: tuple[TrackerConfig, ...] = field(default=(), converter=tuple)
    """What shows the run elsewhere while it trains: ``tensorboard``, ``wandb``, ..."""
    out: Path | None = None
    """Run folder; None: a new one under ``runs/``."""

    def __attrs_post_init__(self) -> None:
        """Check what only the whole can tell."""
        self.check_composition()
        self.count_tasks()

    def check_composition(self) -> None:
        """Raise `ConfigError` where parts do not go together; the environment is not made."""
        with_ratio = self.algorithm.with_ratio
        if with_ratio and (self.rollout.top_p < 1 or self.rollout.top_k > 0):
            raise ConfigError(
                f"{type(with_ratio[0]).__name__} uses importance ratios, which sampling "
                f"with top_p={self.rollout.top_p:g}, top_k={self.rollout.top_k} falsifies (the "
                "learner's log-probs are those of the whole distribution): use top_p=1 and "
                "top_k=0, or an objective without ratios."
            )
        if self.learner.warmup >= self.iterations:
            raise ConfigError(
                f"learner.warmup ({self.learner.warmup}) must be less than the iterations "
                f"({self.iterations}), or the full rate is never reached."
            )
        for name, times in Counter(map(id_of, self.trackers)).items():
            if times > 1:
                raise ConfigError(f"trackers names {name!r} {times} times: once is enough.")
        if self.learner.head == "cut-cross-entropy":
            self._check_log_probs_suffice()
        if getattr(self.engine, "takes_adapters", False) and self.learner.lora is None:
            raise ConfigError(
                f"{type(self.engine).__name__} is sent adapters, not whole weights: set "
                "learner.lora = {}."
            )
        if self.rollout.staleness and not self.algorithm.corrects_sampling:
            raise ConfigError(
                f"With rollout.staleness = {self.rollout.staleness}, older policies sample what is "
                "learnt from, and nothing in the algorithm weighs their tokens: add a transform "
                'that does, such as {id = "truncated-importance"}, after all others.'
            )
        if "reference_logp" in self.algorithm.needs and self.learner.lora is None:
            raise ConfigError(
                "The algorithm compares the policy with the one that the run starts from, which is "
                "kept only where adapters are trained: set learner.lora = {}."
            )

    def engine_use(self, context: int) -> EngineUse:
        """Return what the run does with its engine; context: tokens of the longest episode."""
        return EngineUse(
            context=context,
            dtype=self.learner.dtype,
            rank=None if self.learner.lora is None else self.learner.lora.r,
            staleness=self.rollout.staleness,
        )

    def count_tasks(self) -> dict[str, int]:
        """Make the environment, and return how many tasks each split has that the run uses.

        Raises `ConfigError` where it cannot be made, or has no tasks in a split.
        """
        with within("env"):
            env = make(self.env.id, **self.env.config)
        found: dict[str, int] = {}
        for split, place in self._splits():
            with within(place):
                if not env.tasks[split]:
                    raise ConfigError(f"{split!r} of {self.env.id!r} has no tasks.")
                found[split] = len(env.tasks[split])
        env.close()
        return found

    def _check_log_probs_suffice(self) -> None:
        """Refuse what needs more of the head than cut-cross-entropy has."""
        needs = ", ".join(sorted(self.algorithm.needs_of_experience))
        wanted = f"the algorithm needs {needs}" if needs else "learner.probe measures entropy"
        if needs or self.learner.probe:
            raise ConfigError(
                f"learner.head = 'cut-cross-entropy' computes log-probs only, and {wanted}: use "
                "learner.head = 'chunked'" + ("." if needs else ", or learner.probe = 0.")
            )

    def _splits(self) -> list[tuple[str, str]]:
        splits = [(self.rollout.split, "rollout.split")]
        if self.evaluation is not None:
            splits.append((self.evaluation.split, "evaluation.split"))
        return splits


def read_config(
    source: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    kind: type[TrainConfig] = TrainConfig,
) -> TrainConfig:
    """Make a `TrainConfig` from a TOML file, a mapping or another one, with changes on top.

    overrides: keys, dotted or nested, to values; tables are merged, all else is replaced. kind:
    what to make, of the same fields.

    Raises `ConfigError`, with the nearest right name where one is wrong.
    """
    if isinstance(source, TrainConfig):
        data = {name: getattr(source, name) for name in fields(TrainConfig)}
    elif isinstance(source, (str, Path)):
        data = read_toml(Path(source))
    else:
        data = dict(source or {})
    try:
        for key, value in sorted((overrides or {}).items(), key=_names_a_part_last):
            _merge(data, key.split("."), value)
        for key, default in _DEFAULT_IDS.items():
            if isinstance(data.get(key), Mapping):
                data[key] = {"id": default, **data[key]}
        _check_complete(data)
        return structure(data, kind)
    except IsentropeError as error:
        if isinstance(source, (str, Path)):
            error.place = f"{source}, {error.place}" if error.place else str(source)
        raise


def _names_a_part_last(override: tuple[str, Any]) -> tuple[bool, int]:
    """Order overrides so that what chooses a component comes before what changes it."""
    *_, last = path = override[0].split(".")
    return last not in ("id", "recipe"), len(path)


def _check_complete(data: Mapping[str, Any]) -> None:
    """Name a misspelt key before a missing one: it may be the one that is missing."""
    for key in data:
        if key not in fields(TrainConfig):
            raise UnknownNameError("Key", key, fields(TrainConfig))
    for name, kind in (("env", "environment"), ("algorithm", "recipe")):
        if name not in data:
            known = ", ".join(sorted(registry().specs(kind)))
            raise ConfigError(f"{name} is missing: choose one of {known}.")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"Config file {path} cannot be read: {error.strerror}.{nearest_path(path)}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file {path} is not valid TOML: {error}.") from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse ``key.path=value`` from the command line; values are TOML, or else plain strings."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip() or "\n" in setting.strip():
            raise ConfigError(f"--set expects key=value, on one line; got {setting!r}.")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = text.strip()
    return parsed


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables of what has dotted keys."""
    found: dict[str, Any] = {}
    for path, value in settings.items():
        _merge(found, path.split("."), value)
    return found


def to_toml(config: TrainConfig) -> str:
    """Write a config as TOML that `read_config` reads back to an equal one."""
    return tomli_w.dumps(_without_none(unstructure(config)))


def _merge(data: dict[str, Any], path: list[str], value: Any) -> None:
    """Set ``data[path]``, going through tables and configs alike; a table is merged in."""
    key, rest = path[0], path[1:]
    if rest:
        value = {".".join(rest): value}
    if not isinstance(value, Mapping):
        data[key] = value
        return
    fresh = "id" in value or "recipe" in value  # names another component: begin from it
    with within(key):
        table = {} if fresh else _as_table(data.get(key), key)
        for inner, item in value.items():
            _merge(table, str(inner).split("."), item)
    data[key] = table


def _as_table(value: Any, key: str) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"recipe" if key == "algorithm" else "id": value}
    plain = unstructure(value) if attrs.has(type(value)) else value
    if isinstance(plain, Mapping):
        return dict(plain)
    raise ConfigError(f"must be a table to have keys that can be set; it is {value!r}.")


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is None is left out, which reads back as its default, None."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value]
    return value
