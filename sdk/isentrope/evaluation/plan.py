"""What is to be evaluated, and how: a policy, an environment, limits, an engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from isentrope.components import make
from isentrope.config import Dtype, RolloutConfig, read_toml
from isentrope.engines import EngineConfig, EngineUse
from isentrope.environments import Task
from isentrope.errors import ConfigError, within
from isentrope.models import LanguageModel, ModelConfig
from isentrope.plugins import registry
from isentrope.rollout.collector import Collector, RolloutCollector
from isentrope.rollout.endpoint import Endpoint, EndpointCollector, is_url
from isentrope.runs import Run, is_run
from isentrope.specs import EnvRef
from isentrope.structuring import edit, structure, unstructure

_OF_TRAINING = frozenset(
    [
        "split",
        "tasks",
        "group",
        "retries",
        "min_group",
        "max_failure_rate",
        "early_stop",
        "staleness",
        "workers",
    ]
)
"""Keys of `RolloutConfig` that do not change what an attempt comes to."""
_OF_TOKENS = frozenset(["context", "history"])
"""Keys of `RolloutConfig` that say nothing to an endpoint."""


@frozen
class Plan:
    """What is to be evaluated, and how."""

    policy: str
    """As the user named it."""
    model: ModelConfig | Endpoint
    env: EnvRef
    limits: RolloutConfig
    engine: EngineConfig | None
    """None: an endpoint has its own."""
    dtype: Dtype = "float32"
    """What the policy was trained in."""

    @classmethod
    def of(cls, policy: Any, env: Any = None, rollout: Any = None, engine: Any = None) -> Plan:
        """Take from the policy's run what is not given.

        Raises `ConfigError` where something is wrong or missing.
        """
        run = as_run(policy)
        remote = isinstance(policy, Endpoint)
        model = policy if remote else structure(model_of(policy), ModelConfig)
        if env is None and run is None:
            raise ConfigError("env is missing: name the environment to evaluate on.")
        # Only what evaluation needs: the algorithm's classes may not be importable here.
        trained = read_toml(run.path / "config.toml") if run is not None else {}
        limits = structure(trained.get("rollout", {}), RolloutConfig)
        if rollout is not None:
            with within("rollout"):
                changed = isinstance(rollout, Mapping)
                limits = edit(limits, rollout) if changed else structure(rollout, RolloutConfig)
        if remote:
            _check_no_tokens_are_asked_of(limits, engine)
        else:
            engine = structure(_over(trained.get("engine", "transformers"), engine), EngineConfig)
        return cls(
            policy=_name_of(policy, run, model),
            model=model,
            env=structure(_over(trained.get("env"), env), EnvRef),
            limits=limits,
            engine=engine,
            dtype=trained.get("learner", {}).get("dtype", "float32"),
        )

    def build(self) -> LanguageModel | Endpoint:
        """Load the model; an endpoint is there already."""
        return self.model if isinstance(self.model, Endpoint) else self.model.build(self.env)

    def collector(self, built: LanguageModel | Endpoint) -> Collector:
        """Return what rolls it out."""
        if isinstance(built, Endpoint):
            return EndpointCollector.of(self.env, built, self.limits)
        assert self.engine is not None  # only an endpoint has none
        use = EngineUse(context=self.limits.context_within(built.context), dtype=self.dtype)
        return RolloutCollector.of(self.env, self.engine.build(built, use), built, self.limits)

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Return the tasks of a split; raises `ConfigError` where it has none."""
        world = make(self.env.id, **self.env.config)
        found = world.tasks[split]
        world.close()
        if not found:
            raise ConfigError(f"{split!r} of {self.env.id!r} has no tasks.")
        return found

    def about(
        self, built: LanguageModel | Endpoint, tasks: Sequence[Task], split: str, seed: int
    ) -> dict[str, Any]:
        """Return everything that changes results, as plain data."""
        limits = unstructure(self.limits)
        without = _OF_TRAINING
        if isinstance(built, Endpoint):
            policy: dict[str, Any] = {"endpoint": built.about()}
            without |= _OF_TOKENS
        else:  # not where its engine runs: its device, servers
            policy = {"weights": digest(built), "engine": unstructure(self.engine)["id"]}
        said = {
            **policy,
            "env": {
                "id": self.env.id,
                "config": self.env.config,
                "origin": registry().origin("environment", self.env.id),
            },
            "split": split,
            "tasks": _short_hash(_as_json([(task.id, {**task.data}) for task in tasks])),
            "rollout": {k: v for k, v in limits.items() if k not in without},
            "seed": seed,
        }
        return dict(json.loads(_as_json(said)))


