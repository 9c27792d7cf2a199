"""All commands under one name, and what a failure looks like."""

from __future__ import annotations

import io
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape

from serinette import __version__
from serinette.cli import batches, containers, jobs, server, status, tenants
from serinette.cli.doctor import doctor
from serinette.cli.mcp import mcp
from serinette.cli.replay import replay
from serinette.cli.terminal import EXIT_CLOSED_PIPE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREACHABLE, errors
from serinette.errors import InvalidBatch, SerinetteError, Unavailable
from serinette.names import unknown_variables

app = typer.Typer(
    name="serinette",
    help="Serverless music generation: from one machine to a cluster of GPUs.",
    epilog="Exit status: 0 done; 1 it failed; 2 wrong usage; 3 no server answers; 4 done in part (songs of a "
    "batch failed, a replay has other bits); 130 interrupted. `run` ends with the container's own.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(server.up)
app.command("worker")(server.worker)
app.command("demo")(server.demo)
app.command("submit")(jobs.submit)
app.command("run")(containers.run)
app.command("watch")(jobs.watch)
app.command("jobs")(jobs.jobs)
app.command("show")(jobs.show)
app.command("cancel")(jobs.cancel)
app.command("queue")(status.queue)
app.command("workers")(status.workers)
app.command("models")(status.models)
app.command("usage")(status.usage)
app.command("replay")(replay)
app.add_typer(batches.app, name="batch", no_args_is_help=True)
app.command("doctor")(doctor)
app.command("mcp")(mcp)
app.command("convert")(server.convert)
app.add_typer(tenants.keys, name="keys", no_args_is_help=True)
app.add_typer(tenants.tenants, name="tenants", no_args_is_help=True)


# Of which of our extras a package is that a command may miss.
_EXTRAS = dict.fromkeys(("redis", "pydantic_settings", "obstore", "av", "numpy"), "server") | {
    "kubernetes": "cluster",
    "mcp": "mcp",
}


class Shell(StrEnum):
    """Whose completion is known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"serinette {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `serinette` itself; and what its environment holds in vain, whichever command may have read it."""
    for sentence in unknown_variables(os.environ):
        errors.print(f"[yellow]{escape(sentence)}[/]", soft_wrap=True)


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(show_default=False)]) -> None:
    """Print what makes a shell complete our commands: `eval "$(serinette completion bash)"`."""
    os.environ["_SERINETTE_COMPLETE"] = f"source_{shell}"  # Click's way to be asked for it
    app(args=[], prog_name="serinette")


def _words(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return f"a file or the terminal holds what is no text in its encoding: {error}"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def run() -> None:
    """Run a command; whatever it is given, a failure is one message and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack letters of prompts
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SerinetteError as error:
        errors.print(f"[bold red]Error:[/] {escape(error.message)}", soft_wrap=True)
        for line, field, message in error.lines if isinstance(error, InvalidBatch) else ():
            where = f"{field}: " if field else ""
            errors.print(f"  line {line}: {where}{message}", markup=False, soft_wrap=True)
        sys.exit(EXIT_UNREACHABLE if isinstance(error, Unavailable) else EXIT_FAILED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if (extra := _EXTRAS.get(package)) is None:
            raise
        errors.print(f"[bold red]Error:[/] this needs {package}: pip install 'serinette\\[{extra}]'", soft_wrap=True)
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:  # the program that reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at exit goes nowhere
        sys.exit(EXIT_CLOSED_PIPE)
    except (OSError, UnicodeError) as error:
        errors.print(f"[bold red]Error:[/] {escape(_words(error))}", soft_wrap=True)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        sys.exit(EXIT_INTERRUPTED)
