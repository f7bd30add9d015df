"""The command line. Everything it does is a public Python call."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from isentrope.errors import (
    ConfigError,
    IsentropeError,
    OtherRankError,
    PluginError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from isentrope.rollout.endpoint import Endpoint


class Commands(TyperGroup):
    """Our commands, and those that plugins bring, which are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all."""
        return [*super().list_commands(ctx), *sorted(_of_plugins() - self.commands.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one of ours, else a plugin's; raises `UnknownNameError` where there is neither."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name not in _of_plugins():
            raise UnknownNameError("Command", cmd_name, self.list_commands(ctx))
        return _of_plugin(cmd_name)


def _of_plugins() -> set[str]:
    from isentrope.plugins import registry

    return set(registry().specs("command"))


def _of_plugin(name: str) -> Any:
    from isentrope.components import load
    from isentrope.plugins import registry

    spec = registry().find("command", name)
    try:
        brought = load(spec.entry_point, f"command {name!r}")
        if not isinstance(brought, typer.Typer):
            what = type(brought).__name__
            raise PluginError(f"The command {name!r} is a {what}, and no typer.Typer.")
    except PluginError as error:
        brought = _unusable(error)  # an error for who calls it, not for who lists commands
    command = typer.main.get_command(brought)
    command.name = name
    command.help, command.short_help = command.help or spec.summary, spec.summary
    return command


def _unusable(error: PluginError) -> typer.Typer:
    stub = typer.Typer()

    @stub.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def refuse() -> None:
        raise error

    return stub


app = typer.Typer(
    cls=Commands,
    help="Train language models by reinforcement learning, with entropy under control.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
_FIRST = os.environ.get("RANK", "0") == "0"
"""Under torchrun, only the first rank speaks."""
_WIDTH: dict[str, Any] = {} if sys.stdout.isatty() else {"width": 1000, "soft_wrap": True}
"""A file or a pipe gets whole lines, however long."""
_CHANGEABLE = ("rollout", "env", "engine", "seed", "threads")
"""Arguments of `isentrope.evaluate` that ``eval --set`` takes; ``endpoint`` too, if it is one."""
_console = Console(quiet=not _FIRST, **_WIDTH)


def main() -> None:
    """Run the command line; what a user did wrong is one sentence, and exit status 2."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("isentrope").setLevel(logging.INFO)
    warnings.simplefilter("ignore", FutureWarning)  # libraries' words to programmers
    warnings.showwarning = _show_warning
    try:
        app()
    except IsentropeError as error:
        follows = isinstance(error, OtherRankError) or not _FIRST  # another rank says it
        silent = follows and error.rank is None
        Console(stderr=True, quiet=silent).print(
            f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True
        )
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        import isentrope

        _console.print(f"isentrope {isentrope.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit"),
    ] = False,
) -> None:
    """Train language models by reinforcement learning, with entropy under control."""


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="TOML file", metavar="CONFIG.toml")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set rollout.tasks=16"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: a new one in runs/")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that stopped")
    ] = None,
) -> None:
    """Train a policy and write a run folder."""
    import isentrope
    from isentrope.config import parse_settings, read_config
    from isentrope.live import LiveView
    from isentrope.workers.nursery import kept_warm

    if config is None and resume is None:
        raise ConfigError("Name a CONFIG.toml to train from, or --resume RUN to go on with one.")
    overrides = parse_settings(setting or ())
    if out is not None:
        overrides["out"] = str(out)
    source = resume / "config.toml" if resume is not None else config
    with kept_warm():
        planned = read_config(source, overrides)
        wanted = planned.iterations
        with LiveView(_console, wanted, planned.algorithm.knobs()) as view:
            run = isentrope.train(config, resume=resume, on_iteration=view, **overrides)
    if not _FIRST:
        return
    metrics = run.metrics
    _console.print(f"Run folder: {run.path}", highlight=False, markup=False)
    _console.print(f"Report: {isentrope.report(run)}", highlight=False, markup=False)
    if len(metrics) < wanted and not (metrics and metrics[-1]["stopped"]):
        how = f"isentrope train --resume {run.path}"
        _console.print(f"Stopped after {len(metrics)} iterations: {how}", markup=False)
        raise typer.Exit(130)