def as_run(policy: object) -> Run | None:
    """Return the run that a policy is of, if it is one's."""
    if isinstance(policy, Run):
        return policy
    if isinstance(policy, (str, Path)) and is_run(Path(policy)):
        return Run(Path(policy))
    return None


def model_of(policy: object) -> object:
    """Return what names a policy's model: a component, its id, or a table.

    A run's is put where it was trained: on the same device.

    Raises `ConfigError` for a run without a policy, and for a folder that is neither.
    """
    if (run := as_run(policy)) is not None:
        if not run.policy.is_dir():
            raise ConfigError(f"{run.path} has no policy yet: the run has not come to its end.")
        trained = read_toml(run.path / "config.toml").get("model")
        device = trained.get("device") if isinstance(trained, dict) else None
        where = {} if device is None else {"device": device}
        return {"id": "pretrained", "path": str(run.policy), **where}
    if not isinstance(policy, (str, Path)):
        return policy
    if is_url(policy):
        raise ConfigError(
            f"{policy} is an endpoint, which may have many models: name one by "
            "isentrope.Endpoint(url=..., model=...), or by --model on the command line."
        )
    if (Path(policy) / "config.json").is_file():
        return {"id": "pretrained", "path": str(policy)}
    if isinstance(policy, Path) or "/" in policy:
        raise ConfigError(f"{policy} is neither a run folder nor the folder of a model.")
    return policy


def _name_of(policy: Any, run: Run | None, model: ModelConfig | Endpoint) -> str:
    if isinstance(model, Endpoint):
        return model.name
    named = run.path if run is not None else policy
    return str(named) if isinstance(named, (str, Path)) else str(unstructure(model)["id"])


def _check_no_tokens_are_asked_of(limits: RolloutConfig, engine: object) -> None:
    """Refuse for an endpoint what is of tokens, which are not seen there."""
    if engine is not None:
        raise ConfigError("An endpoint samples by itself: leave out engine.")
    if limits.context is not None:
        raise ConfigError(
            "rollout.context counts tokens, which an endpoint does not show: leave it out, and its "
            "own context is the limit."
        )


def _over(own: Any, given: Any) -> Any:
    """Return what is given; a table without an id changes keys of one's own."""
    if isinstance(given, Mapping) and "id" not in given and own is not None:
        return {**({"id": own} if isinstance(own, str) else own), **given}
    return own if given is None else given


def digest(built: LanguageModel) -> str:
    """Return what stands for everything of a model that decides what it says.

    Its weights, its architecture with every setting (of positions, say), its tokenizer, its chat
    template, and what ends its turns.
    """
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(built.model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(memoryview(flat.view(torch.uint8).numpy()))
    config = {**built.model.config.to_dict(), "class": type(built.model).__qualname__}
    for name in ("_name_or_path", "transformers_version"):  # which change nothing that it says
        config.pop(name, None)
    found.update(json.dumps(config, sort_keys=True, default=str).encode())
    tokenizer: Any = built.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    for text in (words, str(tokenizer.chat_template), repr(built.stop_ids)):
        found.update(text.encode())
    return found.hexdigest()[:16]


def key_of(about: dict[str, Any]) -> str:
    """Return the digest that stands for everything that changes an evaluation's results."""
    return _short_hash(json.dumps(about, sort_keys=True))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_json(value: Any) -> str:
    """Write what may hold a user's own objects: of those, only what they are called."""

    def named(thing: Any) -> str:
        kind = thing if hasattr(thing, "__qualname__") else type(thing)
        return f"{kind.__module__}:{kind.__qualname__}"

    return json.dumps(value, default=named, skipkeys=True)
