"""The loader, against distributions that are really built and installed; most of them broken.

All are installed together, so every test also shows that nobody fails for a neighbour's fault.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import distribution, distributions, version
from pathlib import Path

import attrs
import pytest
from attrs import field, frozen
from hatchling.builders.wheel import WheelBuilder

from isentrope import (
    ComponentSpec,
    ConfigError,
    EnvSpec,
    PluginError,
    UnknownNameError,
    hookspecs,
    recipe,
)
from isentrope.plugins import Registry, Row, load_plugins

SPEC = 'EnvSpec("{0}", "{1}:Env", "A maze of words")'


@frozen
class Fake:
    """A distribution to install: ``acme-<case>``, with one module and one entry point."""

    case: str
    plugin: str
    version: str = "1.0"
    requires: tuple[str, ...] = ()
    entry_point: str = ""
    """Its name; empty: the case's."""
    value: str = ""
    """What it names; empty: the module."""
    extra: dict[str, str] = field(factory=dict)
    """More files of the package."""

    @property
    def name(self) -> str:
        return f"acme-{self.case}"

    @property
    def package(self) -> str:
        return self.name.replace("-", "_")


def environments(*records: str, head: str = "") -> str:
    return f"""\
{head}
from isentrope import ComponentSpec, EnvSpec, hookimpl

@hookimpl
def isentrope_environments():
    return [{", ".join(records)}]
"""


def hook(definition: str) -> str:
    return f"from isentrope import EnvSpec, hookimpl\n{definition}\n"


ENV = """\
import isentrope

class Env(isentrope.TextEnv):
    def __init__(self, size=3):
        self.size = size
        self.tasks = isentrope.TaskSet({"train": [isentrope.Task("a")]})
"""
LEAVES_A_MARK = "import pathlib; pathlib.Path(__file__).with_name('imported').touch()"

FAKES = (
    Fake("maze", environments(SPEC.format("acme/maze", "acme_maze.env")), extra={"env.py": ENV}),
    # Which fail to import.
    Fake("import-error", "import acme_needs_this"),
    Fake("exit", "import sys; sys.exit('no licence')"),
    Fake("syntax-error", "def isentrope_environments(:"),
    Fake("no-module", "", value="acme_no_module.elsewhere"),
    Fake("no-attribute", "", value="acme_no_attribute.plugin:Plugin"),
    # Whose hooks are none.
    Fake("misspelt", hook("@hookimpl\ndef isentrope_enviroments(): return []")),
    Fake("misspelt-unmarked", hook("def isentrope_enviroments(): return []")),
    Fake("unmarked", hook("def isentrope_environments(): return []")),
    Fake("signature", hook("@hookimpl\ndef isentrope_environments(config): return []")),
    Fake("no-hooks", ""),
    Fake(
        "explosive",
        "class Odd:\n    @property\n    def x(self): raise OSError('not now')\n\nplugin = Odd()",
        value="acme_explosive.plugin:plugin",
    ),
    # Whose hooks answer wrongly.
    Fake("raises", hook("@hookimpl\ndef isentrope_environments(): return {}['size']")),
    Fake("exits", hook("@hookimpl\ndef isentrope_environments(): raise SystemExit")),
    Fake("returns-one", hook("@hookimpl\ndef isentrope_environments(): return 7")),
    Fake("returns-text", hook("@hookimpl\ndef isentrope_environments(): return 'acme/maze'")),
    Fake("returns-none", hook("@hookimpl\ndef isentrope_environments(): [1]")),
    Fake("yields", hook("@hookimpl\ndef isentrope_environments(): yield 1")),
    # Whose records are wrong.
    Fake("kind", environments('ComponentSpec("objective", "acme/odd", "acme.odd:Odd", "Odd")')),
    Fake("record", environments("('acme/pair', 'acme.pair:Pair')")),
    Fake("id", environments(SPEC.format("acme maze", "acme.env"))),
    Fake("target", environments('EnvSpec("acme/target", "acme.env.Env", "A maze")')),
    Fake("made-up-kind", environments('ComponentSpec("objektive", "a", "a:b", "A")')),
    Fake("half", environments(SPEC.format("acme/half", "acme_half.env"), "None")),
    Fake("gone", environments(SPEC.format("acme/gone", "acme_gone.nowhere"))),
    # Which do not fit this isentrope.
    Fake("future", environments(head=LEAVES_A_MARK), requires=("isentrope>=99", "numpy")),
    Fake("present", environments(head=LEAVES_A_MARK), requires=("isentrope>=0.0.1",)),
    Fake(
        "extra",
        environments(SPEC.format("acme/extra", "acme.env")),
        requires=("isentrope[gpu]>=99; extra == 'gpu'",),
    ),
    # Who claim what others claim.
    Fake("twin-a", environments(SPEC.format("acme/twin", "acme_twin_a.env")), version="1.1"),
    Fake("twin-b", environments(SPEC.format("acme/twin", "acme_twin_b.env")), version="2.2"),
    Fake("usurper", environments(SPEC.format("arithmetic", "acme_usurper.env"))),
    Fake("stutter", environments(*[SPEC.format("acme/stutter", "acme.env")] * 2)),
    # Who share an entry point's name.
    Fake("same-a", environments(SPEC.format("acme/same-a", "acme.env")), entry_point="plugin"),
    Fake("same-b", environments(SPEC.format("acme/same-b", "acme.env")), entry_point="plugin"),
    # A hook under a name of the author's own.
    Fake(
        "renamed",
        hook(
            "@hookimpl(specname='isentrope_environments')\n"
            f"def ours(): return [{SPEC.format('acme/renamed', 'acme.env')}]"
        ),
    ),
)