@app.command("eval")
def evaluate(
    policy: Annotated[
        str,
        typer.Argument(
            help="Run folder, folder of a model, a model's id, or the URL of an OpenAI-compatible "
            "endpoint, such as http://127.0.0.1:8000/v1"
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model behind the endpoint")
    ] = None,
    env: Annotated[str | None, typer.Option(help="Environment; default: the run's")] = None,
    split: Annotated[str, typer.Option(help="Task split")] = "test",
    k: Annotated[int, typer.Option("-k", "--k", help="Attempts at each task")] = 1,
    tasks: Annotated[int | None, typer.Option(help="Only the first so many tasks")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key: --set rollout.temperature=0.6"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep it in; default: in RUN/evals, or in evals")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(metavar="TASK[,TASK]", help="Have lm-eval score it on tasks of its own"),
    ] = None,
) -> None:
    """Evaluate a policy; the same command goes on with an evaluation that was interrupted.

    A model behind an endpoint is reached by text alone, and its results are marked so. Its API key
    is read from the environment variable OPENAI_API_KEY, or from the one that --set
    endpoint.key_variable=NAME names; endpoint.at_a_time and endpoint.deadline are how many requests
    there are at a time, and the seconds that each may take.

    Exits with status 1 where every attempt failed, and with 130 at Ctrl-C.
    """
    from isentrope.config import nested, parse_settings

    settings = parse_settings(setting or ())
    if lm_eval is not None:
        if (env, split, k, tasks, model) != (None, "test", 1, None, None):
            raise ConfigError(
                "lm-eval has tasks and attempts of its own: leave out --env, --split, --k, --tasks "
                "and --model; its own arguments go by --set, such as --set limit=10."
            )
        _score_by_lm_eval(policy, lm_eval.split(","), settings, out)
        return
    import isentrope
    from isentrope.rollout.endpoint import is_url
    from isentrope.runs import is_run
    from isentrope.scoreboard import EvaluationView, print_evaluation

    changes = nested(settings)
    evaluated = _endpoint(policy, model, changes) if is_url(policy) or model else policy
    for key in changes:
        if key not in _CHANGEABLE:
            raise UnknownNameError("Key", key, _CHANGEABLE)
    if env is not None:
        changes["env"] = {"id": env, **changes.get("env", {})}
    place = Path(policy) / "evals" if is_run(Path(policy)) else Path("evals")
    with _stopped_by_ctrl_c(), EvaluationView(_console) as view:
        result = isentrope.evaluate(
            evaluated,
            split=split,
            k=k,
            tasks=tasks,
            out=out or place / "{env}-{split}-{key}",
            on_attempt=view,
            **changes,
        )
    print_evaluation(_console, result)
    _console.print(f"Kept in: {result.path}", highlight=False, markup=False)
    _console.print(f"Report: {isentrope.report(result)}", highlight=False, markup=False)
    if result.failed == len(result.attempts):
        error = (result.attempts[0].error or "").strip()
        told = f"[bold red]error:[/] Every attempt failed. The first:\n{_escaped(error)}"
        Console(stderr=True).print(told, soft_wrap=True)
        raise typer.Exit(1)


def _endpoint(policy: str, model: str | None, changes: dict[str, Any]) -> Endpoint:
    """Make the endpoint that a URL and the keys of ``endpoint`` name; takes those out."""
    from isentrope.errors import within
    from isentrope.rollout.endpoint import Endpoint, is_url, models_of
    from isentrope.structuring import edit, structure

    if not is_url(policy):
        raise ConfigError(
            f"--model names a model behind an endpoint, and {policy} is no URL: leave it out, or "
            "give one, such as http://127.0.0.1:8000/v1."
        )
    with within("endpoint"):
        named = {"url": policy, "model": model or "none yet"}
        more = changes.pop("endpoint", {})
        first = structure(named if isinstance(more, Mapping) else more, Endpoint)
        found = edit(first, more)
    if model is None:
        names = ", ".join(models_of(found)) or "models that it does not list"
        raise ConfigError(f"--model is missing: {found.url} has {names}.")
    return found


