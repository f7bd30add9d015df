"""Difficulty 2: one thing is to be done, as the instruction says."""

from __future__ import annotations

from isentrope_envs.appworld.tiny.tasks import (
    NO_ANSWER,
    Check,
    Draft,
    World,
    changed,
    login,
    only_added,
)

LABELS = ("tea", "bus", "walk", "call", "cake", "yoga")
CHORES = ("wash car", "feed cat", "pay rent", "buy milk", "call mum", "cut hair")


def alarm(world: World) -> Draft:
    """Set an alarm."""
    time = f"{world.rng.randint(5, 10):02d}:{world.rng.choice((5, 15, 30, 45)):02d}"
    label = world.rng.choice(LABELS)
    return Draft(
        f"Set a phone alarm for {time} with the label {label}.",
        (
            login("phone"),
            f'apis.phone.create_alarm(time="{time}", label="{label}", access_token=token)\n'
            "apis.supervisor.complete_task()",
        ),
        (
            changed("phone.Alarm"),
            only_added("phone.Alarm", 1),
            Check(
                "The alarm is on, at the time that was asked for.",
                '((alarm,), _, _) = models.changed_records("phone.Alarm")\n'
                'test.case([alarm.time, alarm.enabled], "==", [private_data.time, True])',
            ),
            Check(
                "The alarm has the label that was asked for.",
                '((alarm,), _, _) = models.changed_records("phone.Alarm")\n'
                'test.case(alarm.label, "==", private_data.label)',
            ),
            NO_ANSWER,
        ),
        expected={"time": time, "label": label},
    )


def todo(world: World) -> Draft:
    """Find a task in the inbox, mark it as done."""
    account, tables = world.user("todoist"), world.models.todoist
    inbox = tables.Project.find_one(user_id=account.id, is_inbox=True)
    titles = world.rng.sample(CHORES, 4)
    done = world.rng.choice(titles)
    for i, title in enumerate(titles):
        row = tables.Task.create_save(
            project_id=inbox.id, user_id=account.id, title=title, priority="medium", order_index=i
        )
        if title == done:
            wanted = row.id
    return Draft(
        f"Mark the task {done} in my Todoist inbox as done.",
        (
            login("todoist"),
            'tasks = apis.todoist.show_tasks(project_id=0, access_token=token)["no_section_tasks"]'
            '\nprint([t["title"] for t in tasks])',
            f'task = [t for t in tasks if t["title"] == "{done}"][0]\n'
            'apis.todoist.update_task(task_id=task["task_id"], is_completed=True, '
            "access_token=token)\n"
            "apis.supervisor.complete_task()",
        ),
        (
            changed("todoist.Task"),
            Check(
                "The task that was named, and no other, was edited.",
                'added, edited, removed = models.changed_records("todoist.Task")\n'
                "test.case([[], [row.id for row in edited], []], "
                '"==", [added, [private_data.task], removed])',
            ),
            Check(
                "It is done, and nothing else of it changed.",
                'names = models.changed_field_names("todoist.Task", private_data.task)\n'
                "row = models.end.todoist.Task.by_id(private_data.task)\n"
                'test.case([names, row.is_completed], "==", [{"is_completed"}, True])',
            ),
            NO_ANSWER,
        ),
        expected={"task": wanted},
    )


def pay(world: World) -> Draft:
    """Look a friend up in one app, send money in another."""
    friend = world.rng.choice(world.friends)
    amount, reason = world.rng.randint(5, 40), world.rng.choice(LABELS)
    return Draft(
        f"Send {friend.first} {amount} dollars on Venmo, described as {reason}.",
        (
            login("phone"),
            f'found = apis.phone.search_contacts(query="{friend.first}", access_token=token)\n'
            'print(found[0]["email"])',
            login("venmo"),
            f'apis.venmo.create_transaction(receiver_email="{friend.email}", amount={amount}, '
            f'description="{reason}", access_token=token)\n'
            "apis.supervisor.complete_task()",
        ),
        (
            changed("venmo.Notification", "venmo.Transaction", "venmo.User"),
            only_added("venmo.Transaction", 1),
            Check(
                "The money went to the friend.",
                '((sent,), _, _) = models.changed_records("venmo.Transaction")\n'
                "ends = [sent.sender.email, sent.receiver.email]\n"
                'test.case(ends, "==", [main_user.email, private_data.friend])',
            ),
            Check(
                "It was the amount that was asked for, described so.",
                '((sent,), _, _) = models.changed_records("venmo.Transaction")\n'
                "test.case([sent.amount, sent.description], "
                '"==", [private_data.amount, private_data.reason])',
            ),
            NO_ANSWER,
        ),
        expected={"friend": friend.email, "amount": amount, "reason": reason},
    )
