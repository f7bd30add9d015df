"""lm-eval's Minerva functions: which file they are in, and whether it is the version we know."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from isentrope import GraderError

PINNED = {"lm-eval": "0.4.13", "antlr4-python3-runtime": "4.11", "math-verify": "0.9"}
"""Distribution: how its version begins. lm-eval's verdicts differ from version to version, and its
parser reads the grammar of antlr 4.11 alone."""


def utilities() -> Path:
    """Return the path of lm-eval's ``minerva_math/utils.py``.

    The judge loads that one file by its path: importing the package would take four times the
    memory.

    Raises `GraderError` where something is not installed, or is another version.
    """
    for name, wanted in PINNED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        if found != wanted and not found.startswith(f"{wanted}."):
            raise GraderError(
                f"Grading needs {name} {wanted}, which is {found}: pip install 'isentrope[aime]'."
                if found == "not installed"
                else f"Grading needs {name} {wanted}, not {found}: pip install 'isentrope[aime]'."
            )
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise GraderError("lm-eval is installed, but lm_eval cannot be imported.")
    return Path(package.submodule_search_locations[0], "tasks", "minerva_math", "utils.py")
