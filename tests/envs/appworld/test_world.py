"""The real engine, in an interpreter of its own, and a policy that tries everything."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isentrope
from isentrope import ConfigError, TextEnv
from isentrope.config import read_config
from tests.sdk.test_workers import gone, of_this_process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def env(appworld: Path) -> Iterator[TextEnv]:
    """An environment whose code has two seconds a turn."""
    made = isentrope.make("appworld", preset="short", seconds=2.0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def task(appworld: Path) -> str:
    """The first task that somebody who does nothing does not solve, and is not a change."""
    return (appworld / "full/data/datasets/train.txt").read_text().split()[0]


def turns_of(root: Path, task: str) -> list[str]:
    file = root / "full/data/tasks" / task / "ground_truth/turns.json"
    found: list[str] = json.loads(file.read_text())
    return found


def does(env: TextEnv, code: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    return env.step(f"```python\n{code}\n```")


def begin(env: TextEnv, task: str) -> None:
    env.reset(seed=0, options={"task": task})


def prints(env: TextEnv, code: str) -> str:
    """Run a cell in a world that goes on, and return what the policy is told."""
    observation, reward, terminated, truncated, info = does(env, code)
    assert (0.0, False, False) == (reward, terminated, truncated)
    assert {} == info
    return observation


def test_variables_and_the_world_stay_from_turn_to_turn(env: TextEnv, task: str) -> None:
    begin(env, task)
    prints(env, "me = apis.supervisor.show_profile()")
    assert "@example.com" in prints(env, "print(me['email'])")


def test_every_task_of_ours_is_solved_by_its_solution(env: TextEnv, appworld: Path) -> None:
    for tasks in env.tasks.values():
        for found in tasks:
            begin(env, found.id)
            for code in turns_of(appworld, found.id):
                _, reward, terminated, _, info = does(env, code)
            assert (1.0, True, True) == (reward, terminated, info["success"]), found.id
            assert info["metrics"]["tests"] == info["metrics"]["passes"] >= 1
            assert 1 <= info["metrics"]["difficulty"] <= 3
            assert info["report"].startswith("passed: ")


def test_calling_it_complete_is_no_success(env: TextEnv, task: str) -> None:
    begin(env, task)
    _, reward, terminated, _, info = does(env, "apis.supervisor.complete_task(answer='no idea')")
    assert terminated
    assert not info["success"]
    assert reward < 1.0
    assert "failed: " in info["report"]


def answer_of(root: Path, task: str) -> Path:
    return root / "full/data/tasks" / task / "ground_truth/answer.json"


READ = "__import__('pathlib').Path({!r}).read_text()"


@pytest.mark.parametrize(
    "place",
    [
        "full/data/tasks/{task}/ground_truth/answer.json",
        "agent/data/tasks/{task}/specs.json",
        "agent/data/base_dbs/admin.db",
    ],
)
def test_no_file_of_the_data_can_be_read(
    env: TextEnv, appworld: Path, task: str, place: str
) -> None:
    begin(env, task)
    file = (appworld / place.format(task=task)).resolve()
    assert file.is_file()
    assert "PermissionError" in prints(env, f"print({READ.format(str(file))})")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(__import__('os').environ['PATH'])\nprint(dict(__import__('os').environ))", ""),
        ("__import__('socket').create_connection(('127.0.0.1', 22), 1)", "Error"),
        ("__import__('socket').create_connection(('192.0.2.1', 80), 1)", "Error"),
        ("print(__import__('os').posix_spawn('/bin/true', ['true'], {}))", "Error"),
        ("__import__('os').mkdir('/tmp/escaped')", "Error"),
        ("__import__('pathlib').Path('/tmp/escaped').touch()", ""),  # the engine's guard eats it
        ("print([entry.name for entry in __import__('os').scandir('/root')])", "PermissionError"),
        ("print(len(bytearray(5 << 30)))", "MemoryError"),
        ("print(open('/proc/1/environ').read())", ""),
        ("import subprocess\nprint(subprocess.run(['id']))", "Execution failed"),
    ],
)
def test_what_is_outside_stays_outside(env: TextEnv, task: str, code: str, said: str) -> None:
    begin(env, task)
    told = prints(env, code)
    assert said in told
    assert "ISENTROPE" not in told
    assert not Path("/tmp/escaped").exists()
    assert "@example.com" in prints(env, "print(apis.supervisor.show_profile()['email'])")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(lib.mkdir(b'mine', 0o700), c.get_errno())", "-1 13"),
        ("print(lib.memfd_create(b'mine', 0), c.get_errno())", "-1 1"),
        ("print(lib.shmget(0, 1 << 20, 0o1600), c.get_errno())", "-1 1"),
        ("print(lib.open(b'mine', 0o101, 0o600), c.get_errno())", "-1 13"),
    ],
)
def test_its_code_fills_no_disk(env: TextEnv, task: str, code: str, said: str) -> None:
    begin(env, task)
    assert said in prints(env, PARENT + code)


PARENT = "c, o = __import__('ctypes'), __import__('os')\nlib = c.CDLL(None, use_errno=True)\n"
PEEK = """
class Piece(c.Structure):
    _fields_ = [('base', c.c_void_p), ('length', c.c_size_t)]
