"""AppWorld for tests: the real engine with the tiny world, made once and kept in the user's cache.

``ISENTROPE_APPWORLD`` names another installation to test with; it is only read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from isentrope import IsentropeError
from isentrope_envs.appworld import data, install, interpreter
from isentrope_envs.appworld.checks import check
from isentrope_envs.appworld.place import Place

CACHE = user_cache_path("isentrope") / "ci"
NAMED = os.environ.get(Place.variable)
SOURCES = "\n".join(map(str, [sys.version, *interpreter.LINKED.values()]))
"""What the cached one is made for: it sees this checkout. `install` renews what else changes."""
ROOT = (
    Path(NAMED)
    if NAMED
    else CACHE / f"appworld-{hashlib.sha256(SOURCES.encode()).hexdigest()[:16]}"
)
os.environ[Place.variable] = str(
    ROOT
)  # before plugins are read: what they bring names its interpreter


@pytest.fixture(scope="session")
def appworld() -> Path:
    """A whole installation with the tiny world, for slow tests: the first time takes minutes."""
    if NAMED is None:
        _forget_dead_checkouts()
        try:
            install(ROOT, say=_silent)
        except IsentropeError as error:
            if "CI" in os.environ or interpreter.is_current(Place(ROOT)):
                raise
            pytest.skip(f"AppWorld cannot be installed here: {error}")
    (found,) = check()
    assert ("ok", "tiny") == (found.state, data.kind(Place(ROOT))), found.message
    return ROOT


@pytest.fixture
def copy(appworld: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An installation to break, of hard links: replace its files, and do not write into them."""
    place = Place(tmp_path / "appworld")
    shutil.copytree(appworld, place.root, symlinks=True, copy_function=_link)
    shutil.rmtree(place.agent)  # so that it is hard links to this copy, by the code under test
    monkeypatch.setenv(Place.variable, str(place.root))
    install(place.root, say=_silent)
    return place


def _link(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:  # another file system
        shutil.copy2(source, to)


def _silent(_: str) -> None:
    pass


def _forget_dead_checkouts() -> None:
    for root in CACHE.glob("appworld-*"):
        links = root.glob("python/lib/python3*/site-packages/isentrope")
        if any(link.is_symlink() and not link.exists() for link in links):
            shutil.rmtree(root, ignore_errors=True)
