"""The command line of vLLM: ``isentrope vllm install``, ``serve``, ``remove``."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from isentrope_plugins.vllm.installation import human, install, is_ours, remove, size
from isentrope_plugins.vllm.place import VARIABLE, Place
from isentrope_plugins.vllm.server import Server, ServerOptions, share_gpus

app = typer.Typer(no_args_is_help=True, add_completion=False)
Root = Annotated[
    Path | None, typer.Option(help=f"Folder; default: ${VARIABLE}, else one of the user's own")
]


@app.command("install")
def _install(
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|gpu", help="Default: gpu where there is an NVIDIA one"),
    ] = None,
    root: Root = None,
) -> None:
    """Install vLLM in an interpreter of its own; or finish, repair, renew what is there."""
    install(root, device, say=typer.echo)


@app.command("remove")
def _remove(
    root: Root = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting")] = False,
) -> None:
    """Delete an installation, and nothing else that is in its folder."""
    place = Place.default() if root is None else Place(root)
    if is_ours(place) and place.environment.exists() and not yes:
        large = human(size(place.environment))
        typer.confirm(f"Delete {place.environment} ({large})?", abort=True)
    remove(root, say=typer.echo)


@app.command("serve")
def _serve(
    model: Annotated[str, typer.Argument(help="Folder of a model, run folder, or hub's name")],
    flags: Annotated[
        list[str] | None, typer.Argument(help="After --: more flags of `vllm serve`")
    ] = None,
    servers: Annotated[int, typer.Option(min=1, help="How many")] = 1,
    port: Annotated[int, typer.Option(min=0, help="Of the first; the others follow. 0: any")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16: as the run's")] = (
        "float32"
    ),
    context: Annotated[
        int | None, typer.Option(help="Longest sequence, in tokens; default: the model's")
    ] = None,
    max_loras: Annotated[int, typer.Option(help="Adapters in use at the same time")] = 2,
    lora_rank: Annotated[int, typer.Option(help="Largest rank of an adapter")] = 16,
    root: Root = None,
) -> None:
    """Start servers of a model on this machine, for runs to use; Ctrl-C stops them.

    Exits with status 130 at Ctrl-C, 143 when it is terminated, and 1 when no server is left.
    """
    place = Place.default() if root is None else Place(root)
    parts = share_gpus(servers) if place.device == "gpu" else [()] * servers
    options = [
        ServerOptions(
            model=model,
            dtype=dtype,
            context=context,
            max_loras=max_loras,
            max_lora_rank=lora_rank,
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
