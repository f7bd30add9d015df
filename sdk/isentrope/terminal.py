"""What every command has in common: how it is found, what it prints on, and how it ends.

==== ========================================================================================
  0  done
  1  done, and something is wrong with what was looked at (a check failed, a part is broken)
  2  asked wrongly, or not confirmed: nothing was done
  3  failed on the way: what was written until then stays
 70  a fault of Isentrope or of a plugin, with its traceback
130  ended by Ctrl-C
==== ========================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer import TyperException
from typer.core import TyperGroup

from isentrope.errors import (
    ConfigError,
    IsentropeError,
    OtherRankError,
    PluginError,
    UnknownNameError,
    nearest,
)

FOUND_WRONG, ASKED_WRONGLY, FAILED, FAULT, INTERRUPTED = 1, 2, 3, 70, 130
"""Exit statuses; 0 is the only good one."""
FIRST = os.environ.get("RANK", "0") == "0"
"""Under torchrun, only the first rank speaks."""
_WIDTH: dict[str, Any] = {} if sys.stdout.isatty() else {"width": 1000, "soft_wrap": True}
"""A file or a pipe gets whole lines, however long."""
_NAME = "isentrope"
_COMPLETES = f"_{_NAME.upper()}_COMPLETE" in os.environ
"""Whether it is the shell that asks, for completions."""
_ENVIRONMENTAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)
"""What the machine refuses, which no traceback explains better."""
console = Console(quiet=not FIRST, **_WIDTH)


class Commands(TyperGroup):
    """Our commands, and those that plugins bring, which are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all."""
        return [*super().list_commands(ctx), *sorted(_of_plugins().keys() - self.commands.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one of ours, else a plugin's, by what its record says.

        Raises `UnknownNameError` where there is neither; a completion gets None.
        """
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if (summary := _of_plugins().get(cmd_name)) is not None:
            return TyperGroup(
                name=cmd_name,
                help=summary,
                short_help=summary,
                rich_help_panel="From plugins",
                rich_markup_mode=self.rich_markup_mode,
            )
        if ctx.resilient_parsing:
            return None
        raise UnknownNameError("Command", cmd_name, self.list_commands(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Return a command to be run; a plugin's is imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name not in self.commands:
            command = _of_plugin(name)
        return name, command, rest


def run(app: typer.Typer) -> None:
    """Run the command line and exit; what a user did wrong is one sentence."""
    if _COMPLETES:
        _complete(app)
    try:
        status = app(prog_name=_NAME, standalone_mode=False)
    except IsentropeError as error:
        silent = error.rank is None and (isinstance(error, OtherRankError) or not FIRST)
        status = ASKED_WRONGLY if isinstance(error, (ConfigError, PluginError)) else FAILED
        print_error(str(error), quiet=silent)  # where another rank says it
    except TyperException as error:
        status = ASKED_WRONGLY
        _print_usage_error(error)
    except typer.Abort:
        status = ASKED_WRONGLY
        print_error("Not confirmed: nothing was done.")
    except OSError as error:
        if error.errno not in _ENVIRONMENTAL:
            raise SystemExit(_fault()) from None
        status = FAILED
        print_error(str(error))
    except Exception:  # whatever it is, it ends here
        status = _fault()
    sys.exit(status if isinstance(status, int) else 0)


def print_error(sentence: str, *, quiet: bool = False) -> None:
    """Print what went wrong, on the standard error."""
    told = f"[bold red]error:[/] {escape(sentence)}"
    Console(stderr=True, quiet=quiet).print(told, soft_wrap=True, highlight=False)


def _fault() -> int:
    traceback.print_exc()
    print_error(
        "That is a fault of Isentrope, or of a plugin in the traceback, and not yours: please "
        "report it with the traceback and with what `isentrope doctor` prints."
    )
    return FAULT


def _print_usage_error(error: TyperException) -> None:
    """Print in one sentence what typer takes a page for."""
    if type(error).__name__ == "NoArgsIsHelpError":  # which typer does not make public
        return  # the help has been printed
    context: Any = getattr(error, "ctx", None)
    name = getattr(error, "option_name", None)
    said = " ".join(error.format_message().split())
    if name is not None and said.startswith("No such option"):
        options = [opt for param in context.command.get_params(context) for opt in param.opts]
        said = str(UnknownNameError("Option", name, [o for o in options if o.startswith("-")]))
    elif said.startswith("No such command") and "Did you mean" not in said:
        said += nearest("", context.command.list_commands(context))
    said = said if said[-1] in ".?" else f"{said}."
    more = f" See: {context.command_path} --help" if context is not None else ""
    print_error(said + more)


def _complete(app: typer.Typer) -> None:
    """Answer the shell; what goes wrong meanwhile is no completion, and no business of its user."""
    from isentrope.plugins import registry

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        with contextlib.redirect_stdout(nowhere), contextlib.suppress(Exception):
            registry()  # a plugin may print when it is imported
        with contextlib.suppress(Exception):
            app(prog_name=_NAME)
    sys.exit(0)


def _of_plugins() -> dict[str, str]:
    """Return the commands that plugins bring, by name, and their summaries."""
    from isentrope.plugins import registry

    return {name: spec.summary for name, spec in registry().specs("command").items()}


def _of_plugin(name: str) -> Any:
    from isentrope.plugins import load, registry

    spec = registry().find("command", name)
    try:
        with contextlib.redirect_stdout(sys.stderr if _COMPLETES else sys.stdout):
            brought = load(spec.entry_point, f"command {name!r}")
        if not isinstance(brought, typer.Typer):
            what = type(brought).__name__
            raise PluginError(f"The command {name!r} is of type {what}, and no typer.Typer.")
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
