"""What all tasks begin from: the same people in every app, some songs, the API documentation."""

from __future__ import annotations

import datetime as dt
import json
import random
from pathlib import Path
from typing import Any

from appworld.apps import get_all_apps
from appworld.apps.api_lib import set_local_date_and_time
from appworld.apps.model_lib import CachedDBHandler, get_db_home_path
from appworld.collections.api_docs import ApiDocCollection
from appworld.collections.models import ModelCollection
from appworld.common.constants import CANARY_STRING

from isentrope_envs.appworld.tiny.people import ACCOUNTS, EMAIL_APPS, PEOPLE, Person

START = dt.datetime(2023, 1, 9, 9, 0, 0)
"""When everything in the base happened."""
LIBRARY = 24
"""Songs in a library: more than a page of the engine's holds."""
MOODS = ("Slow", "Bright", "Paper", "Silent", "Amber", "Velvet")
THINGS = ("Comet", "Willow", "Harbor", "Lantern", "Signal", "Tunnel")


def write_base(data: Path) -> None:
    """Write ``base_dbs`` and ``api_docs`` into an empty data folder."""
    docs = ApiDocCollection.build(load_apps=tuple(get_all_apps(skip_admin=True)))
    _write_docs(docs, data / "api_docs" / "standard")
    scratch = get_db_home_path(storage_type="memory", type="test")
    clock = set_local_date_and_time(START)
    try:
        models = ModelCollection.load(
            to_db_home_path=scratch,
            from_db_home_path=scratch,
            load_apps=get_all_apps(),
            create_db=True,
        )
        for person in PEOPLE:
            _add_person(models, person)
        for person in PEOPLE:
            _add_contacts(models, person)
        _add_songs(models.spotify)
        _add_docs(models.api_docs, docs)
        models.save(
            db_home_path=str(data / "base_dbs"),
            format="full",
            delete_if_exists=True,
            save_model_hashes=True,
        )
    finally:
        CachedDBHandler.reset()
        clock.stop()


def _write_docs(docs: Any, folder: Path) -> None:
    """Write the documentation by hand: its own `save` needs a package that nothing else does."""
    folder.mkdir(parents=True)
    for app, apis in docs.items():
        marked = {name: {**doc, "canary_string": CANARY_STRING} for name, doc in apis.items()}
        (folder / f"{app}.json").write_text(json.dumps(marked), encoding="utf-8")


def _add_docs(tables: Any, docs: Any) -> None:
    columns = ("api_name", "path", "method", "description", "parameters", "response_schemas")
    for apis in docs.values():
        for doc in apis.values():
            row = {name: doc[name] for name in columns}
            tables.ApiDoc.create_save(app_name_=doc["app_name"], **row)


def _add_person(models: Any, person: Person) -> None:
    """Add accounts in every app, and what their apps take for granted."""
    main = models.admin.MainUser.create_save(
        **person.names,
        email=person.email,
        phone_number=person.phone,
        birthday=person.birthday,
        sex=person.sex,
    )
    for app in ACCOUNTS:
        models.admin.AccountPassword.create_save(
            main_user_id=main.id, account_name=app, password=person.password(app)
        )
    models.phone.User.create_save(
        **person.names, phone_number=person.phone, password=person.password("phone")
    )
    own = {
        app: models[app].User.create_save(
            **person.names, email=person.email, password=person.password(app), verified=True
        )
        for app in EMAIL_APPS
    }
    own["venmo"].venmo_balance = 100
    own["venmo"].save()
    for path in ("/", "/home/", own["file_system"].home_directory_path):
        models.file_system.Directory.create_save(user_id=own["file_system"].id, path=path)
    models.spotify.MusicPlayer.create_save(user_id=own["spotify"].id)
    inbox = models.todoist.Project.create_save(
        user_id=own["todoist"].id, name="Inbox", is_inbox=True
    )
    models.todoist.ProjectCollaboratorLink.create_save(
        project_id=inbox.id, user_id=own["todoist"].id
    )


def _add_contacts(models: Any, person: Person) -> None:
    owner = models.phone.User.find_one(phone_number=person.phone)
    for friend in PEOPLE:
        if friend != person:
            models.phone.Contact.create_save(
                **friend.names,
                user_id=owner.id,
                email=friend.email,
                phone_number=friend.phone,
                relationships=["friend"],
                birthday=friend.birthday,
            )


def _add_songs(music: Any) -> None:
    rng = random.Random(7)
    genre = "folk"
    artists = [music.Artist.create_save(name=f"The {thing}s", genre=genre) for thing in THINGS]
    for mood in MOODS:
        for thing in THINGS:
            music.Song.create_save(
                title=f"{mood} {thing}",
                artist_ids=[rng.choice(artists).id],
                duration=rng.randint(90, 400),
                release_date=dt.datetime(rng.randint(1990, 2020), rng.randint(1, 12), 5),
                genre=genre,
                play_count=rng.randint(0, 5000),
            )
