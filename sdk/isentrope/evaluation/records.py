"""The folder of an evaluation, and how one that was interrupted goes on.

::

    evaluation.json   what is evaluated and how, and the key that stands for all of that
    episodes.jsonl    one object per attempt, written as it ends; of two with the same task and
                      rollout, which a failure leads to, the later one counts
    result.json       the numbers, once all attempts have ended
    report.html       the same as a page, where the command line wrote it

The key is a digest of everything that changes results. How many tasks and how many attempts at each
is not among it: an evaluation of more of them takes what is there, and adds to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from isentrope.errors import ConfigError
from isentrope.evaluation.attempts import Attempt
from isentrope.evaluation.plan import key_of
from isentrope.runs import only_process

FORMAT = 1
RESULT = "result.json"


@frozen
class EvaluationFolder:
    """A folder in which the attempts of one evaluation are kept."""

    path: Path

    @property
    def _episodes(self) -> Path:
        return self.path / "episodes.jsonl"

    @contextmanager
    def writing(self, about: dict[str, Any], policy: str) -> Iterator[Callable[[Attempt], None]]:
        """Open the folder for this evaluation alone; yields what appends an attempt.

        policy: its name, for people; `about` says which it is.

        Raises `ConfigError` where it holds another evaluation, or anything else, where another
        process writes to it, or where it cannot be written.
        """
        with ExitStack() as held:
            with self._written():
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(only_process(self.path, "evaluating into"))
                self._claim(about, policy)
                self._drop_torn_line()
                # What numbers there are, are of an evaluation that this one adds to.
                (self.path / RESULT).unlink(missing_ok=True)
                # Unbuffered: what is left of a line that a full disk cut short is not tried again.
                file = held.enter_context(self._episodes.open("ab", buffering=0))

            def append(attempt: Attempt) -> None:
                with self._written():
                    line = memoryview((json.dumps(attempt.record()) + "\n").encode())
                    while line:
                        line = line[file.write(line) :]

            yield append

    def save(self, numbers: Mapping[str, Any]) -> None:
        """Write the numbers that it came to."""
        with self._written():
            self._put(RESULT, {"format": FORMAT, **numbers})

    @property
    def finished(self) -> bool:
        """Whether all attempts of the latest evaluation here have ended."""
        return (self.path / RESULT).is_file()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turn a full or vanished disk into a sentence."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written ({error.strerror or error}). What was written "
                "before is whole: evaluating again goes on from there."
            ) from error

    def attempts(self) -> dict[tuple[str, int], Attempt]:
        """Return the latest attempt of each task and rollout.

        Raises `ConfigError` that names a line that holds none.
        """
        found = {}
        for place, line in _whole_lines(self._episodes):
            try:
                attempt = Attempt.read(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{place} is no attempt of an evaluation: {error!r}.") from error
            found[attempt.task, attempt.rollout] = attempt
        return found

    def written(self) -> dict[str, Any]:
        """Return what evaluation.json says: what is evaluated here, and how.

        Raises `ConfigError` where the folder is none of an evaluation, or of another version's.
        """
        try:
            written = json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path} is no folder of an evaluation: no evaluation.json to read."
            ) from error
        if written.get("format") != FORMAT:
            raise ConfigError(
                f"{self.path} has format {written.get('format')!r}; this version reads {FORMAT}."
            )
        return dict(written)

    def _claim(self, about: dict[str, Any], policy: str) -> None:
        """Say what is evaluated here, or check that it is the same as before."""
        if is_evaluation(self.path):
            different = _differences(self.written()["about"], about)
            if different:
                raise ConfigError(
                    f"{self.path} holds another evaluation ({', '.join(different[:6])}): "
                    "choose another `out`."
                )
            return
        if any(file for file in self.path.iterdir() if not file.name.startswith(".")):
            raise ConfigError(f"{self.path} is not empty and holds no evaluation.")
        self._put(
            "evaluation.json",
            {"format": FORMAT, "key": key_of(about), "policy": policy, "about": about},
        )

    def _put(self, name: str, data: Mapping[str, Any]) -> None:
        """Write a file of the folder: whole, or as it was before."""
        draft = self.path / f".{name}.draft"
        draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path / name)

    def _drop_torn_line(self) -> None:
        """Cut off what a kill left of a last line, lest the next be joined to it."""
        if self._episodes.exists():
            with self._episodes.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)


def is_evaluation(path: Path) -> bool:
    """Say whether a folder is that of an evaluation."""
    return (path / "evaluation.json").is_file()


def _whole_lines(path: Path) -> Iterator[tuple[str, str]]:
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for count, line in enumerate(file, start=1):
                if line.endswith("\n"):
                    yield f"{path}, line {count}", line


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Return the keys at which two nested tables differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{key} was {_short(old)}, is {_short(new)}"]
    return [
        sentence
        for name in {**old, **new}
        for sentence in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    ]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
