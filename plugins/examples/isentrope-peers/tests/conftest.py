"""Each module of tests names in `LIBRARY` what it needs installed."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def _its_library(request: pytest.FixtureRequest) -> None:
    """Skip where a module's library is not installed; in CI, fail."""
    library = request.module.LIBRARY
    if library is not None and find_spec(library) is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"{library} is not installed; the README says what to install")
