"""What `diagnose` finds, and that each finding says what to do."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from isentrope import ConfigError, Diagnosis, diagnose
from isentrope.doctor import machine, software


def test_what_is_not_ok_needs_a_fix() -> None:
    with pytest.raises(ConfigError, match=r"Diagnosis.fix is missing: gpu is absent\."):
        Diagnosis("gpu", "absent", "there is none")
    assert "" == Diagnosis("gpu", "ok", "there is one").fix


def test_everything_that_a_run_needs_is_looked_at() -> None:
    names = [found.name for found in diagnose()]
    wanted = {"python", "packages", "cpu", "memory", "torch", "plugins", "workers", "notebooks"}
    wanted |= {"cache", "runs", "temporary files", "open files", "hub", "appworld", "vllm"}
    assert set() == wanted - set(names)


def test_the_doctors_numbers_are_the_machines(tmp_path: Path) -> None:
    found = {finding.name: finding.message for finding in diagnose()}
    assert f"{len(os.sched_getaffinity(0))} cores" in found["cpu"]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    total = float(found["memory"].split()[2])
    assert 0 < total <= round(pages, 1)
    free = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize / 2**30
    assert float(found["runs"].split()[0]) == pytest.approx(free, abs=1)


def test_a_folder_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ISENTROPE_CACHE", str(tmp_path / "file" / "cache"))
    cache = next(machine.disk())
    assert ("broken", "set ISENTROPE_CACHE to a folder on another disk") == (cache.state, cache.fix)


def test_a_full_disk_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LEAST_FREE", 2**60)
    monkeypatch.setenv("ISENTROPE_CACHE", str(tmp_path / "not" / "yet"))
    assert ["broken"] * 3 == [found.state for found in machine.disk()]


def test_too_few_open_files_are_broken_and_the_fix_works() -> None:
    code = """
import resource
from isentrope.doctor import machine
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2048))
(found,) = machine.open_files()
print(found.state, found.fix)
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "broken ulimit -n 2048\n" == said
    more = f"ulimit -n 256; {said.removeprefix('broken ').strip()}; ulimit -n"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= 2048:
        limit = subprocess.check_output(["bash", "-c", f"ulimit -Sn 256; {more.split('; ', 1)[1]}"])
        assert b"2048\n" == limit


def test_a_requirement_that_is_not_met_is_named_with_the_command_that_meets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["attrs>=99", "no-such-thing>=1", "numpy>=1", "ray>=99; extra == 'ray'"]
    monkeypatch.setattr(software, "requires", lambda _: lines)
    (found,) = software.packages()
    assert ("broken", "pip install 'attrs>=99' 'no-such-thing>=1'") == (found.state, found.fix)
    assert "and not >=99; no-such-thing is not installed" in found.message


@pytest.mark.parametrize(
    ("seen", "known", "built", "hidden", "state", "fix"),
    [
        (0, 0, "", None, "absent", "nothing, for tiny models"),
        (0, 2, "", None, "broken", "install a build of torch for CUDA"),
        (0, 2, "CUDA 13.0", None, "broken", "update the driver"),
        (1, 2, "CUDA 13.0", None, "broken", "update the driver"),
        (0, 2, "CUDA 13.0", "", "absent", "unset CUDA_VISIBLE_DEVICES"),
        (1, 2, "CUDA 13.0", "1", "absent", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_is_not_seen_has_its_reason(seen, known, built, hidden, state, fix) -> None:
    (found,) = software.missing_gpus(seen, ["550.54"] * known, built, hidden)
    assert ("gpu", state) == (found.name, found.state)
    assert found.fix.startswith(fix)


def test_gpus_that_are_all_seen_need_nothing() -> None:
    assert [] == list(software.missing_gpus(2, ["550.54"] * 2, "CUDA 13.0", None))
    assert [] == list(software.missing_gpus(1, [], "ROCm 6", None))  # whose driver is another's
