"""What a task is, before the engine's files are written."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import field, frozen

from isentrope_envs.appworld.tiny.people import PEOPLE, Person


@frozen
class World:
    """What a scenario fills for one task."""

    models: Any
    """The engine's tables, by app; what is added here is what the task adds to the base."""
    number: int
    """The task's among all of its scenario, over all splits."""
    rng: random.Random

    @property
    def person(self) -> Person:
        """Whose task it is."""
        return PEOPLE[self.number % len(PEOPLE)]

    @property
    def friends(self) -> list[Person]:
        """The others."""
        return [person for person in PEOPLE if person != self.person]

    def user(self, app: str) -> Any:
        """Return the person's account in an app."""
        if app == "phone":
            return self.models.phone.User.find_one(phone_number=self.person.phone)
        return self.models[app].User.find_one(email=self.person.email)


@frozen
class Check:
    """One of a task's tests."""

    requirement: str
    code: str
    """Body of the test, in the names of `evaluate` (see `writing`) and ``given``, the answer."""
    no_op: Literal["fail", "pass"] = "fail"
    """Whether an agent passes it that does nothing, or nothing but say that it is done."""


@frozen
class Draft:
    """A task: what is asked, how it is solved, how it is judged."""

    instruction: str
    cells: tuple[str, ...]
    """The solution as an agent would send it, a cell a turn; the last completes the task."""
    checks: tuple[Check, ...]
    answer: Any = None
    expected: Mapping[str, Any] = field(factory=dict)
    """``private_data`` of the checks."""

    @property
    def apis(self) -> set[str]:
        """What the solution calls, such as ``"venmo.login"``."""
        return set(re.findall(r"\bapis\.(\w+\.\w+)", "\n".join(self.cells)))

    @property
    def apps(self) -> list[str]:
        """The apps that it calls; the supervisor is none."""
        return sorted({api.partition(".")[0] for api in self.apis} - {"supervisor"})


@frozen
class Scenario:
    """A kind of task."""

    name: str
    """In small letters: ids are ``tiny<name><split>_<n>``, in which only one underscore may be."""
    difficulty: int
    write: Callable[[World], Draft]


# What scenarios share

ANSWER = Check("The answer is right.", "test.answer(given, ground_truth_answer)")
NO_ANSWER = Check(
    "No answer was given.",
    "before = json.loads(models.start.supervisor.Task.first().answer)\n"
    'test.case([given in (None, before)], "==", [True])',
    no_op="pass",
)
NOTHING_CHANGED = Check(
    "No record was changed.", 'test.case(models.changed_model_names(), "==", set())', no_op="pass"
)


def changed(*names: str) -> Check:
    """Return the check that records of these tables, and of no others, changed."""
    tables = ", ".join(f'"{name}"' for name in sorted(names))
    return Check(
        f"Only {' and '.join(sorted(names))} changed.",
        f'test.case(models.changed_model_names(), "==", {{{tables}}})',
    )


def only_added(name: str, count: int) -> Check:
    """Return the check that so many records were added to a table, none edited, none removed."""
    return Check(
        f"{count} added to {name}, none edited or removed.",
        f'test.case([len(rows) for rows in models.changed_records("{name}")], '
        f'"==", [{count}, 0, 0])',
    )


def login(app: str) -> str:
    """Return the cell that leaves an access token in ``token``."""
    username = "phone_number" if app == "phone" else "email"
    return (
        "me = apis.supervisor.show_profile()\n"
        "keys = apis.supervisor.show_account_passwords()\n"
        f'key = [k["password"] for k in keys if k["account_name"] == "{app}"][0]\n'
        f'token = apis.{app}.login(username=me["{username}"], password=key)["access_token"]'
    )
