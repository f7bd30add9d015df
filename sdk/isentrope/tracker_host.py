"""A tracker's own process: it takes the run's messages, and hands them on one by one.

Messages are lines of JSON on standard input: what to start, the metrics of each iteration, the end.
Where the input ends without one, the run was killed. A reader of its own takes them in, so that the
run can send them whatever the tracker is doing. What the tracker prints goes to its log file.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import re
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from isentrope.specs import load_entry_point
from isentrope.structuring import build
from isentrope.trackers import TrackedRun, Tracker

_OVER = {"end": {"failed": True}}


def main() -> None:
    """Serve one tracker until the run ends."""
    messages, report = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what is printed goes to the log; `report` is for us
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the run decides when it ends
    about = json.loads(messages.readline() or "null")
    if about is None:
        return
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    reader = (messages, inbox, about["patience"])
    threading.Thread(target=_read, args=reader, daemon=True).start()
    try:
        _serve(about, inbox)
    except BaseException as error:  # a stranger's code, which may also exit
        traceback.print_exc()
        said = " ".join(f"it raised {type(error).__name__}: {error}".split())[:1000]
        with suppress(OSError):  # nobody asks any more
            os.write(report, json.dumps({"failed": said.rstrip(".") + "."}).encode() + b"\n")
        sys.exit(1)


def _read(messages: Any, inbox: queue.SimpleQueue[dict[str, Any]], patience: float) -> None:
    """Take messages in; once there are no more, what is left to do has so many seconds."""
    for line in messages:
        if line.endswith(b"\n"):  # else the run was killed while it wrote
            inbox.put(json.loads(line))
    inbox.put(_OVER)
    signal.setitimer(signal.ITIMER_REAL, patience)  # whose signal ends the process


def _serve(about: Mapping[str, Any], inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
    folder = Path(about["run"]["folder"])
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of a run that was killed, the tracker may still finish
        told = folder.with_suffix(".json")
        cls = load_entry_point(about["entry_point"])
        config: Any = build(cls, about["options"])
        first = about["iteration"]
        if not getattr(config, "rewinds", False):
            first = max(first, told_of(told))
        run = TrackedRun(**{**about["run"], "folder": folder}, iteration=first)
        tracker: Tracker = config.start(run)
        try:
            failed = _log(tracker, inbox, first, told)
        except BaseException:
            with suppress(Exception):  # what it has so far is worth keeping
                tracker.close(True)
            raise
        tracker.close(failed)


def _log(
    tracker: Tracker, inbox: queue.SimpleQueue[dict[str, Any]], first: int, told: Path
) -> bool:
    """Tell the tracker of iterations from `first` on; return whether the run failed."""
    while "end" not in (message := inbox.get()):
        metrics = message["metrics"]
        if (iteration := metrics["iteration"]) < first:
            continue
        tracker.log(iteration, _numbers(metrics))
        draft = told.with_suffix(".draft")
        draft.write_text(json.dumps({"told": iteration + 1}), encoding="utf-8")
        draft.replace(told)
    return bool(message["end"]["failed"])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | int]:
    return {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and k != "iteration"}


def told_of(file: Path) -> int:
    """Return how many iterations a tracker was told of, by the file that says so."""
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["told"])
    except (OSError, ValueError):  # not there, mostly
        return 0


def file_stem(tracker_id: str) -> str:
    """Return what a tracker's files are called: its id, or import path, without separators."""
    return re.sub(r"[^\w-]", "-", tracker_id)
