"""Gets AppWorld's data, or writes our tiny world; keeps the agent's copy of it in step."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isentrope import IsentropeError
from isentrope_envs.appworld.engine import run, wanted_version
from isentrope_envs.appworld.place import Place

KINDS = ("real", "tiny")
DOWNLOAD = "The download of AppWorld's data (the tiny one needs none)"
TRUTH = "ground_truth"
STAMP = "isentrope.json"
"""Written into data that passed the engine's verification: which it is, and who made it."""


def kind(place: Place) -> str | None:
    """Return what data is there, ``"real"`` where nothing says that it is ours; None: none."""
    data = place.full / "data"
    return str(_stamp(data).get("data", "real")) if data.is_dir() else None


def is_current(place: Place) -> bool:
    """Say whether the data is whole, and would be the same if it were made now."""
    return _stamp(place.full / "data") == _expected(kind(place))


def make(place: Place, which: str) -> str:
    """Make data beside its place, let the engine verify it, and put it there.

    Returns what the engine's verification said. Raises `IsentropeError` where it failed.
    """
    root = place.building / "full"
    root.mkdir(parents=True)
    if which == "real":
        _download(place, root)
    else:
        module = "isentrope_envs.appworld.tiny"
        run(place, "The tiny world", place.python, "-IB", "-m", module, root, root=root)
    verdict = _verify(place, root)
    stamp = root / "data" / STAMP
    stamp.write_text(json.dumps(_expected(which), indent=1) + "\n", encoding="utf-8")
    for old in (place.agent, place.full):  # the agent's first: it must never be of other tasks
        if (old / "data").exists():
            (old / "data").rename(place.building / f"old-{old.name}-data")
        old.mkdir(exist_ok=True)
    (root / "data").rename(place.full / "data")
    return verdict


def link(place: Place) -> None:
    """Make the agent's data: hard links to all of it that is no ground truth."""
    new = place.building / "agent"
    for file in sorted(_public(place.full / "data")):
        to = new / file
        to.parent.mkdir(parents=True, exist_ok=True)
        os.link(place.full / "data" / file, to)
    place.agent.mkdir(exist_ok=True)
    if (place.agent / "data").exists():
        (place.agent / "data").rename(place.building / "old-agent-data")
    new.rename(place.agent / "data")


def in_step(place: Place) -> bool:
    """Say whether the agent's data is the judges' without any ground truth."""
    full, agent = place.full / "data", place.agent / "data"
    files = set(_files(agent))
    return files == set(_public(full)) and all(
        os.path.samefile(full / file, agent / file) for file in files
    )


def faults(place: Place) -> Iterator[str]:
    """Say what is wrong with the data."""
    if kind(place) is None:
        yield "it has no data"
    elif not is_current(place):
        yield "its data is not verified, or of another version"
    elif not in_step(place):
        yield "the agent's data is not the judges' without ground truth"


def count(place: Place) -> dict[str, int]:
    """Return how many tasks each split has."""
    lists = sorted((place.full / "data" / "datasets").glob("*.txt"))
    return {path.stem: len(path.read_text(encoding="utf-8").split()) for path in lists}


def _download(place: Place, root: Path) -> None:
    """Let AppWorld download its own; into a new folder, since it deletes what it finds."""
    command = (place.python, "-IB", "-m", "appworld.cli", "download", "data", "--root", root)
    said = run(place, DOWNLOAD, *command, root=root)
    if not (root / "data" / "tasks").is_dir():  # it exits with 0 all the same
        last = (said.strip().splitlines() or ["it printed nothing"])[-1]
        raise IsentropeError(f"{DOWNLOAD} failed: {last}")


def _verify(place: Place, root: Path) -> str:
    """Let the engine solve every task whose solution it has."""
    # -u: it ends without flushing what it said
    command = (place.python, "-IBu", "-m", "appworld.cli", "verify", "tasks", "--root", root)
    said = run(place, "appworld verify tasks", *command, root=root)
    shutil.rmtree(root / "experiments", ignore_errors=True)
    verdict = re.search(r"Passed (\d+)/(\d+) tasks", said)
    if verdict is None or verdict[1] != verdict[2]:  # it exits with 0 all the same
        found = " ".join((said[verdict.start() :] if verdict else said[-200:]).split())
        raise IsentropeError(f"AppWorld's verification of the data failed: {found}")
    return f"{verdict[0]} (appworld verify tasks)"


def _stamp(data: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((data / STAMP).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _expected(which: str | None) -> dict[str, str]:
    stamp = {"data": str(which), "appworld": wanted_version()}
    return {**stamp, "generator": _fingerprint()} if which == "tiny" else stamp


def _fingerprint() -> str:
    """Return a hash of what writes the tiny world."""
    folder = Path(__file__).with_name("tiny")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[str]:
    for path, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(path, name), folder)


def _public(folder: Path) -> Iterator[str]:
    return (file for file in _files(folder) if TRUTH not in Path(file).parts)