def _score_by_lm_eval(
    policy: str, tasks: list[str], settings: dict[str, Any], out: Path | None
) -> None:
    import isentrope
    from isentrope.scoreboard import print_lm_eval

    print_lm_eval(_console, isentrope.lm_eval(policy, tasks, out=out, **settings))


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[None]:
    """Say what is kept, and end with status 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ["Stopped before the first attempt."]):
            _console.print(note, highlight=False, markup=False)
        raise typer.Exit(130) from None


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Id of a component", metavar="ID")],
    kind: Annotated[str | None, typer.Option(help="Where several kinds have the id")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a field: --set zeta=0.1"),
    ] = None,
    on: Annotated[str, typer.Option(help="Recipe that a controller is tried on")] = "grpo",
) -> None:
    """Check an environment, objective, transform, estimator or controller against its contract."""
    from isentrope.config import parse_settings
    from isentrope.testing import Finding, check

    def show(finding: Finding) -> None:
        colour = "red" if not finding.ok else "default" if finding.ran else "yellow"
        _console.print(f"  [{colour}]{_escaped(str(finding))}[/]", highlight=False)

    with _console.status(f"Checks {_escaped(name)}"):  # nothing, where there is no terminal
        report = check(name, kind, on=on, on_finding=show, **parse_settings(setting or ()))
    colour = "default" if report.ok else "red"
    _console.print(f"[{colour}]{_escaped(report.summary)}[/]", highlight=False)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="env, objective or controller", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="Of the distribution and of what it brings")],
    into: Annotated[Path | None, typer.Option(help="Folder; default: the present one")] = None,
) -> None:
    """Write a distribution that brings a component: a toy that works, with tests, to be changed."""
    from isentrope.scaffold import new

    folder = new(kind, name, into)
    _console.print(f"{folder}: next", highlight=False, markup=False)
    _console.print(f"  cd {folder}", highlight=False, markup=False)
    _console.print("  pip install -e '.[test]'", highlight=False, markup=False)
    _console.print("  pytest", highlight=False, markup=False)


@app.command()
def doctor() -> None:
    """Say what of this machine and installation works; exits with status 1 if a part is broken."""
    from isentrope.doctor import diagnose

    colours, broken = {"ok": "green", "absent": "yellow", "broken": "red"}, False
    for found in diagnose():
        state = f"[{colours[found.state]}]{found.state:<7}[/]"
        _console.print(f"{state} {_escaped(f'{found.name}: {found.message}')}", highlight=False)
        broken |= found.state == "broken"
    if broken:
        raise typer.Exit(1)


@app.command()
def plugins() -> None:
    """List every component, where it comes from, and what is wrong with it."""
    from isentrope.plugins import registry

    table = Table(box=None)
    for column in ("id", "kind", "distribution", "version", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary")
    for row in registry().rows:
        colour = "green" if row.state == "ok" else "red"
        cells = map(_escaped, (row.id, row.kind, row.distribution, row.version))
        table.add_row(*cells, f"[{colour}]{row.state}[/]", _escaped(row.summary))
    _console.print(table)


@app.command()
def envs() -> None:
    """List the environments, their splits, and the command that one needs to be run first."""
    from isentrope.plugins import registry
    from isentrope.specs import EnvSpec

    table = Table("id", "splits", "needs", "summary", box=None)
    for name, spec in sorted(registry().specs("environment").items()):
        assert isinstance(spec, EnvSpec)  # the hook takes no other
        there = spec.python is None or Path(spec.python).is_file()
        cells = (name, ", ".join(spec.splits), "" if there else spec.setup, spec.summary)
        table.add_row(*map(_escaped, cells))
    _console.print(table)


@app.command()
def report(
    of: Annotated[Path, typer.Argument(help="Folder of a run or an evaluation", metavar="FOLDER")],
    out: Annotated[Path | None, typer.Option(help="File; default: FOLDER/report.html")] = None,
) -> None:
    """Write a page about a run or an evaluation, finished or not: one file, no network needed."""
    import isentrope

    page = isentrope.report(of, out)
    _console.print(f"Report: {page}", highlight=False, markup=False)


@app.command()
def view(
    run: Annotated[Path, typer.Argument(help="Run folder", metavar="RUN")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; default: one that is free")] = 0,
) -> None:
    """Show a run in the browser while it trains: its page, served on this machine alone."""
    import isentrope

    def tell(address: str) -> None:
        _console.print(f"View: {address} (Ctrl-C ends it)", highlight=False, markup=False)

    isentrope.view(run, port=port, tell=tell)


@app.command()
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Two runs or more, or two evaluations or more", metavar="FOLDER..."),
    ],
    out: Annotated[Path | None, typer.Option(help="File; default: ./compare.html")] = None,
) -> None:
    """Write a page that lays runs, or evaluations, over one another, and lists what differs.

    Evaluations are subtracted from the first, task by task.
    """
    import isentrope
    from isentrope.evaluation.records import is_evaluation
    from isentrope.scoreboard import print_comparison

    page = isentrope.compare(*folders, out=out)
    if is_evaluation(folders[0]):
        first, *others = (isentrope.Evaluation.read(folder) for folder in folders)
        for folder, other in zip(folders[1:], others, strict=True):
            k = min(first.k, other.k)
            print_comparison(_console, str(folder), str(folders[0]), other.against(first), k)
    _console.print(f"Comparison: {page}", highlight=False, markup=False)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if _FIRST:
        print(f"warning: {message}", file=sys.stderr)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