PLURAL = "Did you mean 'isentrope_environments'?"
LIST = "isentrope_environments must return a list of records, not"
BROKEN = {
    "import-error": "acme_import_error.plugin failed to import: "
    "ModuleNotFoundError: No module named 'acme_needs_this'",
    "exit": "acme_exit.plugin failed to import: SystemExit: no licence",
    "syntax-error": "acme_syntax_error.plugin failed to import: "
    "SyntaxError: invalid syntax (plugin.py, line 1)",
    "no-module": "acme_no_module.elsewhere failed to import: "
    "ModuleNotFoundError: No module named 'acme_no_module.elsewhere'",
    "no-attribute": "acme_no_attribute.plugin:Plugin failed to import: "
    "AttributeError: module 'acme_no_attribute.plugin' has no attribute 'Plugin'",
    "misspelt": f"There is no hook 'isentrope_enviroments'. {PLURAL}",
    "misspelt-unmarked": f"There is no hook 'isentrope_enviroments'. {PLURAL}",
    "unmarked": "isentrope_environments is not marked as a hook: "
    "decorate it with @isentrope.hookimpl.",
    "explosive": "OSError: not now",
    "raises": "isentrope_environments raised KeyError: 'size'",
    "exits": "isentrope_environments raised SystemExit: no message",
    "returns-one": f"{LIST} int.",
    "returns-text": f"{LIST} str.",
    "returns-none": f"{LIST} NoneType.",
    "yields": f"{LIST} generator.",
    "kind": "isentrope_environments must return records of type EnvSpec, "
    "not one of kind 'objective'.",
    "record": "isentrope_environments must return records of type EnvSpec, not tuple.",
    "id": "isentrope_environments raised ConfigError: "
    "EnvSpec.id must look like 'name' or 'maker/name'; got 'acme maze'.",
    "target": "isentrope_environments raised ConfigError: "
    "EnvSpec.entry_point must look like 'package.module:Name'; got 'acme.env.Env'.",
    "made-up-kind": "isentrope_environments raised UnknownNameError: "
    "ComponentSpec.kind 'objektive' does not exist. Did you mean 'objective'?",
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder into which pip has installed every fake; on sys.path meanwhile."""
    folder = tmp_path_factory.mktemp("fakes")
    target = folder / "site"
    # hatchling in this process: pip would start three interpreters for each wheel, a second each.
    wheels = [_build(fake, folder / fake.name, folder / "wheels") for fake in FAKES]
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *wheels],
        check=True,
    )
    sys.path.append(str(target))
    yield target
    sys.path.remove(str(target))
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]


def _build(fake: Fake, project: Path, wheels: Path) -> str:
    package = project / fake.package
    package.mkdir(parents=True)
    for name, source in {"__init__.py": "", "plugin.py": fake.plugin, **fake.extra}.items():
        (package / name).write_text(source)
    project.joinpath("pyproject.toml").write_text(
        textwrap.dedent(f"""\
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"

            [project]
            name = "{fake.name}"
            version = "{fake.version}"
            dependencies = {list(fake.requires)}

            [project.optional-dependencies]
            gpu = []

            [project.entry-points.isentrope]
            {fake.entry_point or fake.case} = "{fake.value or fake.package + ".plugin"}"
        """)
    )
    return next(WheelBuilder(str(project)).build(directory=str(wheels), versions=["standard"]))


@pytest.fixture(scope="session")
def everything(site: Path) -> Registry:
    return load_plugins([distribution("isentrope"), *distributions(path=[str(site)])])


def only(site: Path, *cases: str) -> Registry:
    """Load these fakes alone."""
    names = {f"acme-{case}" for case in cases}
    found = [d for d in distributions(path=[str(site)]) if d.metadata["Name"] in names]
    assert len(names) == len(found)
    return load_plugins(found)


def rows_of(registry: Registry, case: str) -> list[Row]:
    return [row for row in registry.rows if row.distribution == f"acme-{case}"]


def the_row(registry: Registry, case: str) -> tuple[str, ...]:
    """What ``isentrope plugins`` shows of a fake."""
    (row,) = rows_of(registry, case)
    return (row.id, row.kind, row.distribution, row.version, row.state, row.summary)


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, with these folders to import from."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "200"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def output(code: str, *path: Path) -> str:
    done = run(code, *path)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- what loads


def test_a_good_plugin_is_a_row_of_what_it_brings(everything: Registry) -> None:
    assert the_row(everything, "maze") == (
        "acme/maze", "environment", "acme-maze", "1.0", "ok", "A maze of words"
    )  # fmt: skip
    assert everything.find("environment", "acme/maze") == EnvSpec(
        "acme/maze", "acme_maze.env:Env", "A maze of words"
    )


def test_listing_imports_nothing_that_records_name(site: Path) -> None:
    only(site, "maze")
    assert "acme_maze.env" not in sys.modules


def test_two_distributions_may_use_the_same_entry_point_name(everything: Registry) -> None:
    assert the_row(everything, "same-a")[0::4] == ("acme/same-a", "ok")
    assert the_row(everything, "same-b")[0::4] == ("acme/same-b", "ok")


def test_a_hook_may_have_a_name_of_its_own_with_specname(everything: Registry) -> None:
    assert the_row(everything, "renamed")[0::4] == ("acme/renamed", "ok")


def test_a_plugin_without_hooks_says_that_it_brings_nothing(everything: Registry) -> None:
    assert the_row(everything, "no-hooks") == (
        "no-hooks", "plugin", "acme-no-hooks", "1.0", "ok", "defines no hooks, so brings nothing"
    )  # fmt: skip


def test_every_first_party_component_loads_among_broken_neighbours(everything: Registry) -> None:
    alone = load_plugins([distribution("isentrope")])
    own = tuple(row for row in everything.rows if row.distribution == "isentrope")
    assert own == alone.rows
    assert {"ok"} == {row.state for row in own}


def test_rows_are_sorted_by_kind_and_id(everything: Registry) -> None:
    keys = [(row.kind, row.id) for row in everything.rows]
    assert keys == sorted(keys)


def test_the_first_of_two_distributions_of_a_name_counts_as_in_imports(
    site: Path, tmp_path: Path
) -> None:
    later = tmp_path / "Acme.Maze-9.dist-info"
    later.mkdir()
    (later / "METADATA").write_text("Metadata-Version: 2.1\nName: Acme.Maze\nVersion: 9\n")
    (later / "entry_points.txt").write_text("[isentrope]\nmaze = acme_nowhere\n")
    found = load_plugins(distributions(path=[str(site), str(tmp_path)]))
    assert {"1.0"} == {r.version for r in found.rows if r.distribution.lower() == "acme-maze"}
    assert [] == [r for r in found.rows if r.distribution == "Acme.Maze"]


def test_a_leftover_folder_without_metadata_is_passed_over(tmp_path: Path) -> None:
    ghost = tmp_path / "ghost-1.dist-info"
    ghost.mkdir()
    (ghost / "entry_points.txt").write_text("[isentrope]\nghost = ghost\n")
    assert Registry(()) == load_plugins(distributions(path=[str(tmp_path)]))


# ---------------------------------------------------------------- what does not


def test_each_fake_is_accounted_for(everything: Registry) -> None:
    not_ok = {row.distribution for row in everything.rows if row.state != "ok"}
    judged = {"half", "future", "twin-a", "twin-b", "usurper", "stutter", "signature"}
    assert {f"acme-{case}" for case in {*BROKEN, *judged}} == not_ok


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_one_line_with_its_cause(everything: Registry, case: str) -> None:
    expected = (case, "plugin", f"acme-{case}", "1.0", "broken", BROKEN[case])
    assert expected == the_row(everything, case)


def test_a_wrong_signature_is_one_line_that_names_the_argument(everything: Registry) -> None:
    *head, summary = the_row(everything, "signature")
    assert ["signature", "plugin", "acme-signature", "1.0", "broken"] == head
    assert "\n" not in summary
    assert "isentrope_environments" in summary
    assert "{'config'}" in summary
    assert "not be found in the hookspec" in summary.replace("can not", "not")


@pytest.mark.parametrize("case", BROKEN)
def test_asking_for_what_a_broken_plugin_may_bring_shows_its_failure(site: Path, case: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        only(site, case, "maze").find("environment", "wanted")
    assert (
        "The environment 'wanted' does not exist. Known: acme/maze. "
        f"Plugins that did not load, where it may be: {case} (acme-{case} 1.0): {BROKEN[case]}"
    ) == str(caught.value)


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        ("import-error", ModuleNotFoundError),
        ("exit", SystemExit),
        ("syntax-error", SyntaxError),
        ("no-attribute", AttributeError),
        ("raises", KeyError),
        ("explosive", OSError),
        ("returns-one", PluginError),
        ("id", ConfigError),
    ],
)
def test_the_error_about_a_name_has_the_plugins_exception_as_its_cause(
    site: Path, case: str, cause: type[BaseException]
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        only(site, case).find("environment", "wanted")
    assert cause is type(caught.value.__cause__)


def test_every_failed_plugin_is_named_where_several_failed(site: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        only(site, "exit", "misspelt").find("environment", "wanted")
    assert f"exit (acme-exit 1.0): {BROKEN['exit']}; misspelt (acme-misspelt 1.0): " in str(
        caught.value
    )
    assert caught.value.__cause__ is None


def test_a_good_name_is_found_whatever_failed_beside_it(site: Path) -> None:
    found = only(site, "maze", "exit", "misspelt", "raises").find("environment", "acme/maze")
    assert "acme/maze" == found.id


def test_a_misspelt_name_gets_the_nearest_one(site: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        only(site, "maze").find("environment", "acme/maz")
    expected = "The environment 'acme/maz' does not exist. Did you mean 'acme/maze'?"
    assert expected == str(caught.value)
    assert (("acme/maze",), "acme/maz") == (caught.value.options, caught.value.name)


def test_a_good_record_beside_a_wrong_one_still_counts(everything: Registry) -> None:
    good, bad = rows_of(everything, "half")
    assert ("acme/half", "ok") == (good.id, good.state)
    assert ("half", "broken") == (bad.id, bad.state)
    assert bad.summary.endswith("not NoneType.")


# ---------------------------------------------------------------- what does not fit


def test_a_plugin_for_another_isentrope_is_never_imported(everything: Registry, site: Path) -> None:
    assert the_row(everything, "future") == (
        "future", "plugin", "acme-future", "1.0", "incompatible",
        f"needs isentrope>=99, but this is isentrope {version('isentrope')}.",
    )  # fmt: skip
    assert not (site / "acme_future" / "imported").exists()
    assert "acme_future" not in sys.modules


def test_a_plugin_whose_range_fits_is_imported(everything: Registry, site: Path) -> None:
    assert "ok" == the_row(everything, "present")[4]
    assert (site / "acme_present" / "imported").exists()


def test_a_range_that_only_an_extra_asks_for_does_not_count(everything: Registry) -> None:
    assert "ok" == the_row(everything, "extra")[4]


def test_asking_for_what_an_incompatible_plugin_may_bring_says_so(site: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"future \(acme-future 1.0\): needs isentrope>=99"):
        only(site, "future").find("environment", "acme/future")


# ---------------------------------------------------------------- what several claim


def test_an_id_that_two_strangers_bring_is_refused_to_both(everything: Registry) -> None:
    for case, release, listed in (
        ("twin-a", "1.1", "acme-twin-a 1.1 and acme-twin-b 2.2"),
        ("twin-b", "2.2", "acme-twin-b 2.2 and acme-twin-a 1.1"),
    ):
        assert the_row(everything, case) == (
            "acme/twin", "environment", f"acme-{case}", release, "refused",
            f"{listed} bring the same environment 'acme/twin'; uninstall all but one.",
        )  # fmt: skip


def test_two_letters_that_changed_places_are_nearer_than_another_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'grpo'"):
        recipe("gpro")


def test_asking_for_a_refused_id_names_both_claimants(everything: Registry) -> None:
    with pytest.raises(PluginError) as caught:
        everything.find("environment", "acme/twin")
    assert (
        "The environment 'acme/twin' cannot be used: acme-twin-a 1.1 and acme-twin-b 2.2 bring "
        "the same environment 'acme/twin'; uninstall all but one."
    ) == str(caught.value)


def test_a_strangers_claim_on_our_id_is_refused_and_ours_goes_on(everything: Registry) -> None:
    assert the_row(everything, "usurper") == (
        "arithmetic", "environment", "acme-usurper", "1.0", "refused",
        "The environment 'arithmetic' is isentrope's own; acme-usurper 1.0 must name its "
        "otherwise.",
    )  # fmt: skip
    found = everything.find("environment", "arithmetic")
    assert "isentrope_envs.arithmetic:Arithmetic" == found.entry_point


def test_an_id_that_one_distribution_brings_twice_is_refused(everything: Registry) -> None:
    assert ["acme-stutter 1.0 brings the environment 'acme/stutter' more than once."] * 2 == [
        row.summary for row in rows_of(everything, "stutter")
    ]


# ---------------------------------------------------------------- from end to end


def test_a_strangers_environment_can_be_made_among_broken_plugins(site: Path) -> None:
    code = "import isentrope; print(isentrope.make('acme/maze', size=5).unwrapped.size)"
    assert "5\n" == output(code, site)


def test_a_record_whose_module_is_missing_fails_only_when_it_is_used(site: Path) -> None:
    code = """
        import isentrope
        try:
            isentrope.make("acme/gone")
        except isentrope.PluginError as error:
            print(error, type(error.__cause__).__name__, sep="|")
    """
    expected = (
        "The environment 'acme/gone' (acme_gone.nowhere:Env) failed to import: "
        "ModuleNotFoundError: No module named 'acme_gone.nowhere'.|ModuleNotFoundError\n"
    )
    assert expected == output(code, site)


def test_importing_isentrope_imports_no_torch_and_opens_no_plugin() -> None:
    code = """
        import sys
        import isentrope
        parts = {name.partition(".")[0] for name in sys.modules}
        print(sorted(p for p in parts if p in {"torch", "transformers", "gymnasium", "numpy"}
                     or p.startswith("isentrope") or p == "pluggy"))
    """
    assert "['isentrope']\n" == output(code)


def test_listing_plugins_imports_neither_torch_nor_transformers(site: Path) -> None:
    code = """
        import sys
        from isentrope.plugins import registry
        rows = registry().rows
        print(sum(row.state == "ok" for row in rows) > 10, "acme_maze.plugin" in sys.modules)
        print({"torch", "transformers", "peft", "acme_maze.env"} & set(sys.modules))
    """
    assert "True True\nset()\n" == output(code, site)


NO_TORCH = "import sys; sys.modules.update(torch=None, transformers=None, peft=None)\n"


def test_plugins_are_listed_where_torch_is_not_installed() -> None:
    code = """
        from isentrope.plugins import registry
        print({row.state for row in registry().rows}, "grpo" in registry().specs("recipe"))
    """
    assert "{'ok'} True\n" == output(NO_TORCH + textwrap.dedent(code))


@pytest.mark.parametrize("name", ["rloo", "grpo", "repo-r"])
def test_recipes_compose_where_torch_is_not_installed(name: str) -> None:
    code = f"import isentrope; print(type(isentrope.recipe({name!r})).__name__)"
    assert "Algorithm\n" == output(NO_TORCH + code)


def test_parts_of_an_algorithm_can_be_made_where_torch_is_not_installed() -> None:
    code = """
        import isentrope
        print(isentrope.component("transform", "repo-r", zeta=1).zeta,
              isentrope.component("advantage", "leave-one-out"),
              isentrope.make("arithmetic").reset(seed=0)[0].startswith("Solve"))
    """
    assert "1.0 LeaveOneOut() True\n" == output(NO_TORCH + textwrap.dedent(code))


def written(record: type) -> str:
    """How a record is made, as the page of contracts writes it."""
    parts = []
    for name, parameter in inspect.signature(record).parameters.items():
        default = {} if parameter.default is attrs.NOTHING else parameter.default
        given = parameter.default is not inspect.Parameter.empty
        parts.append(f"{name}={default!r}".replace("'", '"') if given else name)
    return f"{record.__name__}({', '.join(parts)})"


def test_every_hook_is_on_the_page_of_contracts_with_its_record() -> None:
    page = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
    assert f"`{written(EnvSpec)}`" in page
    assert f"`{written(ComponentSpec)}`" in page
    hooks = {n for n in vars(hookspecs) if n.startswith("isentrope_")}
    assert hooks == set(hookspecs.KINDS_OF_HOOK)
    for hook, kinds in hookspecs.KINDS_OF_HOOK.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{hook}()`")]
        assert hook == "isentrope_environments" or all(f"`{kind}`" in row for kind in kinds)
