"""The command line of AppWorld: ``isentrope appworld install``, ``remove``, ``score``, ``pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isentrope import Evaluation
from isentrope_envs.appworld import data as _data
from isentrope_envs.appworld import leaderboard
from isentrope_envs.appworld.installation import human, install, parts, remove, size
from isentrope_envs.appworld.place import VARIABLE, Place
from isentrope_envs.appworld.scores import scores

app = typer.Typer(no_args_is_help=True, add_completion=False)
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


@app.command("score")
def _score(
    evaluation: Annotated[Path, typer.Argument(help="Folder that isentrope eval wrote")],
    root: Root = None,
) -> None:
    """Print AppWorld's two scores of an evaluation, TGC and SGC, by difficulty."""
    place = Place.default() if root is None else Place(root)
    found = scores(Evaluation.read(evaluation).attempts, place)
    typer.echo(f"{'difficulty':<12}{'tasks':>7}{'scenarios':>11}{'TGC':>8}{'SGC':>8}")
    for level, score in found.items():
        counts = f"{score.tasks:>7}{score.scenarios:>11}"
        typer.echo(f"{level:<12}{counts}{score.tgc:>8.1f}{score.sgc:>8.1f}")
    known = sum(score.tasks for level, score in found.items() if level != "all")
    if known < found["all"].tasks:
        unknown = found["all"].tasks - known
        typer.echo(f"The difficulty of {unknown} tasks is not known: they are not in {place.root}.")


@app.command("pack")
def _pack(
    outputs: Annotated[Path, typer.Argument(help="Folder that env.outputs named")],
    name: Annotated[str, typer.Argument(help="Of the experiment; ends in _test_normal, say")],
    split: Annotated[str, typer.Option(help="test_normal or test_challenge")],
    method: Annotated[str, typer.Option(help="Of the agent, such as ReAct")],
    llm: Annotated[str, typer.Option(help="Of the model")],
    url: Annotated[str, typer.Option(help="Where to read more")],
    method_note: Annotated[str, typer.Option(help="A few words on the method")] = "",
    llm_note: Annotated[str, typer.Option(help="A few words on the model")] = "",
    into: Annotated[Path | None, typer.Option(help="Folder; default: ./NAME")] = None,
    root: Root = None,
) -> None:
    """Have AppWorld evaluate kept outputs, and pack them for its leaderboard."""
    place = Place.default() if root is None else Place(root)
    experiment = leaderboard.gather(place, outputs, name, split, into or Path(name))
    about = {"method": method, "method_tooltip": method_note, "llm": llm, "url": url}
    about["llm_tooltip"] = llm_note
    bundle = leaderboard.pack(place, experiment.absolute(), name, split, about)
    typer.echo(f"Bundle: {bundle}")
