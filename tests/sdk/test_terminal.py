"""How commands end, what they say of wrong words, and how their help reads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FAILS = """
from isentrope import Task, TaskSet, TextEnv

class Fails(TextEnv):
    def __init__(self):
        self.tasks = TaskSet({"train": [Task("one", {}), Task("two", {})]})

    def reset(self, *, seed=None, options=None):
        raise RuntimeError("no world today")

    def step(self, action):
        return "", 0.0, True, False, {}

    def demonstrate(self, rng, noise=0.0):
        return "1"
"""
PLUGIN = """
from isentrope import ComponentSpec, hookimpl

@hookimpl
def isentrope_commands():
    return [ComponentSpec("command", "acme", "acme_verbs:app", "Do as [Acme] does")]
"""
VERBS = """
import os
import time
import typer

app = typer.Typer()

@app.command()
def break_down():
    raise KeyError("acme")

@app.command()
def fill():
    raise OSError(28, os.strerror(28), "/data/acme")

@app.command()
def wait():
    print("waits", flush=True)
    time.sleep(60)

@app.command()
def ask():
    typer.confirm("Really?", abort=True)
"""
COMMANDS = (
    *("train", "eval", "report", "view", "compare", "check", "new", "plugins", "envs", "doctor"),
    *("appworld install", "appworld remove", "appworld score", "appworld pack"),
    *("vllm install", "vllm remove", "vllm serve"),
)


def environment(columns: int = 80) -> dict[str, str]:
    return {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}


def isentrope(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isentrope", *map(str, words)], cwd=cwd, env=environment(),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a distribution installed that brings a command, and an environment that fails."""
    about = tmp_path / "acme-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[isentrope]\nacme = acme_plugin\n")
    (tmp_path / "acme_plugin.py").write_text(PLUGIN)
    (tmp_path / "acme_verbs.py").write_text(VERBS)
    (tmp_path / "acme_world.py").write_text(FAILS)
    found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", found)
    return tmp_path


# ---------------------------------------------------------------- exit statuses


def test_what_was_asked_for_and_done_is_status_0(tmp_path: Path) -> None:
    done = isentrope("envs", cwd=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)


