"""Who lives in the tiny world. Few and short words: a tiny model has to learn them."""

from __future__ import annotations

from attrs import frozen


@frozen
class Person:
    """Someone with accounts in all apps: the supervisor of some tasks, a friend in the others."""

    first: str
    last: str
    phone: str
    birthday: str
    sex: str

    @property
    def email(self) -> str:
        """The address, which is the name of every account but the phone's."""
        return f"{self.first.lower()}@example.com"  # the engine refuses .test

    @property
    def names(self) -> dict[str, str]:
        """The columns that every table of people has."""
        return {"first_name": self.first, "last_name": self.last}

    def password(self, app: str) -> str:
        """Return the one for an app."""
        return f"{self.first.lower()}-{app}"


PEOPLE = (
    Person("Ann", "Lee", "5550000001", "1988-03-14", "female"),
    Person("Bob", "Hill", "5550000002", "1990-11-02", "male"),
    Person("Cleo", "Park", "5550000003", "1985-07-21", "female"),
)
EMAIL_APPS = (
    "amazon", "file_system", "gmail", "simple_note", "splitwise", "spotify", "todoist", "venmo",
)  # fmt: skip
"""Apps whose accounts go by e-mail address."""
ACCOUNTS = (*EMAIL_APPS, "phone")
