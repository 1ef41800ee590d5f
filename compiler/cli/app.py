"""The typer app, and what every verb's ending means: exit codes, errors, interruptions.

0: fine. 1: a test or gate failed. 2: the input was wrong. 3: the run itself failed. 130: interrupted. 141: whoever
read the output closed it. What is wrong is told on standard error as `error: ...`, never as a traceback, unless
`--debug` or `CUECARD_DEBUG=1` asks for one.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from typer import TyperException

from ...errors import CuecardError, InputError, nearest
from . import ab, check, compile, diff, eval, explain, export, models, run, show, test
from .screen import note, warn

FINE, FAILED, WRONG_INPUT, RUN_FAILED, INTERRUPTED, CLOSED = 0, 1, 2, 3, 130, 141

EXAMPLE = """\
\b
Example:
  $ cuecard compile examples/ticket_triage/ticket_triage.yaml
  $ cuecard run examples/ticket_triage/ticket_triage.compiled.yaml --ticket "I was charged twice"
  {"queue": "billing"}

\b
Exit codes: 0 fine, 1 a test or gate failed, 2 the input was wrong, 3 the run itself failed.
"""

app = typer.Typer(
    name="cuecard",
    add_completion=False,
    rich_markup_mode=None,  # plain help: it keeps the lines of the examples, and needs no import of rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
WITH_FLAGS = "[OPTIONS] [--NAME VALUE ...]"

app.command("check", short_help="Check a spec with all that it names.", epilog=check.EXAMPLE)(check.check)
app.command("compile", short_help="Find the prompts with which the model does a task best.", epilog=compile.EXAMPLE)(
    compile.compile_program
)
app.command(
    "run",
    short_help="Run a program on an input, or on a file of them.",
    epilog=run.EXAMPLE,
    options_metavar=WITH_FLAGS,
    context_settings=run.SETTINGS,
)(run.run)
app.command(
    "show",
    short_help="Show the exact prompts of a program.",
    epilog=show.EXAMPLE,
    options_metavar=WITH_FLAGS,
    context_settings=show.SETTINGS,
)(show.show)
app.command("export", short_help="Write the prompts of a program as JSON.", epilog=export.EXAMPLE)(export.export)
app.command("eval", short_help="Score a program on examples.", epilog=eval.EXAMPLE)(eval.evaluate_program)
app.command("diff", short_help="Compare two programs, runs or baselines.", epilog=diff.EXAMPLE)(diff.diff)
app.command("ab", short_help="Run two programs on the same examples and compare them.", epilog=ab.EXAMPLE)(ab.ab)
app.command("explain", short_help="Tell what a compiled program owes to what.", epilog=explain.EXAMPLE)(explain.explain)
app.command("test", short_help="Run the tests of a spec.", epilog=test.EXAMPLE)(test.test)
app.add_typer(models.app, name="models", short_help="List, fetch and describe models.", epilog=models.EXAMPLE)


@app.callback(invoke_without_command=True, epilog=EXAMPLE)
def cuecard(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="With any verb: show the traceback of an error. Also: CUECARD_DEBUG=1.")
    ] = False,
) -> None:
    """Compile declarative language-model programs for one local model."""
    if show_version:
        typer.echo(f"cuecard {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return its exit code. Raises nothing.

    Without `argv` it is the process's own command line, and the process ends here when it is interrupted.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    words = [word for word in given if word != "--debug"]  # understood anywhere, not only before the verb
    debug = len(words) < len(given) or os.environ.get("CUECARD_DEBUG", "") not in ("", "0")
    with _diagnostics(debug):
        try:
            code = app(words, prog_name="cuecard", standalone_mode=False)
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except (BrokenPipeError, SystemExit):  # typer and rich make the one of the other
            return _closed()
        except Exception as error:
            if debug:
                traceback.print_exception(error)
            return _told(error)
    if code == INTERRUPTED:
        note(f"interrupted{_resumption(words)}")
        if argv is None:
            _leave(INTERRUPTED)
    return int(code or FINE)


def _leave(code: int) -> None:
    """End the process at once where threads still compute: torch does not survive Python's own way out under them."""
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        os._exit(code)


def _told(error: Exception) -> int:
    """Print what an error says, and give the exit code that it means."""
    if isinstance(error, TyperException):
        error = _usage(error)
    if isinstance(error, CuecardError):
        for part in getattr(error, "errors", ()) or (error,):
            note(f"error: {part}", "red")
        if getattr(error, "more", 0):
            note(f"... and {error.more} more", "red")  # type: ignore[attr-defined]
        return WRONG_INPUT if isinstance(error, InputError) else RUN_FAILED
    if isinstance(error, MemoryError):
        note("error: there is not enough memory", "red")
        return RUN_FAILED
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    note(f"error: a defect of Cuecard, please report it: {what} ({place}; --debug shows the traceback)", "red")
    return RUN_FAILED


def _usage(error: TyperException) -> InputError:
    """What typer says about options and arguments, told as an input error."""
    context = getattr(error, "ctx", None)
    verb = context.command_path if context is not None else "cuecard"
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        known = [name.lstrip("-") for parameter in context.command.params for name in parameter.opts] if context else []
        near = nearest(option.lstrip("-"), known)
        message, near = f"there is no option {option}", f"--{near}" if near else None
    elif command := re.match(r"No such command '(.*?)'", error.format_message()):
        known = sorted(context.command.commands) if context else []
        message, near = f"there is no verb {command[1]!r}", nearest(command[1], known)
    else:
        message, near = error.format_message().rstrip(".").replace(": Input should be ", "; expected "), None
        message = message[:1].lower() + message[1:]
    return InputError(message, nearest=near, hint=f"See: {verb} --help")


def _resumption(words: Sequence[str]) -> str:
    if words[:1] != ["compile"]:
        return ""
    if "--fresh" in words:
        return "; the same command without --fresh goes on where it stopped"
    return "; the same command goes on where it stopped"


def _closed() -> int:
    """Nobody reads the output any more: keep Python from failing once more when it flushes at the end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
    return CLOSED


@contextmanager
def _diagnostics(debug: bool) -> Iterator[None]:
    """Print what the package logs as warnings, each kind once; silence other packages' warnings unless debugging."""
    logger, handler = logging.getLogger("cuecard"), _Warnings()
    level = logger.level
    handler.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.addHandler(handler)
    if debug:
        logger.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Warnings(logging.Handler):
    """Prints the first message of each kind: a search would repeat it for every example."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg in self._told:
            return
        self._told.add(record.msg)
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            warn(text)
        else:
            note(f"{record.levelname.lower()}: {text}")


def _version() -> str:
    try:
        return version("cuecard")
    except PackageNotFoundError:
        return "unknown"
