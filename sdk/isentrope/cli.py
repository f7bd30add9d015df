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
from rich.markup import escape
from rich.table import Table

from isentrope import completions
from isentrope.errors import ConfigError, UnknownNameError
from isentrope.terminal import FIRST, FOUND_WRONG, INTERRUPTED, Commands, console, print_error, run

if TYPE_CHECKING:
    from isentrope.rollout.endpoint import Endpoint

_CHANGEABLE = ("rollout", "env", "engine", "seed", "threads")
"""Arguments of `isentrope.evaluate` that ``eval --set`` takes; ``endpoint`` too, if it is one."""
_START, _EVALUATE, _LOOK = "Start", "Evaluate", "Look"
_EXTEND, _MACHINE = "Extend", "This machine"
"""Panels of ``isentrope --help``, in their order."""

app = typer.Typer(
    cls=Commands,
    epilog="""
    To begin with, on any machine and without a download:

        isentrope doctor
        isentrope train --set env=arithmetic --set algorithm=grpo --out runs/first
        isentrope view runs/first

    Exit statuses: 0 done; 1 done, and something was found wrong; 2 asked wrongly, so that nothing
    was done; 3 failed on the way; 70 a fault of Isentrope or a plugin; 130 ended by Ctrl-C.
    docs/command-line.md says more.
    """,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("isentrope").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # an error tells what its retries came to
    warnings.simplefilter("ignore", FutureWarning)  # libraries' words to programmers
    warnings.showwarning = _show_warning
    run(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        import isentrope

        console.print(f"isentrope {isentrope.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit"),
    ] = False,
) -> None:
    """Train language models by reinforcement learning, with entropy under control."""


@app.command(
    rich_help_panel=_START,
    epilog="""
    Examples:

        isentrope train --set env=arithmetic --set algorithm=grpo
        isentrope train config.toml --set rollout.tasks=16 --set algorithm=repo-r
        isentrope train config.toml --dry-run --gpus 8x80
        isentrope train --resume runs/config --set iterations=200
        torchrun --nproc-per-node 2 -m isentrope train config.toml

    It writes metrics, episodes, checkpoints, the policy and a report to the run folder; with
    --dry-run nothing, and nothing is loaded, started or sampled.

    Exit statuses: 0 trained to the end; 1 with --dry-run, the run could not start; 2 asked wrongly,
    and no run folder was made; 3 the run cannot go on, and says why; 130 stopped by Ctrl-C, or
    SIGTERM, and can go on by --resume.
    """,
)
def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="TOML file; without one, --set says everything",
            metavar="CONFIG.toml",
            autocompletion=completions.configs,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            autocompletion=completions.settings,
            help="Change a key: --set rollout.tasks=16. Given again, another; the value is TOML, "
            "and a table is merged into what is there",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Run folder", show_default="a new one in runs/"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", autocompletion=completions.runs, help="Go on with a run that stopped"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run would be and take")
    ] = False,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="NxGIB", help="With --dry-run: GPUs that learn, such as 8x80"),
    ] = None,
) -> None:
    """Train a policy and write a run folder."""
    import isentrope
    from isentrope.config import parse_settings, read_config
    from isentrope.live import LiveView
    from isentrope.workers.nursery import kept_warm

    overrides = parse_settings(setting or ())
    if config is None and resume is None and not overrides:
        raise ConfigError("Name a CONFIG.toml to train from, or --resume RUN to go on with one.")
    if out is not None:
        overrides["out"] = str(out)
    if dry_run:
        found = isentrope.plan(config, resume=resume, gpus=gpus, **overrides)
        console.print(str(found), highlight=False, markup=False)
        raise typer.Exit(0 if found.ready else FOUND_WRONG)
    if gpus is not None:
        raise ConfigError("--gpus tells --dry-run what to plan for: add that, or leave it out.")
    source = isentrope.Run(resume).path / "config.toml" if resume is not None else config
    with kept_warm():
        planned = read_config(source, overrides)
        wanted = planned.iterations
        with LiveView(console, wanted, planned.algorithm.knobs()) as view:
            run = isentrope.train(config, resume=resume, on_iteration=view, **overrides)
    if not FIRST:
        return
    metrics = run.metrics
    console.print(f"Run folder: {run.path}", highlight=False, markup=False)
    console.print(f"Report: {isentrope.report(run)}", highlight=False, markup=False)
    if len(metrics) < wanted and not (metrics and metrics[-1]["stopped"]):
        how = f"isentrope train --resume {run.path}"
        console.print(f"Stopped after {len(metrics)} iterations: {how}", markup=False)
        raise typer.Exit(INTERRUPTED)


