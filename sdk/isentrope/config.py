"""The configuration of a run: one frozen record, the same from Python, TOML and the run folder."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli_w
from attrs import field, frozen, validators

from isentrope.algorithms import Algorithm
from isentrope.components import component, make, structure, unstructure
from isentrope.engines import EngineConfig, Sampling
from isentrope.errors import ConfigError
from isentrope.models import ModelConfig
from isentrope.plugins import registry
from isentrope.specs import EnvRef

_positive = validators.gt(0.0)
_at_least_one = validators.ge(1)


@frozen(kw_only=True)
class RolloutConfig:
    """How experience is collected."""

    split: str = "train"
    """The environment's task split to train on."""
    tasks: int = field(default=32, validator=_at_least_one)
    """Tasks (groups) per iteration."""
    group: int = field(default=8)
    """Rollouts of each task, G."""
    temperature: float = field(default=1.0, validator=_positive)
    top_p: float = field(default=1.0, validator=[_positive, validators.le(1.0)])
    top_k: int = field(default=0, validator=validators.ge(0))
    max_tokens: int = field(default=256, validator=_at_least_one)
    """Sampled tokens per turn; a turn cut off here ends the episode as truncated."""
    max_turns: int = field(default=30, validator=_at_least_one)
    """Turns per episode."""
    context: int | None = field(default=None, validator=validators.optional(_at_least_one))
    """Tokens per episode, prompt included; None: what the model's positions allow."""
    max_failure_rate: float = field(
        default=0.5, validator=[validators.ge(0.0), validators.le(1.0)]
    )
    """Share of an iteration's episodes that may fail before the run stops."""

    @group.validator
    def _check_group(self, _: attrs.Attribute[int], value: int) -> None:
        if value < 2:
            raise ConfigError(
                f"group must be at least 2; got {value}. An advantage compares rollouts of the "
                "same task, and one has nothing to be compared with."
            )

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
    """Train low-rank adapters (PEFT) on every linear layer but the head, not the full weights."""

    r: int = field(default=16, validator=_at_least_one)
    alpha: float = field(default=32.0, validator=_positive)


@frozen(kw_only=True)
class LearnerConfig:
    """How the policy is updated: AdamW at a constant rate."""

    lr: float = field(default=3e-4, validator=[_positive, validators.lt(1.0)])
    weight_decay: float = field(default=0.0, validator=validators.ge(0.0))
    betas: tuple[float, float] = field(default=(0.9, 0.95))
    max_grad_norm: float = field(default=1.0, validator=_positive)
    """Gradients are scaled down to this L2 norm."""
    lora: LoraConfig | None = None
    """None: train the full weights."""
    micro_batch_tokens: int = field(default=16384, validator=_at_least_one)
    """Tokens (padding included) per forward pass; changes memory and speed, never the gradient."""

    @betas.validator
    def _check_betas(self, _: attrs.Attribute[Any], value: tuple[float, float]) -> None:
        if not all(0 <= beta < 1 for beta in value):
            raise ConfigError(f"betas must be within [0, 1); got {value}.")


@frozen(kw_only=True)
class TrainConfig:
    """Everything that decides a training run.

    The composition is checked here, before anything is loaded: environment and split, algorithm
    against sampling, sizes.
    """

    env: EnvRef
    algorithm: Algorithm
    model: ModelConfig = field(factory=lambda: component("model", "tiny-qwen3"))
    engine: EngineConfig = field(factory=lambda: component("engine", "transformers"))
    rollout: RolloutConfig = field(factory=RolloutConfig)
    learner: LearnerConfig = field(factory=LearnerConfig)
    iterations: int = field(default=100, validator=_at_least_one)
    seed: int = field(default=0, validator=validators.ge(0))
    """Decides everything random in the run."""
    threads: int = field(default=1, validator=_at_least_one)
    """torch's intra-op threads. One is fastest for tiny models: with more, handing work out costs
    more than the work (measured: 10 to 30 times slower on a busy two-core machine)."""
    stop_after_idle: int = field(default=10, validator=_at_least_one)
    """Iterations in a row with nothing to learn from (every group's rewards equal) that end the
    run."""
    out: Path | None = None
    """Run folder; None: a new one under ``runs/``."""

    def __attrs_post_init__(self) -> None:
        """Check what only the whole can tell."""
        if self.algorithm.objective.uses_ratio and (
            self.rollout.top_p < 1 or self.rollout.top_k > 0
        ):
            raise ConfigError(
                f"{type(self.algorithm.objective).__name__} uses importance ratios, which sampling "
                f"with top_p={self.rollout.top_p:g}, top_k={self.rollout.top_k} falsifies (the "
                "learner's log-probs are those of the whole distribution): use top_p=1 and "
                "top_k=0, or an objective without ratios."
            )
        env = make(self.env.id, **self.env.config)
        try:
            if not env.tasks[self.rollout.split]:
                raise ConfigError(f"Split {self.rollout.split!r} of {self.env.id!r} has no tasks.")
        finally:
            env.close()


def read_config(
    source: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Make a `TrainConfig` from a TOML file, a mapping or another one, with changes on top.

    overrides: keys, dotted or nested, to values; tables are merged, all else is replaced.

    Raises `ConfigError`, with the nearest right name where one is wrong.
    """
    if isinstance(source, TrainConfig):
        data = {a.name: getattr(source, a.name) for a in attrs.fields(TrainConfig)}
    elif isinstance(source, (str, Path)):
        data = read_toml(Path(source))
    else:
        data = dict(source or {})
    for key, value in (overrides or {}).items():
        _merge(data, key.split("."), value)
    for name, kind in (("env", "environment"), ("algorithm", "recipe")):
        if name not in data:
            known = ", ".join(sorted(registry().specs(kind)))
            raise ConfigError(f"{name} is missing: choose one of {known}.")
    try:
        return structure(data, TrainConfig)
    except ConfigError as error:
        if isinstance(source, (str, Path)):
            error.place = f"{source}, {error.place}" if error.place else str(source)
        raise


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Config file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file {path} is not valid TOML: {error}.") from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse ``key.path=value`` from the command line; values are TOML, or else plain strings."""
    parsed = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set expects key=value; got {setting!r}.")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = text.strip()
    return parsed


def to_toml(config: TrainConfig) -> str:
    """Write a config as TOML that `read_config` reads back to an equal one."""
    return tomli_w.dumps(_without_none(unstructure(config)))


def _merge(data: dict[str, Any], path: list[str], value: Any) -> None:
    """Set ``data[path]``, going through tables and configs alike; a table is merged in."""
    key, rest = path[0], path[1:]
    present = data.get(key)
    if rest:
        table = _as_table(present)
        _merge(table, rest, value)
        data[key] = table
    elif isinstance(value, Mapping) and present is not None and "id" not in value:
        table = _as_table(present)
        for inner, item in value.items():
            _merge(table, [inner], item)
        data[key] = table
    else:
        data[key] = value


def _as_table(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        return {"id": value}
    if isinstance(value, EnvRef):
        return {"id": value.id, **value.config}
    if attrs.has(type(value)):
        table: dict[str, Any] = unstructure(value)
        return table
    raise ConfigError(f"{value!r} has no keys to set.")


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is None is left out, which reads back as its default, None."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value]
    return value
