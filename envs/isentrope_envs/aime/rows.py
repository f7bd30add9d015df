"""Rows of problems, from wherever they are: a file, a folder, or a data set of the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import platformdirs
from attrs import frozen

from isentrope import ConfigError
from isentrope_envs.aime.overlap import normalised

_COLUMNS = {"problem": ("problem", "question"), "answer": ("answer", "expected_answer")}
_PLACES = ("id", "url", "source", "link")  # columns that may tell which problem it is
_PLACE = re.compile(
    r"(?P<year>19[89]\d|20\d\d)[-_ ]*(?:AIME)?[-_ ]*(?P<paper>II?)?(?:[-_ /]|Problems?)*"
    r"(?P<number>0?[1-9]|1[0-5])\s*$",
    re.IGNORECASE,
)
_INTEGER = re.compile(r"\s*0*([0-9]{1,3})(?:\.0+)?\s*", re.ASCII)


@frozen
class Row:
    """One problem with everything that its source says of it."""

    problem: str
    answer: str
    columns: Mapping[str, Any]
    """By their names in lower case."""

    @property
    def integer(self) -> int | None:
        """The answer, if it is a whole number from 0 to 999; leading zeros do not count."""
        whole = _INTEGER.fullmatch(self.answer)
        return None if whole is None else int(whole[1])

    @property
    def id(self) -> str:
        """A name that does not depend on the row's place: ``aime-2024-II-07``.

        From a column that tells year, paper and number; where none does, from the problem's text.
        """
        for column in _PLACES:
            text = str(self.columns.get(column, "")).strip()
            if place := _PLACE.search(text):
                paper = f"-{place['paper'].upper()}" if place["paper"] else ""
                return f"aime-{place['year']}{paper}-{int(place['number']):02d}"
        return "aime-" + sha256(" ".join(normalised(self.problem)).encode()).hexdigest()[:10]


def read(source: str, split: str) -> list[Row]:
    """Return the rows of a ``.jsonl``, ``.json`` or ``.parquet`` file, a folder, or a hub data set.

    split: which of the environment's splits they are for; errors name it.

    Raises `ConfigError` where they cannot be had, or have no problems or answers.
    """
    path = Path(source).expanduser()
    if path.suffix in (".jsonl", ".json", ".parquet") and not path.is_file():
        raise ConfigError(f"{split}: there is no file {path}.")
    if path.suffix in (".jsonl", ".json"):
        table = _read_json(path)
    elif path.suffix == ".parquet":
        table = _kept(source, path, lambda: _read_parquet(path))
    else:
        name = str(path) if path.is_dir() else source
        table = _kept(source, path, lambda: _read_dataset(name, split))
    rows = [_row(row, source) for row in table]
    if not rows:
        raise ConfigError(f"{split}: {source} has no rows.")
    return rows


def _row(columns: Mapping[str, Any], source: str) -> Row:
    lower = {name.lower(): value for name, value in columns.items()}
    found = []
    for wanted, names in _COLUMNS.items():
        name = next((name for name in names if lower.get(name) is not None), None)
        if name is None:
            if any(name in lower for name in names):  # a row without one, which filters drop
                found.append("")
                continue
            raise ConfigError(
                f"{source} has no column for the {wanted} ({' or '.join(names)}, in any case); "
                f"it has: {', '.join(columns)}."
            )
        found.append(str(lower[name]))
    return Row(found[0], found[1], lower)


def _kept(source: str, path: Path, read: Callable[[], list[Any]]) -> list[Any]:
    """Return rows that were read before from the user's cache, as JSON; read them otherwise.

    What reads them takes 100 MB and starts threads, in each of an environment's workers, whose
    judges then could not be forks. Other files of the same name are other rows.
    """
    files = sorted(f for f in (path, *path.rglob("*")) if f.is_file())
    stamp = [source, *([str(f.resolve()), f.stat().st_mtime_ns, f.stat().st_size] for f in files)]
    given = os.environ.get("ISENTROPE_CACHE")
    folder = Path(given) if given else Path(platformdirs.user_cache_dir("isentrope"))
    kept = folder / f"aime-{sha256(json.dumps(stamp).encode()).hexdigest()[:20]}.jsonl"
    if kept.is_file():
        return _read_json(kept)
    rows = read()
    draft = kept.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # nowhere to keep them
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text("".join(json.dumps(r, default=str) + "\n" for r in rows), "utf-8")
        draft.replace(kept)  # whole, or not at all
    return rows


def _read_parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import parquet

        return list(parquet.read_table(path).to_pylist())
    except Exception as error:  # whatever a reader of a broken file raises
        raise _unreadable(path, error) from error


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}")


def _read_dataset(source: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of a data set's only split, by the `datasets` library or its cache."""
    remedy = f'pass the path of a .jsonl or .parquet file: {split} = "path/to/problems.jsonl"'
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{split}: reading {source!r} needs the datasets library (pip install "
            f"'isentrope[aime]'); or {remedy}."
        ) from None
    try:
        found = datasets.load_dataset(source)
    except Exception as error:  # of the network, the hub, or a data set's own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{split}: the data set {source!r} is neither here nor to be had "
            f"({type(error).__name__}: {reason}); {remedy}."
        ) from error
    if len(found) != 1:
        raise ConfigError(f"{split}: {source!r} has the splits {', '.join(found)}; {remedy}.")
    (dataset,) = found.values()
    column = next((name for name in dataset.column_names if name.lower() == "source"), None)
    if column is not None:  # of 900,000 rows all but 6,000 are left out before Python sees them
        import pyarrow.compute

        wanted = pyarrow.compute.equal(dataset.data.column(column), "amc_aime").to_pylist()
        if any(wanted):
            dataset = dataset.select([i for i, keep in enumerate(wanted) if keep])
    return list(dataset)
