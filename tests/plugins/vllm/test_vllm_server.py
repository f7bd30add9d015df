"""Servers of vLLM: what they are started with, how they come up, fail, and end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from isentrope import ConfigError, EngineError, UnknownNameError
from isentrope_plugins.vllm.place import Place
from isentrope_plugins.vllm.server import (
    HOST,
    Server,
    ServerOptions,
    find_model,
    share_gpus,
    telling,
)

KEEPER = Path(sys.modules[Server.__module__].__file__ or "").with_name("keeper.py")


def flags(options: ServerOptions, device: str = "cpu") -> dict[str, str]:
    """Return what each flag is given: the next word, or nothing."""
    words = options.command("model", 8000, device)
    return {
        word: after if not after.startswith("--") else ""
        for word, after in zip(words, [*words[1:], "--"], strict=True)
        if word.startswith("--")
    }


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def wait_for(condition: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def processes(word: str) -> dict[str, str]:
    """Return processes with a word in command or environment, and those below; what each runs."""
    found, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        parents[folder.name] = (parent, command)
        if word in command + environment and folder.name != str(os.getpid()):
            found[folder.name] = command
    while more := {i: run for i, (up, run) in parents.items() if up in found and i not in found}:
        found.update(more)
    return found


def spawned(ours: dict[str, str]) -> list[str]:
    """Return those of a server's processes that its first one started: the engine, its worker."""
    return [i for i, run in ours.items() if "spawn_main" in run or "VLLM::" in run]


def left_of(ours: dict[str, str], word: str) -> list[str]:
    """Return those of some processes that are still there, and others that have the word."""
    return [i for i in {**ours, **processes(word)} if Path(f"/proc/{i}").exists()]


# What a server is started with


@pytest.mark.parametrize(
    ("rank", "prepared"), [(1, "1"), (2, "8"), (8, "8"), (16, "16"), (129, "256"), (512, "512")]
)
def test_vllm_is_prepared_for_the_next_rank_that_it_knows(rank: int, prepared: str) -> None:
    found = flags(ServerOptions(model="m", max_lora_rank=rank))
    assert prepared == found["--max-lora-rank"]


def test_a_rank_above_vllms_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^vLLM serves adapters of ranks up to 512; got 513\.$"):
        flags(ServerOptions(model="m", max_lora_rank=513))


def test_a_server_without_adapters_gets_no_flag_of_theirs() -> None:
    found = flags(ServerOptions(model="m", max_loras=0))
    assert [] == [name for name in found if "lora" in name]


def test_ones_own_flags_come_last_and_so_win() -> None:
    words = ServerOptions(model="m", flags=["--port", "1"]).command("m", 8000, "gpu")
    assert ["--port", "1"] == words[-2:]


def test_an_unknown_dtype_gets_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'bfloat16'"):
        ServerOptions(model="m", dtype="bfloat")


def test_a_server_gets_what_the_user_set_and_nothing_of_torchruns_or_of_our_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = ServerOptions(model="m", gpus=["2", "3"]).environment("cpu", local=True)
    assert ("mine", "3", "1", "1") == (
        found["HF_TOKEN"],
        found["OMP_NUM_THREADS"],
        found["VLLM_CPU_KVCACHE_SPACE"],
        found["HF_HUB_OFFLINE"],
    )
    assert "2,3" == found["CUDA_VISIBLE_DEVICES"]
    assert set() == {"RANK", "PYTHONPATH"} & set(found)
    found = ServerOptions(model="m").environment("gpu", local=False)
    assert "HF_HUB_OFFLINE" not in found
    assert "TORCH_COMPILE_DISABLE" not in found


def test_gpus_are_dealt_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,1")
    assert [("4", "5"), ("6", "7")] == share_gpus(2)
    with pytest.raises(ConfigError, match="6 servers need a GPU each; this process sees 5"):
        share_gpus(6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="this process sees 0"):
        share_gpus(1)