@app.command(
    "eval",
    rich_help_panel=_EVALUATE,
    epilog="""
    Examples:

        isentrope eval runs/first
        isentrope eval runs/first --k 8 --set rollout.temperature=0.6
        isentrope eval http://127.0.0.1:8000/v1 --model mine --env arithmetic
        isentrope eval runs/first --lm-eval gsm8k --set limit=10

    It writes every attempt, the results and a report to a folder, and prints the estimates with
    their intervals.

    Exit statuses: 0 evaluated; 1 every attempt failed; 2 asked wrongly; 3 it cannot go on; 130
    stopped by Ctrl-C, and the same command goes on.
    """,
)
def evaluate(
    policy: Annotated[
        str,
        typer.Argument(
            metavar="POLICY",
            autocompletion=completions.runs,
            help="Run folder, folder of a model, a model's id, or the URL of an OpenAI-compatible "
            "endpoint, such as http://127.0.0.1:8000/v1",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model behind the endpoint")
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            autocompletion=completions.environments,
            help="Environment",
            show_default="the run's",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="SPLIT", autocompletion=completions.splits, help="Task split")
    ] = "test",
    k: Annotated[int, typer.Option("--k", metavar="N", help="Attempts at each task")] = 1,
    tasks: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first so many tasks")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            autocompletion=completions.changes,
            help="Change a key: --set rollout.temperature=0.6. Given again, another; the value is "
            "TOML, and a table is merged into what is there",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to keep it in",
            show_default="a new one in RUN/evals, or in evals",
        ),
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
    with _stopped_by_ctrl_c(), EvaluationView(console) as view:
        result = isentrope.evaluate(
            evaluated,
            split=split,
            k=k,
            tasks=tasks,
            out=out or place / "{env}-{split}-{key}",
            on_attempt=view,
            **changes,
        )
    print_evaluation(console, result)
    console.print(f"Kept in: {result.path}", highlight=False, markup=False)
    console.print(f"Report: {isentrope.report(result)}", highlight=False, markup=False)
    if result.failed == len(result.attempts):
        error = (result.attempts[0].error or "").strip()
        print_error(f"Every attempt failed. The first:\n{error}")
        raise typer.Exit(FOUND_WRONG)


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

    print_lm_eval(console, isentrope.lm_eval(policy, tasks, out=out, **settings))


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[None]:
    """Say what is kept, and end with status 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ["Stopped before the first attempt."]):
            console.print(note, highlight=False, markup=False)
        raise typer.Exit(INTERRUPTED) from None


@app.command(
    rich_help_panel=_LOOK,
    epilog="""
    Examples:

        isentrope report runs/first
        isentrope report runs/first/evals/arithmetic-test-0c9e --out page.html

    Exit statuses: 0 written; 2 there is no run or evaluation, or the page cannot be written.
    """,
)
def report(
    of: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run or an evaluation",
            metavar="FOLDER",
            autocompletion=completions.runs_and_evaluations,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page to write", show_default="FOLDER/report.html"),
    ] = None,
) -> None:
    """Write a page about a run or an evaluation, finished or not: one file, no network needed."""
    import isentrope

    page = isentrope.report(of, out)
    console.print(f"Report: {page}", highlight=False, markup=False)


@app.command(
    rich_help_panel=_LOOK,
    epilog="""
    Examples:

        isentrope view runs/first
        isentrope view runs/first --port 8080

    It writes nothing, and serves until Ctrl-C.

    Exit statuses: 2 there is no run, or the port is taken; 130 ended by Ctrl-C.
    """,
)
def view(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", autocompletion=completions.runs, help="Run folder"),
    ],
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Port on 127.0.0.1",
            show_default="one that is free",
        ),
    ] = 0,
) -> None:
    """Show a run in the browser while it trains: its page, served on this machine alone."""
    import isentrope

    def tell(address: str) -> None:
        console.print(f"View: {address} (Ctrl-C ends it)", highlight=False, markup=False)

    isentrope.view(run, port=port, tell=tell)
    raise typer.Exit(INTERRUPTED)


@app.command(
    rich_help_panel=_LOOK,
    epilog="""
    Examples:

        isentrope compare runs/grpo runs/repo-r
        isentrope compare runs/grpo/evals/* --out evaluations.html

    Exit statuses: 0 written; 2 there is no run or evaluation, or the page cannot be written.
    """,
)
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Two runs or more, or two evaluations or more",
            metavar="FOLDER",
            autocompletion=completions.runs_and_evaluations,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page to write", show_default="./compare.html"),
    ] = None,
) -> None:
    """Write a page that lays runs, or evaluations, over one another, and lists what differs.

    Evaluations, and those that runs made while they trained, are subtracted from the first's, task
    by task. Runs that differ in the seed alone are one: its mean, and a band that holds every seed.
    """
    import isentrope
    from isentrope.reporting.pages import compared
    from isentrope.scoreboard import print_comparison

    page = isentrope.compare(*folders, out=out)
    for one in compared(folders):
        print_comparison(console, one)
    console.print(f"Comparison: {page}", highlight=False, markup=False)


@app.command(
    rich_help_panel=_EXTEND,
    epilog="""
    Examples:

        isentrope check arithmetic
        isentrope check my_package.maze:Maze --set size=3
        isentrope check entropy-ladder --set knob=repo_r.zeta --set low=0 --set high=1 --on repo-r

    It writes nothing.

    Exit statuses: 0 every check passed; 1 one did not; 2 asked wrongly.
    """,
)
def check(
    name: Annotated[
        str,
        typer.Argument(
            help="Id of a component, or package.module:Class of an environment",
            metavar="ID",
            autocompletion=completions.checkable,
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            autocompletion=completions.kinds,
            help="Its kind, where several have the id",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set one of its fields: --set zeta=0.1"),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            autocompletion=completions.recipes,
            help="Recipe that a controller is tried on; default: grpo",
        ),
    ] = None,
) -> None:
    """Check an environment, objective, transform, estimator or controller against its contract."""
    from isentrope.config import parse_settings
    from isentrope.testing import Finding, check

    def show(finding: Finding) -> None:
        colour = "red" if not finding.ok else "default" if finding.ran else "yellow"
        console.print(f"  [{colour}]{escape(str(finding))}[/]", highlight=False)

    with console.status(f"Checks {escape(name)}"):  # nothing, where there is no terminal
        report = check(name, kind, on=on, on_finding=show, **parse_settings(setting or ()))
    colour = "default" if report.ok else "red"
    console.print(f"[{colour}]{escape(report.summary)}[/]", highlight=False)
    if not report.ok:
        raise typer.Exit(FOUND_WRONG)


@app.command(
    rich_help_panel=_EXTEND,
    epilog="""
    Examples:

        isentrope new env word-chain
        isentrope new controller slow-start --out plugins/slow-start

    It writes a folder: pyproject.toml, README.md, the package and its tests.

    Exit statuses: 0 written; 2 asked wrongly: a name that is taken, or a folder that is there.
    """,
)
def new(
    kind: Annotated[
        str,
        typer.Argument(
            help="env, objective or controller",
            metavar="KIND",
            autocompletion=completions.new_kinds,
        ),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the distribution and of what it brings")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to write", show_default="./NAME"),
    ] = None,
) -> None:
    """Write a distribution that brings a component: a toy that works, with tests, to be changed."""
    from isentrope.scaffold import new

    folder = new(kind, name, out)
    console.print(f"{folder}: next", highlight=False, markup=False)
    console.print(f"  cd {folder}", highlight=False, markup=False)
    console.print("  pip install -e '.[test]'", highlight=False, markup=False)
    console.print("  pytest", highlight=False, markup=False)


@app.command(
    rich_help_panel=_MACHINE,
    epilog="""
    Example:

        isentrope doctor

    It writes nothing. What it prints belongs into a report of a bug.

    Exit statuses: 0 nothing is broken, though parts may be absent; 1 a part is broken.
    """,
)
def doctor() -> None:
    """Say what of this machine and installation works, and how to mend the rest."""
    from isentrope.doctor.rounds import diagnose

    colours = {"ok": "green", "absent": "yellow", "broken": "red"}
    counts = dict.fromkeys(colours, 0)
    for found in diagnose():
        counts[found.state] += 1
        state = f"[{colours[found.state]}]{found.state:<7}[/]"
        console.print(f"{state} {escape(f'{found.name}: {found.message}')}", highlight=False)
        if found.fix:
            console.print(f"        fix: {escape(found.fix)}", highlight=False)
    ok, absent, broken = counts.values()
    console.print(f"{ok} fine, {absent} absent, {broken} broken", highlight=False)
    if broken:
        raise typer.Exit(FOUND_WRONG)


@app.command(
    rich_help_panel=_EXTEND,
    epilog="""
    Examples:

        isentrope plugins
        isentrope plugins | grep broken

    Exit status: 0, whatever is broken; `isentrope doctor` has 1 then.
    """,
)
def plugins() -> None:
    """List every component, where it comes from, and what is wrong with it."""
    from isentrope.plugins import registry

    table = Table(box=None)
    for column in ("id", "kind", "distribution", "version", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary")
    for row in registry().rows:
        colour = "green" if row.state == "ok" else "red"
        cells = map(escape, (row.id, row.kind, row.distribution, row.version))
        table.add_row(*cells, f"[{colour}]{row.state}[/]", escape(row.summary))
    console.print(table)


@app.command(
    rich_help_panel=_EXTEND,
    epilog="""
    Example:

        isentrope envs

    Exit status: 0.
    """,
)
def envs() -> None:
    """List the environments, their splits, and the command that one needs to be run first."""
    from isentrope.plugins import registry
    from isentrope.specs import EnvSpec

    table = Table("id", "splits", "needs", "summary", box=None)
    for name, spec in sorted(registry().specs("environment").items()):
        assert isinstance(spec, EnvSpec)  # the hook takes no other
        there = spec.python is None or Path(spec.python).is_file()
        cells = (name, ", ".join(spec.splits), "" if there else spec.setup, spec.summary)
        table.add_row(*map(escape, cells))
    console.print(table)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if FIRST:
        print(f"warning: {message}", file=sys.stderr)
