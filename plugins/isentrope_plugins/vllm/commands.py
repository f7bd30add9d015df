"""The command line of vLLM: ``isentrope vllm install``, ``serve``, ``remove``."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from isentrope import ConfigError
from isentrope.installations import disk_use
from isentrope_plugins.vllm.installation import DEVICES, install, remove
from isentrope_plugins.vllm.place import Place
from isentrope_plugins.vllm.server import DTYPES, Server, ServerOptions, share_gpus

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")
Root = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the installation",
        show_default=f"${Place.variable}, else one of the user's own",
    ),
]


@app.command(
    "install",
    epilog="""
    Examples:

        isentrope vllm install
        isentrope vllm install --device cpu --root /data/vllm

    It writes to that folder, and to pip's cache; `isentrope vllm remove` undoes it.

    Exit statuses: 0 installed; 2 asked wrongly: the folder is somebody else's, say; 3 a step
    failed, and the same command goes on.
    """,
)
def _install(
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|gpu",
            autocompletion=lambda: list(DEVICES),
            help="What it is to run on",
            show_default="what is there, else gpu where there is an NVIDIA one",
        ),
    ] = None,
    root: Root = None,
) -> None:
    """Install vLLM in an interpreter of its own; or finish, repair, renew what is there."""
    install(root, device, say=typer.echo)


@app.command(
    "remove",
    epilog="""
    Example:

        isentrope vllm remove --yes

    Exit statuses: 0 removed; 2 there is nothing of ours, or it was not confirmed; 3 it could not
    be deleted.
    """,
)
def _remove(
    root: Root = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting")] = False,
) -> None:
    """Delete an installation, and nothing else that is in its folder."""
    place = Place.default() if root is None else Place(root)
    if place.is_ours and place.environment.exists() and not yes:
        large = disk_use(place.environment)
        typer.confirm(f"Delete {place.environment} ({large})?", abort=True)
    remove(root, say=typer.echo)


@app.command(
    "serve",
    epilog="""
    Examples:

        isentrope vllm serve runs/first
        isentrope vllm serve Qwen/Qwen3-8B --dtype bfloat16 --servers 4 --port 8000
        isentrope vllm serve models/mine -- --gpu-memory-utilization 0.8

    Each server writes a log in the folder for temporary files, which stays where one failed.

    Exit statuses: 1 no server is left; 2 asked wrongly, and none was started; 3 one did not come
    up; 130 ended by Ctrl-C; 143 terminated.
    """,
)
def _serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a model, run folder, or hub's name")
    ],
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="FLAG", help="After --: more flags of `vllm serve`"),
    ] = None,
    servers: Annotated[int, typer.Option(metavar="N", min=1, help="How many")] = 1,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            help="Of the first; the others follow",
            show_default="ones that are free",
        ),
    ] = 0,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            autocompletion=lambda: list(DTYPES),
            help="float32, bfloat16 or float16: as the run's",
        ),
    ] = "float32",
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Longest sequence, in tokens", show_default="the model's"),
    ] = None,
    max_loras: Annotated[
        int, typer.Option(metavar="N", help="Adapters in use at the same time")
    ] = 2,
    max_lora_rank: Annotated[
        int, typer.Option(metavar="N", help="Largest rank of an adapter")
    ] = 16,
    root: Root = None,
) -> None:
    """Start servers of a model on this machine, for runs to use; Ctrl-C stops them."""
    place = Place.default() if root is None else Place(root)
    parts = share_gpus(servers) if place.device == "gpu" else [()] * servers
    with _naming_options():
        options = [
            ServerOptions(
                model=model,
                dtype=dtype,
                context=context,
                max_loras=max_loras,
                max_lora_rank=max_lora_rank,
                port=port and port + i,
                gpus=gpus,
                flags=flags or (),
            )
            for i, gpus in enumerate(parts)
        ]
    with _told_to_stop(), ExitStack() as started:
        running = [started.enter_context(Server.start(each, place)) for each in options]
        for server in running:
            started.callback(server.ask_to_stop)  # all of them, before any is waited for
            typer.echo(f"{server.url} starts; its log: {server.log}")
        for server in running:
            server.wait_ready()
        urls = ", ".join(f'"{server.url}"' for server in running)
        typer.echo(f'Ready. In a run\'s TOML:\n\n[engine]\nid = "vllm"\nurls = [{urls}]\n')
        typer.echo("Ctrl-C stops them." if servers > 1 else "Ctrl-C stops it.")
        _watch(running)


@contextmanager
def _naming_options() -> Iterator[None]:
    """Name an option where an error names the field of `ServerOptions` that it fills."""
    try:
        yield
    except ConfigError as error:
        said = re.sub(r"ServerOptions\.(\w+)", lambda m: f"--{m[1]}".replace("_", "-"), str(error))
        raise ConfigError(said) from error


def _watch(servers: Sequence[Server]) -> None:
    """Say of each server that ends how it did; return when none is left."""
    left = list(servers)
    while left:
        time.sleep(0.5)
        for server in [server for server in left if not server.alive]:
            left.remove(server)
            typer.echo(f"{server.obituary()}\n{len(left)} of {len(servers)} are left.", err=True)
    raise typer.Exit(1)


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """End with the usual status at Ctrl-C or SIGTERM, after what is inside has been cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for each in before:  # a second Ctrl-C would leave servers half stopped
            signal.signal(each, signal.SIG_IGN)
        typer.echo("Stops.")
        raise typer.Exit(128 + number)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