def test_what_is_found_wrong_is_status_1(acme: Path) -> None:
    done = isentrope("check", "acme_world:Fails", cwd=acme)
    assert (1, "") == (done.returncode, done.stderr)
    assert "no world today" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", ""),
        ("trian", "Command 'trian' does not exist. Did you mean 'train'?"),
        ("eval runs/x --taks 3", "Option '--taks' does not exist. Did you mean '--tasks'? "
         "See: isentrope eval --help"),
        ("train --nonsense", "Option '--nonsense' does not exist. Known: --dry-run, --gpus, "
         "--help, --out, --resume, --set. See: isentrope train --help"),
        ("eval", "Missing argument 'POLICY'. See: isentrope eval --help"),
        ("eval x --k", "Option '--k' requires an argument."),
        ("new env a b", "Got unexpected extra argument(s) (b). See: isentrope new --help"),
        ("vllm srve", "No such command 'srve'. Did you mean 'serve', 'remove'? "
         "See: isentrope vllm --help"),
        ("vllm go", "No such command 'go'. Known: install, remove, serve. "
         "See: isentrope vllm --help"),
        ("vllm serve x --dtype float61", "--dtype: 'float61' does not exist. "
         "Did you mean 'float16'?"),
        ("vllm serve x --max-lora-rank 0", "--max-lora-rank must be a whole number, at least 1; "
         "got 0."),
        ("train", "Name a CONFIG.toml to train from, or --resume RUN to go on with one."),
        ("train --set env=arithmetic", "algorithm is missing: choose one of"),
        ("new enw x", "Kind 'enw' does not exist. Did you mean 'env'?"),
        ("new env a-b --out /dev/null/x", "/dev/null/x cannot be written: "),
        ("check arithmetics", "Component 'arithmetics' does not exist. Did you mean 'arithmetic'?"),
        ("check clipped --kind objectiv", "Kind to check 'objectiv' does not exist. "
         "Did you mean 'objective'?"),
        ("appworld install --data reel", "Data 'reel' does not exist. Did you mean 'real'?"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_one_sentence_and_status_2(tmp_path, words, said) -> None:
    done = isentrope(*words.split(), cwd=tmp_path)
    assert 2 == done.returncode
    assert done.stderr.startswith(f"error: {said}" if said else "")
    assert bool(said) == len(done.stderr.splitlines())
    assert [] == list(tmp_path.iterdir())


def test_a_port_that_is_no_number_is_one_sentence(tmp_path: Path) -> None:
    done = isentrope("view", "x", "--port", "some", cwd=tmp_path)
    assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "Invalid value for '--port'" in done.stderr


def test_what_is_not_confirmed_is_not_done_and_status_2(acme: Path) -> None:
    done = isentrope("acme", "ask", cwd=acme)
    assert (2, "error: Not confirmed: nothing was done.") == (
        done.returncode, done.stderr.splitlines()[-1],
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_that_cannot_go_on_is_one_sentence_and_status_3(acme: Path) -> None:
    settings = ("env=acme_world:Fails", "algorithm=grpo", "model.warmup_steps=1", "iterations=1")
    done = isentrope("train", *(f"--set={s}" for s in settings), "--out", "run", cwd=acme)
    assert 3 == done.returncode, done.stderr
    assert "no world today" in done.stderr
    assert "Traceback" not in done.stdout
    assert not (acme / "run").exists()


def test_a_full_disk_is_one_sentence_and_status_3(acme: Path) -> None:
    done = isentrope("acme", "fill", cwd=acme)
    told = "error: [Errno 28] No space left on device: '/data/acme'\n"
    assert (3, told) == (done.returncode, done.stderr)


def test_a_fault_keeps_its_traceback_and_is_status_70(acme: Path) -> None:
    done = isentrope("acme", "break-down", cwd=acme)
    assert 70 == done.returncode
    assert "Traceback (most recent call last)" in done.stderr
    assert "KeyError: 'acme'" in done.stderr
    assert "isentrope doctor" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_ctrl_c_is_status_130_and_the_shell_makes_143_of_sigterm(acme, number, status) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "isentrope", "acme", "wait"],
        cwd=acme, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "waits\n" == process.stdout.readline()
    process.send_signal(number)
    assert ("", "") == process.communicate(timeout=60)
    assert status == process.returncode


@pytest.mark.slow
def test_a_run_that_ctrl_c_stopped_is_status_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    settings = ("env=arithmetic", "algorithm=grpo", "model.hidden_size=32", "model.layers=1")
    command = [sys.executable, "-um", "isentrope", "train", *(f"--set={s}" for s in settings)]
    process = subprocess.Popen(
        [*command, "--set=model.warmup_steps=1", "--set=rollout.tasks=2"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "reward" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert 130 == process.returncode, error
    assert "isentrope train --resume runs/arithmetic-grpo" in said


# ---------------------------------------------------------------- help


def test_the_help_groups_commands_and_says_how_to_begin(tmp_path: Path) -> None:
    done = isentrope("--help", cwd=tmp_path)
    panels = re.findall(r"^╭─ ([\w ]+?) ─", done.stdout, re.M)
    assert ["Options", "Start", "Evaluate", "Look", "Extend", "This machine", "From plugins"] == (
        panels
    )
    start = [line.split() for line in done.stdout.splitlines() if line.startswith("  isentrope")]
    assert ["doctor", "train", "view"] == [words[1] for words in start]


def test_what_plugins_say_of_their_commands_is_shown_as_it_is(acme: Path) -> None:
    assert "Do as [Acme] does" in isentrope("--help", cwd=acme).stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example_and_its_exit_statuses(tmp_path, command) -> None:
    shown = isentrope(*command.split(), "--help", cwd=tmp_path).stdout
    assert re.search(r"^ Examples?:", shown, re.M)
    assert re.search(rf"^  isentrope {command}\b", shown, re.M)
    assert re.search(r"^ Exit status(es)?: ", shown, re.M)
    assert "…" not in shown
    assert 80 >= max(map(len, shown.splitlines()))
    assert not re.search(r"[{│ ]<(str|int|path)>", shown.partition("Options")[2])