buffer = c.create_string_buffer(8)
mine, theirs = Piece(c.addressof(buffer), 8), Piece(id(apis), 8)
print(lib.process_vm_readv(o.getppid(), c.byref(mine), 1, c.byref(theirs), 1, 0))
"""


@pytest.mark.parametrize(
    "code",
    [
        PEEK,
        "print(lib.kill(o.getppid(), 9))",
        "print(lib.ptrace(16, o.getppid(), 0, 0))",
        "print(lib.prlimit(o.getppid(), 7, (c.c_ulong * 2)(0, 0), None))",
        "print(lib.setpriority(0, o.getppid(), 19))",
    ],
)
def test_the_worlds_process_can_be_neither_read_nor_killed(
    env: TextEnv, task: str, code: str
) -> None:
    begin(env, task)
    assert "-1" == prints(env, PARENT + code)
    assert "@example.com" in prints(env, "print(apis.supervisor.show_profile()['email'])")


def test_there_is_no_ground_truth_in_its_process(env: TextEnv, task: str) -> None:
    begin(env, task)
    code = (
        "found = [o for o in __import__('gc').get_objects() if 'GroundTruth' in type(o).__name__]\n"
        "print(len(found), len([o for o in __import__('gc').get_objects()]) > 1000)"
    )
    assert "0 True" == prints(env, code)


@pytest.mark.parametrize(
    "code",
    [
        "from appworld.apps.supervisor import models\nprint(models.Task.first())",
        "print(apis.supervisor.requester.client._channel._socket.fileno())\n"
        "print(requester.post('/dbs', data={'create': True}).text)",
        "print(requester.post('/seed', data={'seed': 1}).text)",
        "print(requester.get('/supervisor/../dbs').text)",
        "print(requester.get('/supervisor/%2e%2e/dbs').text)",
    ],
)
def test_the_databases_are_out_of_reach(env: TextEnv, task: str, code: str) -> None:
    begin(env, task)
    assert "Execution failed" in prints(env, code)


@pytest.mark.parametrize(
    "sent",
    [
        "'phone/messages/text/5%252F', headers={'Host': 'x/dbs?'}, json={}",
        "'phone/messages/text/5', headers={'Host': 'x/dbs?'}, json={}",
        "'phone/messages/text/5%2F', json={}",
    ],
)
def test_no_request_is_led_elsewhere(env: TextEnv, task: str, sent: str) -> None:
    """A host of the policy's own, and a redirect, once led to what deletes folders."""
    begin(env, task)
    assert "There is no such API" in prints(env, f"print(requester.client.post({sent}).text)")


