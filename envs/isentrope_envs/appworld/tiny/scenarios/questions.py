"""Difficulty 1: questions, answered in two or three short cells; nothing may change."""

from __future__ import annotations

from typing import Any

from isentrope_envs.appworld.tiny.tasks import ANSWER, NOTHING_CHANGED, Draft, World, login

FIELDS = {
    "email address": "email",
    "phone number": "phone_number",
    "birthday": "birthday",
    "last name": "last_name",
}
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris")
CARDS = ("Visa", "MasterCard", "Discover", "HSBC", "Chase")
TAGS = ("home", "work", "fun")
TITLES = ("plan", "list", "idea", "trip", "bill", "game", "book", "song")


def profile(world: World) -> Draft:
    """Ask for something of one's own profile."""
    asked = list(FIELDS)[world.number % len(FIELDS)]  # with three people: twelve different tasks
    person = world.person
    answer = {
        "email": person.email,
        "phone_number": person.phone,
        "birthday": person.birthday,
        "last_name": person.last,
    }[FIELDS[asked]]
    return _question(
        f"What is my {asked}?",
        answer,
        "me = apis.supervisor.show_profile()\nprint(me)",
        f'apis.supervisor.complete_task(answer=me["{FIELDS[asked]}"])',
    )


def city(world: World) -> Draft:
    """Find the right one of two addresses, which come in either order."""
    boss = world.models.supervisor.Supervisor.first()
    names = world.rng.sample(("Home", "Work"), 2)
    towns = world.rng.sample(CITIES, 2)
    for name, town in zip(names, towns, strict=True):
        world.models.supervisor.Address.create_save(
            supervisor_id=boss.id,
            name=name,
            street_address="1 Main Street",
            city=town,
            state=town,
            country="Far",
            zip_code=10_000 + world.number,
        )
    asked = world.rng.randrange(2)
    return _question(
        f"In which city is my {names[asked].lower()} address?",
        towns[asked],
        "places = apis.supervisor.show_addresses()\n"
        'print([[p["name"], p["city"]] for p in places])',
        f'apis.supervisor.complete_task(answer=places[{asked}]["city"])',
    )


def cards(world: World) -> Draft:
    """Count payment cards."""
    held = world.number % len(CARDS) + 1
    boss = world.models.supervisor.Supervisor.first()
    for i, name in enumerate(CARDS[:held]):
        world.models.supervisor.PaymentCard.create_save(
            supervisor_id=boss.id,
            owner_name=f"{world.person.first} {world.person.last}",
            card_name=name,
            card_number=4 * 10**15 + 10 * world.number + i,
            expiry_year=2030,
            expiry_month=1,
            cvv_number=100 + i,
        )
    return _question(
        "How many payment cards do I have?",
        held,
        "cards = apis.supervisor.show_payment_cards()\nprint(len(cards))",
        "apis.supervisor.complete_task(answer=len(cards))",
    )


def balance(world: World) -> Draft:
    """Read a balance."""
    account = world.user("venmo")
    account.venmo_balance = world.rng.randint(101, 199)
    account.save()
    return _question(
        "What is my Venmo balance?",
        account.venmo_balance,
        login("venmo"),
        "money = apis.venmo.show_venmo_balance(access_token=token)\nprint(money)",
        'apis.supervisor.complete_task(answer=money["venmo_balance"])',
    )


def notes(world: World) -> Draft:
    """Count notes with a tag."""
    tag, found = world.rng.choice(TAGS), 0
    for title in world.rng.sample(TITLES, world.rng.randint(4, len(TITLES))):
        tags = world.rng.sample(TAGS, world.rng.randint(1, 2))
        found += tag in tags
        world.models.simple_note.Note.create_save(
            user_id=world.user("simple_note").id,
            title=title,
            content=f"About the {title}.",
            tags=tags,
            pinned=False,
        )
    return _question(
        f"How many of my notes have the tag {tag}?",
        found,
        login("simple_note"),
        "notes = apis.simple_note.search_notes("
        f'access_token=token, tags=["{tag}"], page_limit=20)\nprint(len(notes))',
        "apis.supervisor.complete_task(answer=len(notes))",
    )


def _question(instruction: str, answer: Any, *cells: str) -> Draft:
    return Draft(instruction, cells, (ANSWER, NOTHING_CHANGED), answer)
