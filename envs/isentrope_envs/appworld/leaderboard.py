"""What AppWorld itself says of kept outputs, and the bundle that its leaderboard takes.

An evaluation with ``env.outputs`` set keeps what the engine writes of every episode. Put together
as one of AppWorld's own experiments, it is scored by ``appworld evaluate`` and packed by its
``pack``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isentrope import ConfigError
from isentrope_envs.appworld.engine import run
from isentrope_envs.appworld.place import Place

NAME = re.compile(r"[a-z0-9_-]+")


def gather(place: Place, outputs: Path, name: str, split: str, into: Path) -> Path:
    """Put kept outputs together as an experiment of AppWorld's; return its root, which is `into`.

    Raises `ConfigError` unless `outputs` holds exactly one episode of every task of the split.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"name must be of a-z, 0-9, '_' and '-'; got {name!r}.")
    tasks = _tasks(place, split)
    found = {task: sorted(outputs.glob(f"{task}-*")) for task in tasks}
    missing = [task for task, folders in found.items() if not folders]
    several = [task for task, folders in found.items() if len(folders) > 1]
    if missing or several:
        raise ConfigError(
            f"{outputs} must hold one episode of each of the {len(tasks)} tasks of {split}: "
            f"{len(missing)} have none ({', '.join(missing[:3])}), and {len(several)} more than "
            f"one ({', '.join(several[:3])})."
        )
    if into.exists() and any(into.iterdir()):
        raise ConfigError(f"{into} is not empty.")
    (into / "experiments" / "outputs").mkdir(parents=True)
    (into / "data").symlink_to(place.full / "data")
    for task, (folder,) in found.items():
        shutil.copytree(folder, into / "experiments" / "outputs" / name / "tasks" / task)
    return into


def evaluate(place: Place, root: Path, name: str, split: str) -> dict[str, Any]:
    """Return what ``appworld evaluate`` says of an experiment: ``aggregate`` and ``individual``."""
    _appworld(place, root, "evaluate", name, split)
    file = root / "experiments" / "outputs" / name / "evaluations" / f"{split}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def pack(place: Place, root: Path, name: str, split: str, about: Mapping[str, str]) -> Path:
    """Evaluate an experiment and pack it for the leaderboard; return the bundle.

    name: must end in the split's. about: method, method_tooltip, llm, llm_tooltip and url.

    Raises `ConfigError` for a split that has no leaderboard, and `IsentropeError` where AppWorld
    refuses.
    """
    if split not in ("test_normal", "test_challenge"):
        raise ConfigError(f"The leaderboard takes test_normal and test_challenge, not {split!r}.")
    if not name.endswith(f"_{split}"):
        raise ConfigError(f"name must end in _{split}, as the leaderboard wants it; got {name!r}.")
    evaluate(place, root, name, split)
    words = [about[key] for key in ("method", "method_tooltip", "llm", "llm_tooltip", "url")]
    _appworld(place, root, "pack", name, split, *words)
    return root / "experiments" / "outputs" / name / "leaderboard.bundle"


def _appworld(place: Place, root: Path, command: str, *arguments: str) -> None:
    program = ("-u", "-m", "appworld.cli", command, *arguments, "--root", os.fspath(root))
    run(place, f"appworld {command}", place.python, *program, root=root)


def _tasks(place: Place, split: str) -> list[str]:
    file = place.full / "data" / "datasets" / f"{split}.txt"
    if not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.txt"))
        raise ConfigError(f"There is no split {split!r} in {place.root}; there are {known}.")
    return file.read_text(encoding="utf-8").split()
