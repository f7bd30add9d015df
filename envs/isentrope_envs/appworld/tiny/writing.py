"""Writes one task as the engine reads it."""

from __future__ import annotations

import datetime as dt
import json
import random
import textwrap
from pathlib import Path
from typing import Any

from appworld.apps import get_all_apps
from appworld.apps.admin.models import MainUserMunch
from appworld.apps.api_lib import set_local_date_and_time
from appworld.apps.model_lib import CachedDBHandler, get_db_home_path
from appworld.collections.models import ModelCollection
from appworld.common.constants import DB_VERSION
from appworld.task import Task

from isentrope_envs.appworld.tiny.people import ACCOUNTS
from isentrope_envs.appworld.tiny.tasks import Draft, Scenario, World

NOW = dt.datetime(2023, 5, 18, 12, 0, 0)
"""When tasks take place: the engine's clock stands there."""
EVALUATION = '''\
"""The tests of one task."""

import json


def evaluate(test, public_data, private_data, main_user, models, ground_truth_answer):
    given = json.loads(models.end.supervisor.Task.first().answer)
'''


def write_task(
    data: Path, task: str, scenario: Scenario, number: int, seed: int, *, full: bool
) -> None:
    """Write a task's folder; `full` adds what the engine's own verification replays."""
    clock = set_local_date_and_time(NOW)
    try:
        models = ModelCollection.load(
            from_db_home_path=get_db_home_path(storage_type="disk", type="base"),
            to_db_home_path=get_db_home_path(
                storage_type="memory", type="task_input", task_id=task
            ),
            load_apps=get_all_apps(),
        )
        world = World(models, number, random.Random(f"{seed}:{task}"))
        _add_supervisor(world)
        draft = scenario.write(world)
        _save(world, task, draft.instruction)
    finally:
        CachedDBHandler.reset()
        clock.stop()
    _write_truth(data / "tasks" / task / "ground_truth", draft, scenario.difficulty, full=full)


def _add_supervisor(world: World) -> None:
    person, tables = world.person, world.models.supervisor
    boss = tables.Supervisor.create_save(
        **person.names,
        email=person.email,
        phone_number=person.phone,
        birthday=person.birthday,
        sex=person.sex,
    )
    for app in ACCOUNTS:
        tables.AccountPassword.create_save(
            supervisor_id=boss.id, account_name=app, password=person.password(app)
        )


def _save(world: World, task: str, instruction: str) -> None:
    """Write the specification, and the databases as changes to the base."""
    person, tables = world.person, world.models.supervisor
    tables.Task.create_save(supervisor_id=tables.Supervisor.first().id, instruction=instruction)
    Task(
        id=task,
        instruction=instruction,
        supervisor=MainUserMunch(**person.names, email=person.email, phone_number=person.phone),
        datetime=NOW,
        allowed_apps=get_all_apps(skip_admin=True),
        db_version=DB_VERSION,
        model_collection=world.models,
    ).save(save_ground_truth=False, model_collection_format="changes")


def _write_truth(folder: Path, draft: Draft, difficulty: int, *, full: bool) -> None:
    """Write the solution and the tests by hand: the engine's own `save` needs ruff."""
    folder.mkdir()
    solution = "def solution(apis, requester):\n" + textwrap.indent("\n".join(draft.cells), "    ")
    metadata = {
        "mode": "full" if full else "minimal",
        "difficulty": difficulty,
        "num_apps": len(draft.apps),
        "num_apis": len(draft.apis),
        "num_solution_code_lines": len(solution.splitlines()) - 1,
    }
    files: dict[str, Any] = {
        "answer.json": draft.answer,
        "public_data.json": {},
        "private_data.json": dict(draft.expected),
        "test_data.json": [
            {"requirement": check.requirement, "label": f"no_op_{check.no_op}"}
            for check in draft.checks
        ],
        "evaluation.py": EVALUATION + textwrap.indent(_tests(draft), "    "),
        "metadata.json": metadata,
        "turns.json": draft.cells,
    }
    if full:
        files |= {
            "required_apps.json": draft.apps,
            "solution.py": solution + "\n",
            "compiled_solution.py": solution + "\n",
            "generator.py": "",
            "api_calls.json": [],
        }
    for name, content in files.items():
        text = content if name.endswith(".py") else json.dumps(content, indent=1)
        (folder / name).write_text(text, encoding="utf-8")


def _tests(draft: Draft) -> str:
    """Return the body of `evaluate`."""
    return "".join(
        f"with test({json.dumps(check.requirement)}):\n{textwrap.indent(check.code, '    ')}\n"
        for check in draft.checks
    )
