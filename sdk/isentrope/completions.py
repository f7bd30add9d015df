"""What the shell completes words with: ids, folders, files, and keys of the configuration.

Each gets what has been typed of a word. None imports torch, nor any component; what they offer too
much is left out by typer, and where they offer nothing, shells offer files.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import attrs
import typer

from isentrope.plugins import registry
from isentrope.scaffold import KINDS as KINDS_OF_NEW
from isentrope.specs import CHECKABLE, EnvRef, EnvSpec

Offers = list[tuple[str, str]]
"""Words, and a few more words about each, which zsh and fish show."""


def environments() -> Offers:
    """Offer the environments' ids."""
    return _ids("environment")


def recipes() -> Offers:
    """Offer the recipes' ids."""
    return _ids("recipe")


def checkable() -> Offers:
    """Offer the ids of what ``check`` takes."""
    return _ids(*CHECKABLE)


def kinds() -> list[str]:
    """Offer the kinds of what ``check`` takes."""
    return list(CHECKABLE)


def new_kinds() -> list[str]:
    """Offer the kinds of what ``new`` writes."""
    return list(KINDS_OF_NEW)


def splits(ctx: typer.Context) -> list[str]:
    """Offer the task splits of the environment that ``--env`` names, or else the run's."""
    named = ctx.params.get("env")
    if named is None:
        # Where an option still lacks its value, arguments are not matched to their names.
        policy = ctx.params["policy"] or ctx.args[0]
        text = Path(policy, "config.toml").read_text(encoding="utf-8")
        named = tomllib.loads(text)["env"]
    spec = registry().find("environment", named if isinstance(named, str) else named["id"])
    assert isinstance(spec, EnvSpec)  # the hook takes no other
    return list(spec.splits)


def runs(incomplete: str) -> list[str]:
    """Offer folders of runs, those in ``runs/`` at once."""
    return [*_folders(incomplete, "runs/", holds=("config.toml", "run.json"))]


def evaluations(incomplete: str) -> list[str]:
    """Offer folders of evaluations, those in ``evals/`` at once."""
    return [*_folders(incomplete, "evals/", holds=("evaluation.json",))]


def runs_and_evaluations(incomplete: str) -> list[str]:
    """Offer folders of both."""
    return [*runs(incomplete), *evaluations(incomplete)]


def configs(incomplete: str) -> list[str]:
    """Offer TOML files; where one folder has none, the shell offers what it has."""
    place = incomplete[: incomplete.rfind("/") + 1]
    names = (name for name in sorted(os.listdir(place or ".")) if name.endswith(".toml"))
    return [place + name for name in names if name != "pyproject.toml"]


def settings() -> list[str]:
    """Offer what ``train --set`` takes, but for the fields of components."""
    from isentrope.config import TrainConfig

    return [f"{key}=" for key in _keys(TrainConfig)]


def changes() -> list[str]:
    """Offer what ``eval --set`` takes, but for the fields of components."""
    from isentrope.config import RolloutConfig

    return [*(f"rollout.{key}=" for key in _keys(RolloutConfig)), "engine=", "seed=", "threads="]


def words(*known: str) -> Callable[[], list[str]]:
    """Return what offers some words."""
    return lambda: list(known)


def _ids(*kinds: str) -> Offers:
    found = registry()
    return [(name, spec.summary) for kind in kinds for name, spec in found.specs(kind).items()]


def _folders(incomplete: str, usual: str, holds: tuple[str, ...]) -> Iterator[str]:
    """Name the folders that hold some files, of the folder that is being typed."""
    typed = incomplete[: incomplete.rfind("/") + 1]
    for place in (typed,) if typed else ("", usual):
        names = sorted(os.listdir(place or ".")) if Path(place).is_dir() else ()
        found = (name for name in names if (place + name).startswith(incomplete))
        yield from (place + n for n in found if all(Path(place + n, h).is_file() for h in holds))


def _keys(cls: Any) -> Iterator[str]:
    from isentrope.structuring import fields

    for name, attribute in fields(cls).items():
        kinds = (attribute.type, *get_args(attribute.type))
        table = next((kind for kind in kinds if attrs.has(kind) and kind is not EnvRef), None)
        yield from [name] if table is None else (f"{name}.{key}" for key in _keys(table))