def test_a_model_is_a_folder_or_a_run_and_anything_else_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist\.$"):
        find_model(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"runs/one/last does not exist\.$"):
        find_model("runs/one/last")  # no hub has such a name, and none is asked
    with pytest.raises(ConfigError, match=r"holds no model: it has no config\.json\.$"):
        find_model(str(tmp_path))
    with pytest.raises(ConfigError, match="'who/knows' is no folder, and no hub's: ") as failed:
        find_model("who/knows")
    assert 1 == len(str(failed.value).splitlines())
    run = tmp_path / "run"
    (run / "policy").mkdir(parents=True)
    (run / "config.toml").write_text("")
    (run / "run.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="policy holds no model"):
        find_model(str(run))
    (run / "policy" / "config.json").write_text("{}")
    assert (str(run / "policy"), True) == find_model(str(run))
    with pytest.raises(ConfigError, match=r"polici does not exist. Did you mean '.*/run/policy'\?"):
        find_model(str(run / "polici"))


def test_without_an_installation_one_is_told_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vLLM is not installed in .*: isentrope vllm install"):
        Server.start(ServerOptions(model="m"), Place(tmp_path))


def test_a_port_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "requirements.txt").write_text("\nvllm-cpu==1\n")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^Ports are whole numbers up to 65535; got 70000\.$"):
        Server.start(ServerOptions(model=str(tmp_path), port=70000), Place(tmp_path))


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "requirements.txt").write_text("\nvllm-cpu==1\n")
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^Port {port} of 127\.0\.0\.1 cannot be had: Addr"):
            Server.start(ServerOptions(model=str(tmp_path), port=port), Place(tmp_path))


# What of a log is told

