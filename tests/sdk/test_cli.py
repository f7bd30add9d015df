"""The command line as a user meets it: a process, its output, its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
env = "arithmetic"
iterations = 2
[model]
id = "tiny-qwen3"
hidden_size = 32
layers = 1
warmup_steps = 150
warmup_batch = 64
warmup_lr = 8e-3
[algorithm]
recipe = "repo-r"
minibatch = 16
[rollout]
tasks = 4
max_tokens = 24
"""


def isentrope(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "isentrope", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_train_writes_metrics_and_eval_reads_the_run(config: Path) -> None:
    cwd = config.parent
    done = isentrope("train", config, "--set", "iterations=1", "--set", "rollout.group=6", cwd=cwd)
    assert (0, "") == (done.returncode, done.stderr)
    assert "reward" in done.stdout
    (folder,) = (cwd / "runs").iterdir()
    (metrics,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert (24, 0) == (metrics["episodes"], metrics["iteration"])
    again = isentrope("train", config, "--set", "iterations=1", cwd=cwd)
    assert 0 == again.returncode
    assert 2 == len(list((cwd / "runs").iterdir()))  # a second run gets a folder of its own
    evaluated = isentrope("eval", folder, "--tasks", 4, "--k", 2, cwd=cwd)
    assert (0, "") == (evaluated.returncode, evaluated.stderr)
    assert "pass@2" in evaluated.stdout


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["algorithm.recipe=rep-r"], "Did you mean 'repo-r'?"),
        (["rollout.taks=4"], "rollout: Key 'taks' does not exist. Did you mean 'tasks'?"),
        (["algorithm.objective.eps_lw=1"], "Did you mean 'eps_low'?"),
        (["algorithm.repo_r.zeta=1000"], "RepoR.zeta must be within [-10, 10]; got 1000"),
        (["nonsense"], "--set expects key=value, on one line; got 'nonsense'"),
        (["env=arithmetics"], "Did you mean 'arithmetic'?"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_status_2(config, settings, told) -> None:
    arguments = [part for s in settings for part in ("--set", s)]
    done = isentrope("train", config, *arguments, cwd=config.parent)
    assert 2 == done.returncode
    assert told in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert 1 == len(done.stderr.strip().splitlines())
    assert not (config.parent / "runs").exists()


def test_a_config_that_is_missing_or_no_toml_is_one_sentence(tmp_path: Path) -> None:
    missing = isentrope("train", "no.toml", cwd=tmp_path)
    assert (2, True) == (missing.returncode, "no.toml cannot be read" in missing.stderr)
    (tmp_path / "bad.toml").write_text("env = arithmetic")
    bad = isentrope("train", "bad.toml", cwd=tmp_path)
    assert (2, True) == (bad.returncode, "bad.toml is not valid TOML" in bad.stderr)


def test_plugins_and_envs_are_listed(tmp_path: Path) -> None:
    plugins = isentrope("plugins", cwd=tmp_path)
    assert 0 == plugins.returncode
    for column in ("arithmetic", "grpo", "entropy-ladder", "tiny-qwen3", "transformers"):
        (line,) = (x for x in plugins.stdout.splitlines() if x.split()[0] == column)
        assert " ok " in line
    envs = isentrope("envs", cwd=tmp_path)
    assert "train, dev, test" in envs.stdout


def test_envs_say_what_one_needs_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row() -> str:
        lines = isentrope("envs", cwd=tmp_path).stdout.splitlines()
        return next(line for line in lines if line.split()[0] == "appworld")

    monkeypatch.setenv("ISENTROPE_APPWORLD", str(tmp_path))
    assert "isentrope appworld install" in row()
    (tmp_path / "python" / "bin").mkdir(parents=True)
    (tmp_path / "python" / "bin" / "python").touch()
    assert "isentrope appworld install" not in row()


def test_check_says_what_each_check_found_and_how_many_passed(tmp_path: Path) -> None:
    done = isentrope("check", "clipped", cwd=tmp_path)
    assert 0 == done.returncode
    *findings, summary = done.stdout.splitlines()
    assert "Clipped: 8 of 8 checks passed" == summary
    assert ["ok"] * 8 == [line.split()[0] for line in findings]
    refused = isentrope("check", "entropy-ladder", cwd=tmp_path)
    assert (2, "") == (refused.returncode, refused.stdout)
    assert "isentrope check entropy-ladder --set knob=... --set low=..." in refused.stderr


COMMANDS = """
from isentrope import ComponentSpec, hookimpl

@hookimpl
def isentrope_commands():
    return [
        ComponentSpec("command", "acme", "acme_verbs:app", "Do as Acme does"),
        ComponentSpec("command", "lost", "acme_verbs:nothing", "Is not there"),
        ComponentSpec("command", "odd", "acme_verbs:odd", "Is none"),
        ComponentSpec("command", "train", "acme_verbs:app", "Would be ours"),
    ]

@hookimpl
def isentrope_checks():
    return [ComponentSpec("check", "acme", "acme_verbs:check", "Whether Acme is there")]
"""
VERBS = """
import os
import typer
from isentrope import ConfigError, Diagnosis

print("imported")
app = typer.Typer()
odd = 7

@app.command()
def install(where: str = "here"):
    if where == "nowhere":
        raise ConfigError("nowhere is no place.")
    print("installed", where)

@app.command()
def remove():
    print("removed")

def check():
    yield Diagnosis("acme", os.environ["STATE"], "not here", fix="isentrope acme install")
    if os.environ["STATE"] == "broken":
        raise RuntimeError("and worse")
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a distribution installed that brings commands and a check."""
    about = tmp_path / "acme-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[isentrope]\nacme = acme_plugin\n")
    (tmp_path / "acme_plugin.py").write_text(COMMANDS)
    (tmp_path / "acme_verbs.py").write_text(VERBS)
    found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", found)
    return tmp_path


def test_a_plugins_command_is_one_of_ours(acme: Path) -> None:
    assert "Do as Acme does" in isentrope("--help", cwd=acme).stdout
    done = isentrope("acme", "install", "--where", "there", cwd=acme)
    assert (0, "imported\ninstalled there\n") == (done.returncode, done.stdout)
    wrong = isentrope("acme", "install", "--where", "nowhere", cwd=acme)
    assert (2, "error: nowhere is no place.\n") == (wrong.returncode, wrong.stderr)


def test_a_plugins_command_is_imported_only_when_it_is_called(acme: Path) -> None:
    assert "imported" not in isentrope("envs", cwd=acme).stdout
    assert "CONFIG.toml" in isentrope("train", "--help", cwd=acme).stdout  # and ours stays ours


def test_a_command_that_cannot_be_used_says_why_and_hides_no_other(acme: Path) -> None:
    assert "Is not there" in isentrope("--help", cwd=acme).stdout
    lost = isentrope("lost", "--any", "thing", cwd=acme)
    assert 2 == lost.returncode
    assert "The command 'lost' (acme_verbs:nothing) failed to import" in lost.stderr
    assert (
        "The command 'odd' is of type int, and no typer.Typer." in isentrope("odd", cwd=acme).stderr
    )
    unknown = isentrope("acne", cwd=acme)
    assert 2 == unknown.returncode
    assert "Did you mean 'acme'" in unknown.stderr


def test_the_doctor_tells_what_works_and_asks_plugins(
    acme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE", "absent")
    for name in ("ISENTROPE_APPWORLD", "ISENTROPE_VLLM"):  # not what is half installed
        monkeypatch.setenv(name, str(acme / "nowhere"))
    fine = isentrope("doctor", cwd=acme)
    lines = fine.stdout.splitlines()
    assert 0 == fine.returncode, fine.stdout
    assert "ok      notebooks: cells are shut off from files and network" in lines
    place = lines.index("absent  acme: not here")
    assert "        fix: isentrope acme install" == lines[place + 1]
    assert re.fullmatch(r"\d+ fine, [3-9] absent, 0 broken", lines[-1])
    monkeypatch.setenv("STATE", "broken")
    ill = isentrope("doctor", cwd=acme)
    assert 1 == ill.returncode
    assert (
        "broken  acme: its check raised RuntimeError: and worse\n"
        "        fix: report it to the makers of acme 1.0"
    ) in ill.stdout
    assert ill.stdout.endswith(" 2 broken\n")
    monkeypatch.setenv("STATE", "sick")
    assert "Diagnosis.state: 'sick' does not exist" in isentrope("doctor", cwd=acme).stdout
