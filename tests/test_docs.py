"""The pages in docs/: their links lead somewhere, and their code composes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import isentrope
from isentrope.config import read_config
from isentrope.plugins import registry

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(language: str) -> list[object]:
    fence = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    return [
        pytest.param(code, id=f"{page.relative_to(ROOT)}-{i}")
        for page in PAGES[:-2]
        for i, code in enumerate(fence.findall(page.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [] == [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_in_the_docs_runs(code: str) -> None:
    exec(code, {"isentrope": isentrope})


@pytest.mark.parametrize("code", blocks("toml"))
def test_toml_in_the_docs_is_a_config(code: str) -> None:
    table = tomllib.loads(code)
    read_config({"env": "arithmetic", "algorithm": "grpo", **table})


def test_every_recipe_has_its_page() -> None:
    index = (ROOT / "docs" / "algorithms" / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w-]+)` \|.*\(\S+\.md\) \|$", index, re.M)
    assert set(registry().specs("recipe")) == set(told)
