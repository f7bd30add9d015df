"""Difficulties 2 and 3: from one app into another, and a library in several pages."""

from __future__ import annotations

from isentrope_envs.appworld.tiny.base import LIBRARY
from isentrope_envs.appworld.tiny.tasks import (
    ANSWER,
    NO_ANSWER,
    Check,
    Draft,
    World,
    changed,
    login,
    only_added,
)

ITEMS = ("milk", "rice", "eggs", "soap", "tea", "fish", "beans", "bread")
TITLES = ("plan", "list", "idea")
YEARS = (1995, 2000, 2005, 2010)


def copy(world: World) -> Draft:
    """Write a note's content into a file."""
    title = world.rng.choice(TITLES)
    content = "\n".join(_write_note(world, title))
    path = f"~/{title}.txt"
    return Draft(
        f"Copy the content of my note {title} into a new file {path}.",
        (
            *_read_note(title),
            login("file_system"),
            f'apis.file_system.create_file(file_path="{path}", content=text, '
            "access_token=token)\n"
            "apis.supervisor.complete_task()",
        ),
        (
            changed("file_system.Directory", "file_system.File"),
            only_added("file_system.File", 1),
            Check(
                "The file is in the home folder, and of that name.",
                '((file,), _, _) = models.changed_records("file_system.File")\n'
                'test.case(file.tilde_path, "==", private_data.path)',
            ),
            Check(
                "The file has the note's content.",
                '((file,), _, _) = models.changed_records("file_system.File")\n'
                'test.case(file.content.strip(), "==", private_data.content)',
            ),
            NO_ANSWER,
        ),
        expected={"path": path, "content": content},
    )


def shop(world: World) -> Draft:
    """Make a task of each line of a note."""
    title = world.rng.choice(TITLES)
    lines = _write_note(world, title)
    return Draft(
        f"Add each line of my note {title} as a task to my Todoist inbox.",
        (
            *_read_note(title),
            login("todoist"),
            "for line in text.splitlines():\n"
            "    apis.todoist.create_task(project_id=0, title=line, access_token=token)\n"
            "apis.supervisor.complete_task()",
        ),
        (
            changed("todoist.Task"),
            only_added("todoist.Task", len(lines)),
            Check(
                "The tasks are the note's lines.",
                'added, _, _ = models.changed_records("todoist.Task")\n'
                'test.case(sorted(row.title for row in added), "==", sorted(private_data.lines))',
            ),
            Check(
                "They are in the supervisor's inbox.",
                'added, _, _ = models.changed_records("todoist.Task")\n'
                "owners = {row.project.user.email for row in added if row.project.is_inbox}\n"
                'test.case(owners, "==", {main_user.email})',
            ),
            NO_ANSWER,
        ),
        expected={"lines": lines},
    )


def likes(world: World) -> Draft:
    """Look at every song of a library that has two pages; like some, say how many."""
    music, account = world.models.spotify, world.user("spotify")
    year = world.rng.choice(YEARS)
    songs = world.rng.sample(music.Song.all(), LIBRARY)
    for song in songs:
        music.UserLibrarySong.create_save(user_id=account.id, song_id=song.id)
    old = sorted(song.id for song in songs if song.release_date.year < year)
    return Draft(
        f"Like every song in my Spotify library that is older than {year}. How many are they?",
        (
            login("spotify"),
            "songs = [s for i in range(2) for s in apis.spotify.show_song_library("
            "access_token=token, page_index=i, page_limit=20)]\n"
            "print(len(songs))",
            'ids = [s["song_id"] for s in songs]\n'
            'old = [i for i in ids if apis.spotify.show_song(song_id=i)["release_date"] < '
            f'"{year}"]\n'
            "print(old)",
            "for i in old:\n"
            "    apis.spotify.like_song(song_id=i, access_token=token)\n"
            "apis.supervisor.complete_task(answer=len(old))",
        ),
        (
            changed("spotify.Song", "spotify.SongLike"),
            only_added("spotify.SongLike", len(old)),
            Check(
                "The liked songs are those that are older.",
                'added, _, _ = models.changed_records("spotify.SongLike")\n'
                'test.case(sorted(row.song_id for row in added), "==", list(private_data.songs))',
            ),
            ANSWER,
        ),
        answer=len(old),
        expected={"songs": old},
    )


def _write_note(world: World, title: str) -> list[str]:
    """Write the note, and others beside it; return its lines."""
    lines = world.rng.sample(ITEMS, 3)
    for name in TITLES:
        world.models.simple_note.Note.create_save(
            user_id=world.user("simple_note").id,
            title=name,
            content="\n".join(lines if name == title else world.rng.sample(ITEMS, 3)),
            tags=[],
            pinned=False,
        )
    return lines


def _read_note(title: str) -> tuple[str, ...]:
    """Return the cells that leave a note's content in ``text``."""
    return (
        login("simple_note"),
        f'found = apis.simple_note.search_notes(query="{title}", access_token=token)\n'
        'print([n["title"] for n in found])',
        'note = apis.simple_note.show_note(note_id=found[0]["note_id"], access_token=token)\n'
        'text = note["content"]\n'
        "print(text)",
    )