@pytest.mark.parametrize(
    "code",
    [
        "apis.supervisor.complete_task(answer=float('inf'))",
        "apis.supervisor.complete_task(answer='\\ud800')",
        "print('\\ud800')",
        "apis.supervisor.complete_task(answer='x' * 100_000)",
        "home = __import__('os').getcwd()\nprint(requester.client.get('supervisor/profile', "
        "params={'access_token': float('nan')}).text)",
    ],
)
def test_what_no_file_can_hold_fails_no_environment(env: TextEnv, task: str, code: str) -> None:
    begin(env, task)
    prints(env, code)
    *_, info = does(env, "apis.supervisor.complete_task(answer='no idea')")
    assert info["success"] is False


def test_a_world_that_is_told_too_much_stops_listening(env: TextEnv, task: str) -> None:
    begin(env, task)
    post = "requester.client.post('phone/messages/text/5550100001', json={'message': 'y' * 60_000})"
    counted = f"print(sum({post}.status_code != 422 for _ in range(70)))"
    told = [int(prints(env, counted)) for _ in range(5)]
    assert 279 == sum(told)  # 16 MiB
    assert 0 == told[-1]
    *_, info = does(env, "apis.supervisor.complete_task(answer='no idea')")  # which is short
    assert info["success"] is False


def test_a_call_that_was_interrupted_disturbs_no_other(env: TextEnv, task: str) -> None:
    begin(env, task)
    prints(env, "x = 5")
    code = "from time import process_time as used\nend = used() + 1.5\nwhile used() < end: pass\n"
    code += "while True: apis.supervisor.show_profile()"  # 2 s of calls may be too many of them
    assert "timed out" in prints(env, code)
    assert "5" == prints(env, "print(x)")
    assert "@example.com" in prints(env, "print(apis.supervisor.show_profile()['email'])")


def test_what_left_its_group_ends_with_its_episode(env: TextEnv, task: str) -> None:
    begin(env, task)
    before = of_this_process()
    lib = "lib = __import__('ctypes').CDLL(None)\n"
    prints(env, f"{lib}if lib.fork() == 0:\n    lib.setsid()\n    while True: pass")
    assert len(of_this_process() - before) >= 2
    does(env, "apis.supervisor.complete_task()")
    assert all(map(gone, of_this_process() - before))


def test_writing_its_own_copy_of_a_database_earns_nothing(
    env: TextEnv, appworld: Path, task: str
) -> None:
    """Through the engine's models, as a policy that has read its source would."""
    answer = json.loads(answer_of(appworld, task).read_text())
    begin(env, task)
    does(
        env,
        "from appworld.apps.supervisor import models\n"
        "try:\n"
        "    row = models.Task.first()\n"
        f"    row.answer = {answer!r}\n"
        "    row.status = 'success'\n"
        "    row.save()\n"
        "except Exception as error:\n"
        "    print(type(error))",
    )
    _, reward, terminated, _, info = does(env, "apis.supervisor.complete_task(answer='wrong')")
    assert terminated
    assert not info["success"]
    assert reward < 1.0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("sum(range(10**11))", "took longer than"),
        ("__import__('signal').alarm(0)\nwhile True:\n    pass", "took longer than"),
        ("while True:\n    pass", "timed out after 2 seconds"),
        ("raise KeyboardInterrupt", "ended its process"),
        ("__import__('ctypes').CDLL(None)._exit(3)", "ended its process"),
        ("__import__('os').kill(__import__('os').getpid(), 9)", ""),
        ("__import__('ctypes').CDLL(None).kill(0, 9)", "ended its process"),
        ("__import__('sys').setrecursionlimit(10**9)\nf = lambda: f()\nf()", ""),
    ],
)
def test_what_hangs_or_dies_loses_its_variables_and_not_its_world(
    env: TextEnv, task: str, code: str, told: str
) -> None:
    begin(env, task)
    start = time.monotonic()
    assert told in prints(env, code)
    assert time.monotonic() - start < 12
    assert "@example.com" in prints(env, "print(apis.supervisor.show_profile()['email'])")


