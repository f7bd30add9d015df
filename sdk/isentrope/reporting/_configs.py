"""Configurations as a person compares and reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from isentrope.plugins import registry
from isentrope.reporting._text import counted
from isentrope.specs import Kind

ABSENT = "\u2013"
_PARTS: tuple[tuple[str, str, Kind], ...] = (
    ("Advantage", "advantage", "advantage"),
    ("Transform", "transforms", "transform"),
    ("Objective", "objective", "objective"),
    ("Regularizer", "regularizers", "objective"),
    ("Controller", "controllers", "controller"),
)


@frozen
class PartInWords:
    """One part of an algorithm: its role, its id, what that is, and its settings."""

    role: str
    id: str
    summary: str
    settings: str


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return every dotted key that is not the same in all configs, with its value in each."""
    flat = [dict(flatten(config)) for config in configs]
    keys = {key: None for one in flat for key in one}
    rows = [(key, [one.get(key, ABSENT) for one in flat]) for key in keys]
    return sorted((key, values) for key, values in rows if len(set(values)) > 1)


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values as text; tables in a list go by their ids.

    The list's own key has the ids in order, because transforms are applied in order.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        names = _names(value)
        yield path, ", ".join(names) or "none"
        for name, item in zip(names, value, strict=True):
            yield from flatten({k: v for k, v in item.items() if k != "id"}, f"{path}.{name}")
    else:
        yield path, _as_toml(value)


def algorithm_in_words(config: Mapping[str, Any]) -> list[PartInWords]:
    """Return the parts of a run's algorithm in the order in which they act."""
    algorithm = config.get("algorithm", {})
    return [
        PartInWords(role, part.get("id", ""), _summary(kind, part.get("id", "")), _settings(part))
        for role, key, kind in _PARTS
        for part in _as_list(algorithm.get(key))
    ]


def learning_in_words(config: Mapping[str, Any]) -> str:
    """Say in one line how experience becomes steps."""
    algorithm, rollout = config.get("algorithm", {}), config.get("rollout", {})
    tasks, group = rollout.get("tasks"), rollout.get("group")
    epochs, size = algorithm.get("epochs", 1), algorithm.get("minibatch")
    batches = f"minibatches of {size} episodes" if size else "one batch"
    passes = "1 pass" if epochs == 1 else f"{epochs} passes"
    lora, stale = (config.get("learner") or {}).get("lora"), rollout.get("staleness")
    trained = f"adapters of rank {lora.get('r')}" if lora else "the full weights"
    late = f", sampled up to {counted(stale, 'update')} earlier" if stale else ""
    return (
        f"{tasks} tasks \u00d7 {group} rollouts per iteration{late}; "
        f"{passes} over them in {batches}; "
        f"losses added up by {algorithm.get('aggregation', ABSENT)}; trained are {trained}"
    )


def name_of(component: Any) -> str:
    """Return what a component of a config is: its id, and the path of a pretrained model."""
    if not isinstance(component, Mapping):
        return str(component or ABSENT)
    path = component.get("path")
    return f"{component.get('id', ABSENT)}{f' ({path})' if path else ''}"


def _summary(kind: Kind, name: str) -> str:
    spec = registry().specs(kind).get(name)
    return "" if spec is None else spec.summary


def _settings(part: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in flatten(part) if k != "id")


def _as_list(value: Any) -> list[Mapping[str, Any]]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, Mapping)]


def _names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for table in tables:
        name = str(table.get("id", "item"))
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_as_toml, value)) or "none" if isinstance(value, list) else str(value)