FAILED = """\
(APIServer pid=1) INFO 11-21 21:38:24 [api_utils.py:347] hello
(Worker pid=3) ERROR 11-21 21:42:01 [multiproc.py:900] Traceback (most recent call last):
(Worker pid=3) ERROR 11-21 21:42:01 [multiproc.py:900]   File "loader.py", line 1, in load
(Worker pid=3) ERROR 11-21 21:42:01 [multiproc.py:900] RuntimeError: Cannot find any model weights
(EngineCore pid=2) Exception: WorkerProc initialization failed. See stack trace for root cause.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_cause_is_told_and_not_its_echo_in_other_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(FAILED)
    assert ["RuntimeError: Cannot find any model weights"] == telling(log)


def test_where_no_error_is_logged_the_last_lines_are_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"INFO 11-21 21:38:24 [a.py:1] line {i}\n\n" for i in range(9)))
    assert [f"line {i}" for i in range(3, 9)] == telling(log)
    log.write_text("")
    assert ["(nothing)"] == telling(log)


# The keeper, with another program in vLLM's place

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True)
open(os.environ["TMPDIR"] + "/left", "w").close()
print("up", flush=True)
time.sleep(600)
"""
"""A server that will not end when it is asked to, with a process of its own elsewhere."""
PARENT = """
import os, subprocess, sys, threading, time
def start():
    command = [sys.executable, sys.argv[1], str(os.getpid()), "0.5", *sys.argv[2:]]
    subprocess.Popen(command, stdin=subprocess.PIPE)
thread = threading.Thread(target=start)
thread.start()
thread.join()  # what started it ends, and the server does not
time.sleep(600)
"""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A word in the environment of all that a test starts: a temporary folder of its own."""
    with tempfile.TemporaryDirectory(prefix="vllm-") as folder:  # pytest's is too deep for sockets
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield folder


def test_a_server_outlives_the_thread_that_started_it_and_nothing_of_it_outlives_the_process(
    mark: str,
) -> None:
    served = [sys.executable, "-c", STUBBORN, STUBBORN, "child"]
    command = [sys.executable, "-c", PARENT, str(KEEPER), *served]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert ["up\n", "up\n"] == [parent.stdout.readline() for _ in range(2)]
        time.sleep(0.5)
        assert 4 == len(processes(mark))  # parent, keeper, server and its child
        assert 1 == len(list(Path(mark).glob("isentrope-vllm-*")))
        parent.kill()
        parent.wait()
        assert wait_for(lambda: not processes(mark))
    assert [] == list(Path(mark).iterdir())


@pytest.mark.parametrize("how", ["word", "closed", "signal"])
def test_a_keeper_that_is_told_to_ends_all_of_its_server(mark: str, how: str) -> None:
    served = [sys.executable, "-c", STUBBORN, STUBBORN, "child"]
    command = [sys.executable, str(KEEPER), str(os.getpid()), "0.5", *served]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **streams) as keeper:  # type: ignore[call-overload]
        assert [b"up\n", b"up\n"] == [keeper.stdout.readline() for _ in range(2)]
        if how == "word":
            keeper.stdin.write(b"stop")
            keeper.stdin.flush()
        elif how == "closed":
            keeper.stdin.close()
        else:
            keeper.terminate()
        assert 128 + signal.SIGKILL == keeper.wait(timeout=20)
        assert {} == processes(mark)
    assert [] == list(Path(mark).iterdir())


def test_a_keeper_ends_as_its_server_did_and_takes_the_rest_with_it(mark: str) -> None:
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]);"
    command = [sys.executable, str(KEEPER), str(os.getpid()), "9", sys.executable, "-c"]
    command.append(f"{program} sys.exit(3)")
    with subprocess.Popen(command, stdin=subprocess.PIPE) as keeper:
        assert 3 == keeper.wait(timeout=20)
    assert {} == processes(mark)


def test_a_servers_temporary_folder_has_a_path_short_enough_for_its_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    command = [sys.executable, str(KEEPER), str(os.getpid()), "9", "/bin/sh", "-c"]
    command.append('echo "$TMPDIR"; : > "$TMPDIR/left"')
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        told = keeper.stdout.readline().decode().strip()
        assert 0 == keeper.wait(timeout=20)
    assert len(f"{told}/01234567-0123-0123-0123-0123456789ab") <= 107
    assert not Path(told).exists()


# Real servers


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_server_is_healthy_and_says_what_it_serves(server: Server) -> None:
    assert server.alive
    assert server.healthy()
    (base,) = get(f"{server.url}/v1/models")["data"]
    assert ("base", 1024) == (base["id"], base["max_model_len"])


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_first_request_waits_for_no_compiler(server: Server) -> None:
    body = {"model": "base", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 1.0}
    body |= {"logprobs": 0, "return_token_ids": True, "ignore_eos": True}
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/completions", data, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        (choice,) = json.load(answer)["choices"]
    assert (4, 4) == (len(choice["token_ids"]), len(choice["logprobs"]["token_logprobs"]))
    log = server.log.read_text(encoding="utf-8")
    assert "g++" not in log
    assert [] == list(Path(tempfile.gettempdir()).glob("isentrope-vllm-*/*/*.gch"))


@pytest.fixture
def stopped(vllm: Place, tiny_model: Path, mark: str) -> Iterator[Server]:
    """A server that is ready, to be stopped, with a temporary folder of its own."""
    with Server.start(ServerOptions(model=str(tiny_model), context=256), vllm) as started:
        started.wait_ready(600)
        yield started


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_stopped_server_leaves_nothing(stopped: Server, mark: str) -> None:
    (base,) = get(f"{stopped.url}/v1/models")["data"]
    assert 256 == base["max_model_len"]
    ours = processes(mark)
    assert 2 == len(spawned(ours))
    stopped.stop()
    assert ([], []) == (left_of(ours, mark), list(Path(mark).iterdir()))
    assert (False, False) == (stopped.alive, stopped.healthy())
    stopped.stop()  # nothing happens


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_server_whose_engine_is_killed_ends_and_says_so(stopped: Server, mark: str) -> None:
    ours = processes(mark)
    engine = min(map(int, spawned(ours)))  # which starts its worker
    os.kill(engine, signal.SIGKILL)
    assert wait_for(lambda: not stopped.alive, 60)
    assert [] == left_of(ours, mark)
    said = stopped.obituary()
    assert f"{stopped.url} ended with exit status" in said
    assert "EngineDeadError" in said or "died unexpectedly" in said, said
    stopped.stop()
    assert stopped.log.exists()


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_folder_that_vllm_cannot_load_says_why(
    vllm: Place, tiny_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").unlink()
    with Server.start(ServerOptions(model=str(broken)), vllm) as server:
        with pytest.raises(EngineError) as failed:
            server.wait_ready(600)
        head, *lines = str(failed.value).splitlines()
        assert f"vLLM's server of {broken} at {server.url} ended with exit status 1" in head
        assert str(server.log) in head
        assert [f"  RuntimeError: Cannot find any model weights with `{broken}`"] == lines
    assert server.log.exists()  # the error names it
    server.log.unlink()


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_server_that_takes_too_long_is_told_of(vllm: Place, tiny_model: Path, mark: str) -> None:
    told = r"is not ready after 0 s; its log, .*, ends with:"
    with (
        Server.start(ServerOptions(model=str(tiny_model)), vllm) as server,
        pytest.raises(EngineError, match=told),
    ):
        server.wait_ready(0.3)
    assert {} == processes(mark)
    server.log.unlink()


# The command


@contextmanager
def serve(*arguments: object, place: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "isentrope", "vllm", "serve", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, Place.variable: str(place), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def test_serving_nothing_is_one_sentence(tmp_path: Path) -> None:
    with serve(tmp_path, place=tmp_path / "vllm") as command:
        said = command.communicate(timeout=60)[1]
    assert (2, 1) == (command.returncode, len(said.splitlines()))
    assert "to install it: isentrope vllm install" in said


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_servers_are_served_until_ctrl_c(vllm: Place, tiny_model: Path, mark: str) -> None:
    options = ("--servers", 2, "--context", 256, "--", "--max-num-seqs", 4)
    with serve(tiny_model, *options, place=vllm.root) as command:
        assert command.stdout is not None
        starts = [command.stdout.readline() for _ in range(2)]
        assert all("starts; its log: " in line for line in starts)
        first, second = (line.split()[0] for line in starts)
        assert "Ready. In a run's TOML:\n" == command.stdout.readline()
        toml = "".join(command.stdout.readline() for _ in range(5))
        assert f'\n[engine]\nid = "vllm"\nurls = ["{first}", "{second}"]\n\n' == toml
        served = [get(f"{url}/v1/models")["data"][0] for url in (first, second)]
        assert [256, 256] == [base["max_model_len"] for base in served]
        ours = processes(mark)
        assert 4 == len(spawned(ours))
        command.send_signal(signal.SIGINT)
        rest, error = command.communicate(timeout=60)
    assert (130, "") == (command.returncode, error)
    assert rest.endswith("Stops.\n")
    assert ([], []) == (left_of(ours, mark), list(Path(mark).iterdir()))


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize(("word", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_command_that_is_ended_while_its_server_starts_leaves_none(
    vllm: Place, tiny_model: Path, mark: str, word: signal.Signals, status: int
) -> None:
    with serve(tiny_model, place=vllm.root) as command:
        assert wait_for(lambda: len(processes(mark)) >= 5, 120)  # its engine has been started
        ours = processes(mark)
        command.send_signal(word)
        assert status == command.wait(timeout=60)
        assert wait_for(lambda: not left_of(ours, mark))
    if word == signal.SIGTERM:  # nothing went wrong, so that nothing has to be looked up
        assert [] == list(Path(mark).glob("isentrope-vllm-*.log"))


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_server_that_dies_is_named_with_its_reason_and_the_last_one_ends_the_command(
    vllm: Place, tiny_model: Path, mark: str
) -> None:
    with serve(tiny_model, "--context", 256, place=vllm.root) as command:
        assert command.stdout is not None
        url = command.stdout.readline().split()[0]
        assert "Ready." in command.stdout.readline()
        ours = processes(mark)
        (keeper,) = (i for i, run in ours.items() if "keeper.py" in run)
        os.kill(int(keeper), signal.SIGKILL)  # not even this leaves a server
        error = command.communicate(timeout=60)[1]
    assert 1 == command.returncode
    assert f"at {url} ended with signal 9" in error
    assert "0 of 1 are left." in error
    assert wait_for(lambda: not left_of(ours, mark))