def test_a_fork_bomb_is_counted(env: TextEnv, task: str) -> None:
    begin(env, task)
    code = "fork = __import__('ctypes').CDLL(None).fork\nfor _ in range(200):\n    fork()\n"
    prints(env, code)
    assert "@example.com" in prints(env, "print(apis.supervisor.show_profile()['email'])")


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x02{}",
        b"\x00\x00\x00\x02[]",
        b'\x00\x00\x00\x0d{"output": 1}',
        b"\x00\x00\x00\x04nope",
        b"\x00\x00\x00\x1f" + b'{"output": "lie", "ran": true}'.ljust(31),
        b"\x00\x00\x00\x3c" + b'{"method": "get", "url": ["x"], "data": 7}'.ljust(60),
        b"\x00\x00\x00\x50"
        + b'{"method": "get", "url": "supervisor/profile", "data": {"params": 7}}'.ljust(80),
    ],
)
def test_a_forged_frame_is_a_lie_to_itself_at_most(env: TextEnv, task: str, frame: bytes) -> None:
    begin(env, task)
    code = f"apis.supervisor.show_profile()\nrequester.client._channel._socket.sendall({frame!r})"
    prints(env, code)
    prints(env, "x = 1")  # whatever is left over
    _, reward, terminated, _, info = does(env, "apis.supervisor.complete_task(answer='no idea')")
    if terminated:
        assert not info["success"]
        assert reward < 1.0


def test_a_right_solve_after_all_that_still_counts(env: TextEnv, appworld: Path, task: str) -> None:
    begin(env, task)
    prints(env, "raise KeyboardInterrupt")
    prints(env, "1/0")
    for code in turns_of(appworld, task):
        _, reward, _, _, info = does(env, code)
    assert (1.0, True, 2) == (reward, info["success"], info["metrics"]["failed_cells"])


def test_a_turn_limit_of_its_own_judges_what_was_done(appworld: Path, task: str) -> None:
    env = isentrope.make("appworld", preset="loop", turns=2)
    try:
        begin(env, task)
        first = does(env, "print(1)")
        assert "The task, once more: " in first[0]
        _, reward, terminated, truncated, info = does(env, "print(2)")
        assert (False, True, False) == (terminated, truncated, info["success"])
        assert info["metrics"]["passes"] / info["metrics"]["tests"] == pytest.approx(reward)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"preset": "looop"}, r"preset must be one of \['appworld', 'loop', 'short'\]"),
        ({"reward": "most"}, r"reward must be one of \['fraction', 'gated', 'success'\]"),
        ({"turns": 0}, r"turns must be a whole number, at least 1; got 0"),
        ({"difficulties": [4]}, r"difficulties must be a list of \[1, 2, 3\]; got \[4\]"),
        ({"outputs": "/proc/mine"}, r"^outputs: /proc/mine cannot be written: /proc: "),
        ({"tuns": 3}, r"^Option of environment 'appworld': 'tuns' .* Did you mean 'turns'\?"),
    ],
)
def test_a_wrong_option_is_one_sentence(appworld: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        isentrope.make("appworld", **config)


def test_outputs_are_a_folder_once_there_are_some(
    appworld: Path, task: str, tmp_path: Path
) -> None:
    env = isentrope.make("appworld", preset="short", outputs=str(tmp_path / "a" / "b"))
    try:
        assert [] == list(tmp_path.iterdir())
        begin(env, task)
    finally:
        env.close()
    (kept,) = (tmp_path / "a" / "b").iterdir()
    assert kept.name.startswith(task)


def test_nothing_is_left_behind(
    appworld: Path, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of what is started from here on
    processes = of_this_process()
    env = isentrope.make("appworld", preset="short")
    begin(env, task)
    does(env, "print(1)")
    assert list(tmp_path.iterdir())
    env.close()
    assert all(map(gone, of_this_process() - processes))
    assert [] == list(tmp_path.iterdir())


def test_the_example_composes(appworld: Path) -> None:
    config = read_config(Path(__file__).parents[3] / "examples" / "appworld-qwen3-8b.toml")
    assert ("appworld", 30, 32768) == (
        config.env.id,
        config.rollout.max_turns,
        config.rollout.context,
    )
