"""The command line of AppWorld: ``isentrope appworld install`` and ``remove``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isentrope_envs.appworld import data as _data
from isentrope_envs.appworld.installation import human, install, parts, remove, size
from isentrope_envs.appworld.place import VARIABLE, Place

app = typer.Typer(no_args_is_help=True)
Root = Annotated[
    Path | None, typer.Option(help=f"Folder; default: ${VARIABLE}, else one of the user's own")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before deleting")]


@app.command("install")
def _install(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="real|tiny",
            help="AppWorld's own, which it downloads, or a tiny world that needs no network, which "
            "is the default. Given again, it renews or replaces what is there",
        ),
    ] = None,
    root: Root = None,
    yes: Yes = False,
) -> None:
    """Install AppWorld in an interpreter of its own; or finish, repair, renew what is there."""
    place = Place.default() if root is None else Place(root)
    if data in _data.KINDS and _data.kind(place) == "real" and not yes:
        there = place.full / "data"
        large = human(size(there))
        typer.confirm(f"Delete AppWorld's real data ({large}) in {there} afterwards?", abort=True)
        yes = True
    install(root, data, replace=yes, say=typer.echo)


@app.command("remove")
def _remove(root: Root = None, yes: Yes = False) -> None:
    """Delete an installation, and nothing else that is in its folder."""
    place = Place.default() if root is None else Place(root)
    found = [str(part) for part in parts(place) if part.exists()]
    if found and not yes:
        typer.confirm(f"Delete {', '.join(found)}?", abort=True)
    remove(root, say=typer.echo)
