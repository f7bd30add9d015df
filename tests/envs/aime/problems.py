"""Problems of our own making, shaped as others publish theirs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOUNS = [
    *("beads", "boats", "cards", "chairs", "clocks", "coins", "crates", "doors", "ducks", "flags"),
    *("gears", "jars", "kites", "lamps", "maps", "nails", "oars", "pails", "pipes", "quilts"),
]


def problems(year: int, count: int = 30) -> list[dict[str, Any]]:
    """Return problems, none of which is another year's."""
    rows = []
    for i in range(count):
        rng = random.Random(f"{year} {i}")
        paper, number = ("I", "II")[i // 15 % 2], i % 15 + 1
        parts = " ".join(f"{rng.randint(2, 99)} ${noun}$" for noun in rng.sample(NOUNS, 12))
        text = f"A shop has {parts}. Find how many things it has, modulo 1000."
        rows.append(
            {
                "id": f"aime-{year}-{paper}-{number:02d}" if count == 30 else f"own {year} {i}",
                "problem": text,
                "answer": f"{sum(map(int, re.findall(r'[0-9]+ ', parts))):03d}",
            }
        )
    return rows


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def files(folder: Path, train: Sequence[Mapping[str, Any]] | None = None) -> dict[str, str]:
    """Write all three splits; return the environment's options that name them."""
    return {
        "train": write(folder / "train.jsonl", train or problems(1999, 20)),
        "aime24": write(folder / "24.jsonl", problems(2024)),
        "aime25": write(folder / "25.jsonl", problems(2025)),
    }
