"""The README's code does what the README says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, containing: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (block,) = [b for b in found if containing in b]
    return block


def test_the_composition_in_the_readme_composes() -> None:
    space: dict[str, object] = {}
    exec(blocks("python", "isentrope.Algorithm("), space)
    assert {"objective.eps_low", "objective.eps_high", "repo_r.zeta"} == set(
        space["algorithm"].knobs()
    )


def test_the_environment_in_the_readme_keeps_the_contract() -> None:
    import isentrope

    space: dict[str, object] = {}
    exec(blocks("python", "class Reverse"), space)
    report = isentrope.testing.check_env(space["Reverse"])
    assert report.ok, str(report)


def test_the_plugin_in_the_readme_is_one_that_loads() -> None:
    space: dict[str, object] = {}
    exec(blocks("python", "isentrope_environments"), space)
    (spec,) = space["isentrope_environments"]()
    assert ("acme/reverse", ("train",)) == (spec.id, spec.splits)


def test_the_toml_in_the_readme_is_read_by_the_configuration(tmp_path: Path) -> None:
    from isentrope.config import read_config

    text = blocks("toml", "pretrained")
    config = read_config({**tomllib.loads(text), "env": "arithmetic", "algorithm": "grpo"})
    assert 16 == config.learner.lora.r
    assert "path/to/model" == config.model.path


def test_every_file_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"\]\(([\w./-]+)\)|`?(examples/[\w.-]+)`?", README))
    paths = {a or b for a, b in named}
    assert paths
    assert [] == [p for p in sorted(paths) if not (ROOT / p).exists()]


@pytest.mark.slow
def test_the_first_example_in_the_readme_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks("python", "isentrope.train("), {})
    lines = capsys.readouterr().out.splitlines()
    assert 21 == len(lines)
    assert lines[-1].startswith("{1: 0.")
