"""The docs: links lead somewhere, code runs, commands exist, the site builds without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import typer

import isentrope
from isentrope.cli import app
from isentrope.config import read_config
from isentrope.plugins import registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [*SITE_PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^( *)(```+)([\w{}-]+)\n(.*?)^\1\2$", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[tuple[int, str, str]]:
    """Return the line, language and text of each block of code."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start()) + 2, found[3], found[4])
        for found in FENCE.finditer(text)
        if found[3] in languages
    ]


def each(*languages: str, pages: list[Path] = SITE_PAGES) -> list[object]:
    return [
        pytest.param(code, id=f"{name(page)}:{line}")
        for page in pages
        for line, _, code in blocks(page, *languages)
    ]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- links


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    words = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
    return {
        w if not words[:i].count(w) else f"{w}-{words[:i].count(w)}" for i, w in enumerate(words)
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        target = urlsplit(link)
        if target.scheme:
            assert ("https", True) == (target.scheme, "." in target.netloc), link
            continue
        path = (page.parent / target.path) if target.path else page
        assert path.exists(), link
        if target.fragment and path.suffix == ".md" and "reference" not in path.parts:
            assert target.fragment in slugs(path), link


# ---------------------------------------------------------------- code

SLOW = {
    "docs/compose.md",
    "docs/quickstart.md",
    "docs/sequential.md",
    "docs/write-an-environment.md",
}
"""Pages whose code trains."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=name(p), marks=[pytest.mark.slow] if name(p) in SLOW else [])
        for p in SITE_PAGES
        if blocks(p, "python")
    ],
)
def test_the_python_of_a_page_runs_in_its_order(page: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = ModuleType("__main__")  # as what is pasted into a script
    monkeypatch.setitem(sys.modules, "__main__", script)
    vars(script)["isentrope"] = isentrope
    for line, _, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), vars(script))


@pytest.mark.parametrize("code", each("toml"))
def test_toml_in_the_docs_is_a_config(code: str) -> None:
    table = tomllib.loads(code)
    if "project" not in table:
        read_config({"env": "arithmetic", "algorithm": "grpo", **table})


@pytest.mark.parametrize("code", each("ini"))
def test_a_config_of_what_is_not_installed_names_an_environment_and_keys(code: str) -> None:
    """What needs AppWorld or its data: read_config would look for them."""
    table = tomllib.loads(code)
    assert table.pop("env")["id"] in registry().specs("environment")
    read_config({"env": "arithmetic", "algorithm": "grpo", **table})


KNOWN = {
    "cd",
    "export",
    "pip",
    "pytest",
    "python",
    "ray",
    "source",
    "tensorboard",
    "trackio",
    "vllm",
}
"""Commands of others' that pages name."""


def lines_of(code: str) -> Iterator[list[str]]:
    """Return the words of each command, without variables set for it, prompts and comments."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words


def parse(words: list[str]) -> None:
    """Parse a command line of ours as the program does; raises where it would."""
    command, context = typer.main.get_command(app), None
    if words in (["--help"], ["--version"]):
        return
    while hasattr(command, "list_commands"):
        context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
        context.resilient_parsing = False  # or a wrong name is no error
        _, command, words = command.resolve_command(context, words)
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("code", each("bash", "console", pages=PAGES))
def test_every_command_in_the_docs_is_one(code: str) -> None:
    targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    for words in lines_of(code):
        program, *rest = words
        if program == "torchrun":
            program, *rest = words[words.index("-m") + 1 :]
        if program == "isentrope":
            parse(rest)
        elif program == "make":
            assert set() == {word for word in rest if "=" not in word} - set(targets)
        else:
            assert program in KNOWN, program
        paths = re.findall(r"\b(?:examples|benchmarks|plugins)/[\w./-]+", " ".join(rest))
        assert [] == [path for path in paths if not (ROOT / path).exists()]


def test_a_wrong_command_in_the_docs_is_noticed() -> None:
    for line in ["isentrope trian x.toml", "isentrope train --rseume x", "isentrope eval"]:
        with pytest.raises(Exception, match=r"(?i)trian|rseume|missing"):
            parse(shlex.split(line)[1:])


def test_every_recipe_has_its_page() -> None:
    index = (DOCS / "algorithms" / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w-]+)` \|.*\(\S+\.md\) \|$", index, re.M)
    assert set(registry().specs("recipe")) == set(told)


# ---------------------------------------------------------------- the site


class Page(HTMLParser):
    """What a page of the site has: its anchors, its links, what it fetches."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.formulas = 0
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        self.formulas += tag == "math"
        if tag == "a":
            self.links.append(given.get("href") or "")
        elif tag != "link" or given.get("rel") not in ("index", "search", "next", "prev"):
            self.fetched += [
                v for key in ("src", "href", "srcset", "data") if (v := given.get(key))
            ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Return the pages of the site, built as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-E"]
    done = subprocess.run([*command, DOCS, out], capture_output=True, text=True)
    assert 0 == done.returncode, done.stdout + done.stderr
    return {path: Page(path) for path in sorted(out.rglob("*.html"))}


def internal(page: Page) -> list[str]:
    return [link for link in page.links if not urlsplit(link).scheme]


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_every_link_of_the_site_leads_to_a_page_and_a_place_in_it(site: dict[Path, Page]) -> None:
    broken = []
    for path, page in site.items():
        for link in internal(page):
            target = urlsplit(link)
            led = (path.parent / unquote(target.path)).resolve() if target.path else path
            known = led.is_file() and (
                not target.fragment
                or led.suffix != ".html"
                or unquote(target.fragment) in site[led].anchors
            )
            if not known:
                broken.append(f"{path.name}: {link}")
    assert [] == broken
    assert 1000 < sum(len(internal(page)) for page in site.values())


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_the_site_fetches_nothing_from_elsewhere(site: dict[Path, Page]) -> None:
    elsewhere = re.compile(r"(https?:)?//")
    fetched = {name: page.fetched for name, page in site.items()}
    assert {} == {
        path: found for path, all_ in fetched.items() if (found := [*filter(elsewhere.match, all_)])
    }
    assert all(fetched.values())
    (folder,) = {path.parent for path in site if path.name == "genindex.html"}
    styles = [p.read_text(encoding="utf-8") for p in folder.rglob("*.css")]
    assert styles
    assert [] == [
        s for text in styles for s in re.findall(r"(?:@import|url\()\s*['\"]?https?:[^)]+", text)
    ]


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_formulas_are_drawn_and_not_shown_as_they_are_written(site: dict[Path, Page]) -> None:
    pages = {path.name: page for path, page in site.items() if path.parent.name == "algorithms"}
    assert 5 < pages["repo.html"].formulas
    assert [] == [
        name for name, page in pages.items() if re.search(r"\$|\\(frac|zeta|log)", page.text)
    ]
