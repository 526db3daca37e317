"""The console script ``corsa``.

Extensions add commands by an entry point in the group ``corsa_plugins.commands``: its name is the command, its value a
``typer.Typer`` app, a function with typed parameters, or a function marked by
:func:`corsa_plugins.cli.plugin.passthrough` that reads its own arguments.
A command is imported when it is called, and for ``corsa --help``, so its module should import its framework late.
The package's own commands are a table, :data:`COMMANDS`.
"""

from __future__ import annotations

import errno
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, NoReturn

import typer

from corsa_plugins import __version__
from corsa_plugins.cli.terminal import harmless
from corsa_plugins.errors import CorsaError, missing_extra

__all__ = ["COMMANDS", "GROUP", "build_app", "main"]

COMMANDS = {
    "evaluate": "evaluate:evaluate",
    "testbed": "testbed:get_testbed",
    "atlas": "atlas:atlas",
    "convert": "convert:convert",
    "stats": "stats:stats",
    "edit": "edit:edit",
    "export": "export:export",
    "import": "import_adapter:import_adapter",
    "diagnose": "diagnose:diagnose",
    "conflict-set": "conflict_set:build_conflict_set",
    "protocol": "protocol:protocol",
    "demo": "demo:demo",
    "split": "split:split",
    "evaluate-adapters": "evaluate_adapters:evaluate_adapters",
    "evaluate-code": "evaluate_code:evaluate_code",
    "route": "route:route",
    "merge-adapters": "merge_adapters:merge_adapters",
    "merge-sweep": "merge_sweep:merge_sweep",
    "report": "report:report",
    "push": "push:push",
}
"""The package's own commands in the order in which they are listed: module and function in ``cli/commands``."""

GROUP = "corsa_plugins.commands"
INTERRUPTED = 130

_OF_THE_USERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST)
"""Errors of the system that are the disk's or a path's, beside those that Python has classes for."""

_ABOUT = """\
Knowledge editing: give a model new facts, and see what that did to it.

A file of edit requests (JSON Lines; a prompt, the new answer, and optionally the old one, paraphrases and
probes) goes in; an adapter or edited weights come out; both are measured on the model's own answers.

\b
EXAMPLES
  A small model that knows a small world, and three rounds of edits, to try things on:
    corsa testbed --output world
  Does the model know the new answers already?
    corsa evaluate --model world/model --requests world/round_1.jsonl
  Facts from a published data set?
    corsa convert --format counterfact counterfact.json facts.jsonl
  Edit them into the weights, and see beforehand which of them will fight:
    corsa stats --model M --text wiki.jsonl --layers 4,5,6,7,8 --output stats
    corsa diagnose --model M --requests facts.jsonl --statistics stats --settings llama3-8b
    corsa edit --model M --requests facts.jsonl --statistics stats --settings llama3-8b --output edited
  What did an adapter change, and what else did it break?
    corsa evaluate --model world/model --adapter runs/round_1 --baseline world/model \\
        --requests world/round_1.jsonl --untouched world/untouched.jsonl --output results
  All of it on one page, with the training, the merge sweep and the conflicts:
    corsa report results/baseline results runs/round_1 sweep edited -o page.html

\b
EXIT CODES
  0    done
  1    a check failed, or an unexpected error (with a traceback: please report it)
  2    wrong usage, an unusable file, or a missing extra; the message says what to do
  130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``corsa`` with ``argv`` (by default the command line's) and exit.

    Errors that a user can act on are one message and exit code 2; others keep their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    called = _called(arguments)
    for argument in arguments:
        if not _is_text(argument):
            _fail(f"{argument[:200]} is not UTF-8, and so nothing could be written that names it")
    empty = _empty(arguments) if called in COMMANDS else None
    if empty is not None:
        _fail(f"{empty} is empty, as of a variable that is not set: give it a value, or leave it out")
    try:
        result = build_app(arguments)(args=arguments, prog_name="corsa", standalone_mode=False)
    except (CorsaError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _OF_THE_USERS:
            raise
        _fail(str(error))
    except ModuleNotFoundError as error:
        explained = missing_extra(error, f"corsa {called}")
        if explained is None:
            raise
        _fail(str(explained))
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", INTERRUPTED)
    except Exception as error:
        # typer brings its own click or uses the installed one; either way wrong usage knows how to show itself
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()
        sys.exit(error.exit_code)
    if result == INTERRUPTED:  # typer hands a KeyboardInterrupt of a command back as its exit code, and says nothing
        _fail("interrupted", INTERRUPTED)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    # what a file said may hold half characters, which no terminal takes
    typer.echo(harmless(f"error: {message}").encode("utf-8", "backslashreplace").decode("utf-8"), err=True)
    sys.exit(code)


def _is_text(argument: str) -> bool:
    """Whether it came as UTF-8: of other bytes Python makes half characters, which no file or terminal takes."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _empty(arguments: Sequence[str]) -> str | None:
    """What has an empty value, by name; as a path that would be the current folder."""
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option.startswith("--") and equals and not value:
            return option
        if not argument:
            before = arguments[number - 1] if number else ""
            return before if before.startswith("-") else f"argument {number + 1}"
    return None


def _called(arguments: Sequence[str]) -> str | None:
    """The command that ``arguments`` call; the options before it take no values."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def build_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """The ``corsa`` app with its own commands and those of extensions.

    Args:
        arguments: The command line. Where it calls a command, no other is imported; where it calls none, or one that
            there is not, the package's own are, and for a list of all commands the extensions' too.
    """
    app = typer.Typer(
        help=_ABOUT, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
    )
    app.callback()(_global_options)
    called = _called(arguments)
    for name in [called] if called in COMMANDS else COMMANDS:
        module, _, function = COMMANDS[name].partition(":")
        app.command(name)(getattr(import_module(f"corsa_plugins.cli.commands.{module}"), function))
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in COMMANDS:
            continue  # what a command of ours is called cannot be given another meaning
        if called == entry.name:
            _add_extension(app, entry.name, entry.load())
        elif called is None:
            try:
                _add_extension(app, entry.name, entry.load())
            except Exception as error:  # one broken extension must not hide the others
                note = missing_extra(error, f"corsa {entry.name}") if isinstance(error, ImportError) else error
                _add_raw(app, entry.name, lambda: None, f"(not usable) {note or error}")
    return app


def _add_extension(app: typer.Typer, name: str, command: Any) -> None:
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    elif getattr(command, "passthrough", False):

        def run(context: typer.Context) -> None:
            raise typer.Exit(int(command(list(context.args)) or 0))

        _add_raw(app, name, run, inspect.getdoc(command) or "")
    else:
        app.command(name)(command)


def _add_raw(app: typer.Typer, name: str, function: Callable[..., Any], text: str) -> None:
    """A command that gets its arguments as they are, ``--help`` among them."""
    raw = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
    # A short help of its own is wrapped, not cut: the list of commands is where a missing extra is read about.
    summary = " ".join(text.partition("\n\n")[0].split())
    app.command(name, help=text, short_help=summary, context_settings=raw, add_help_option=False)(function)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"corsa-plugins {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is going on.")] = False,
) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("corsa_plugins").setLevel(logging.INFO if verbose else logging.WARNING)
