"""Plays episodes in AppWorld's interpreter: reads a list of [task, cells], writes the verdicts."""

from __future__ import annotations

import json
import os
import sys

from appworld import AppWorld


def play(task: str, cells: list[str]) -> dict[str, object]:
    outputs, completed = [], []
    with AppWorld(task, experiment_name="played") as world:
        for cell in cells:
            completed.append(world.task_completed())
            outputs.append(world.execute(cell))
        completed.append(world.task_completed())  # before it evaluates: not always true after
        verdict = world.evaluate()
        return {
            "outputs": outputs,
            "completed": completed,
            "success": verdict.success,
            "passes": [test["requirement"] for test in verdict.passes],
        }


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        episodes = json.load(file)
    with open(sys.argv[2], "w") as file:
        json.dump([play(task, cells) for task, cells in episodes], file)
    os._exit(0)  # the interpreter's own end takes seconds, after a world
