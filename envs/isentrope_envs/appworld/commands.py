"""The command line of AppWorld: ``isentrope appworld install``, ``remove``, ``score``, ``pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isentrope.installations import disk_use
from isentrope_envs.appworld import data as _data
from isentrope_envs.appworld import leaderboard
from isentrope_envs.appworld.installation import install, remove
from isentrope_envs.appworld.place import Place
from isentrope_envs.appworld.scores import scores

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")
Root = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the installation",
        show_default=f"${Place.variable}, else one of the user's own",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before deleting")]


@app.command(
    "install",
    epilog="""
    Examples:

        isentrope appworld install
        isentrope appworld install --data real --root /data/appworld

    It writes to that folder, and to pip's cache; `isentrope appworld remove` undoes it.

    Exit statuses: 0 installed; 2 asked wrongly, or not confirmed; 3 a step failed, and the same
    command goes on.
    """,
)
def _install(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="real|tiny",
            autocompletion=lambda: list(_data.KINDS),
            help="AppWorld's own, which it downloads, or a tiny world that needs no network. Given "
            "again, it renews or replaces what is there",
            show_default="what is there, else tiny",
        ),
    ] = None,
    root: Root = None,
    yes: Yes = False,
) -> None:
    """Install AppWorld in an interpreter of its own; or finish, repair, renew what is there."""
    place = Place.default() if root is None else Place(root)
    if data in _data.KINDS and _data.kind(place) == "real" and not yes:
        there = place.full / "data"
        large = disk_use(there)
        typer.confirm(f"Delete AppWorld's real data ({large}) in {there} afterwards?", abort=True)
        yes = True
    install(root, data, replace=yes, say=typer.echo)


@app.command(
    "remove",
    epilog="""
    Example:

        isentrope appworld remove --yes

    Exit statuses: 0 removed; 2 there is nothing of ours, or it was not confirmed; 3 it could not
    be deleted.
    """,
)
def _remove(root: Root = None, yes: Yes = False) -> None:
    """Delete an installation, and nothing else that is in its folder."""
    place = Place.default() if root is None else Place(root)
    found = [str(part) for part in place.parts if part.exists()]
    if found and not yes:
        typer.confirm(f"Delete {', '.join(found)}?", abort=True)
    remove(root, say=typer.echo)


@app.command(
    "score",
    epilog="""
    Example:

        isentrope appworld score runs/first/evals/appworld-test_normal-0c9e

    It writes nothing.

    Exit statuses: 0 printed; 2 there is no such evaluation.
    """,
)
def _score(
    evaluation: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that isentrope eval wrote")
    ],
    root: Root = None,
) -> None:
    """Print AppWorld's two scores of an evaluation, TGC and SGC, by difficulty."""
    place = Place.default() if root is None else Place(root)
    from isentrope import Evaluation  # only now: it takes a second

    found = scores(Evaluation.read(evaluation).attempts, place)
    typer.echo(f"{'difficulty':<12}{'tasks':>7}{'scenarios':>11}{'TGC':>8}{'SGC':>8}")
    for level, score in found.items():
        counts = f"{score.tasks:>7}{score.scenarios:>11}"
        typer.echo(f"{level:<12}{counts}{score.tgc:>8.1f}{score.sgc:>8.1f}")
    known = sum(score.tasks for level, score in found.items() if level != "all")
    if known < found["all"].tasks:
        unknown = found["all"].tasks - known
        typer.echo(f"The difficulty of {unknown} tasks is not known: they are not in {place.root}.")


@app.command(
    "pack",
    epilog="""
    Example:

        isentrope appworld pack outputs mine_test_normal --split test_normal
            --method ReAct --llm Qwen3-8B --url https://example.org

    It writes the experiment's folder, with the bundle in it.

    Exit statuses: 0 packed; 2 asked wrongly; 3 AppWorld failed.
    """,
)
def _pack(
    outputs: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that env.outputs named")
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the experiment; ends in _test_normal, say")
    ],
    split: Annotated[str, typer.Option(metavar="SPLIT", help="test_normal or test_challenge")],
    method: Annotated[str, typer.Option(metavar="TEXT", help="Of the agent, such as ReAct")],
    llm: Annotated[str, typer.Option(metavar="TEXT", help="Of the model")],
    url: Annotated[str, typer.Option(metavar="URL", help="Where to read more")],
    method_note: Annotated[
        str, typer.Option(metavar="TEXT", help="A few words on the method")
    ] = "",
    llm_note: Annotated[str, typer.Option(metavar="TEXT", help="A few words on the model")] = "",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to write", show_default="./NAME"),
    ] = None,
    root: Root = None,
) -> None:
    """Have AppWorld evaluate kept outputs, and pack them for its leaderboard."""
    place = Place.default() if root is None else Place(root)
    experiment = leaderboard.gather(place, outputs, name, split, out or Path(name))
    about = {"method": method, "method_tooltip": method_note, "llm": llm, "url": url}
    about["llm_tooltip"] = llm_note
    bundle = leaderboard.pack(place, experiment.absolute(), name, split, about)
    typer.echo(f"Bundle: {bundle}")
