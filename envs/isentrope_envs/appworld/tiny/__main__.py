"""Writes the tiny world: ``python -m isentrope_envs.appworld.tiny FOLDER``, in AppWorld's Python.

The engine reads its root from ``APPWORLD_ROOT``, which must be FOLDER; the data goes to its
``data``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from appworld.common.constants import DB_VERSION

from isentrope_envs.appworld.tiny.base import write_base
from isentrope_envs.appworld.tiny.scenarios import SCENARIOS, SPLITS, VARIANTS
from isentrope_envs.appworld.tiny.writing import write_task


def write(data: Path, seed: int) -> None:
    """Write the whole world into a new folder."""
    (data / "datasets").mkdir(parents=True)
    (data / "tasks").mkdir()
    (data / "version.txt").write_text(f"{DB_VERSION}\n", encoding="utf-8")
    write_base(data)
    for index, (split, names) in enumerate(SPLITS.items()):
        tasks = []
        for name in names:
            for variant in range(VARIANTS):
                task = f"tiny{name}{index + 1}_{variant + 1}"
                number = index * VARIANTS + variant
                full = not split.startswith("test")  # as AppWorld publishes its own
                write_task(data, task, SCENARIOS[name], number, seed, full=full)
                tasks.append(task)
        (data / "datasets" / f"{split}.txt").write_text("\n".join(tasks) + "\n", encoding="utf-8")


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description="Write a tiny world for AppWorld's engine.")
    parser.add_argument("root", type=Path, help="folder in which to make `data`")
    parser.add_argument("--seed", type=int, default=2023)
    chosen = parser.parse_args()
    if os.environ.get("APPWORLD_ROOT") != str(chosen.root):
        parser.error(f"APPWORLD_ROOT must be {chosen.root}")
    write(chosen.root / "data", chosen.seed)


if __name__ == "__main__":
    main()
