"""The console script ``corsa``.

Extensions add commands by an entry point in the group ``corsa_plugins.commands``: its name is the command, its value a
``typer.Typer`` app, a function with typed parameters, or a :func:`passthrough` function that reads its own arguments.
A command is imported when it is called, and for ``corsa --help``, so its module should import its framework late.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from corsa_plugins import __version__
from corsa_plugins.commands.edit import diagnose, edit
from corsa_plugins.commands.protocol import protocol
from corsa_plugins.commands.stats import stats
from corsa_plugins.errors import CorsaError, SettingError, missing_extra
from corsa_plugins.formats.command import convert

__all__ = ["GROUP", "build_app", "main", "passthrough"]

GROUP = "corsa_plugins.commands"

_F = TypeVar("_F", bound=Callable[..., Any])

_ABOUT = """\
Knowledge editing: give a model new facts, and see what that did to it.

A file of edit requests (JSON Lines; a prompt, the new answer, and optionally the old one, paraphrases and
probes) goes in; an adapter or edited weights come out; both are measured on the model's own answers.

\b
EXAMPLES
  A small model that knows a small world, and three rounds of edits, to try things on:
    corsa testbed --out world
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

\b
EXIT CODES
  0    done
  1    a check failed, or an unexpected error (with a traceback: please report it)
  2    wrong usage, an unusable file, or a missing extra; the message says what to do
  130  interrupted
"""


def passthrough(function: _F) -> _F:
    """Mark a command that reads its own arguments.

    It is called with the list of all its arguments, ``--help`` among them, and returns an exit code or ``None``.
    """
    function.passthrough = True  # type: ignore[attr-defined]
    return function


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``corsa`` with ``argv`` (by default the command line's) and exit.

    Errors that a user can act on are one message and exit code 2; others keep their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    called = _called(arguments)
    try:
        result = build_app(arguments)(args=arguments, prog_name="corsa", standalone_mode=False)
    except (CorsaError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        explained = missing_extra(error, f"corsa {called}")
        if explained is None:
            raise
        _fail(str(explained))
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except Exception as error:
        # typer brings its own click or uses the installed one; either way wrong usage knows how to show itself
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()
        sys.exit(error.exit_code)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


def _called(arguments: Sequence[str]) -> str | None:
    """The command that ``arguments`` call; the options before it take no values."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def build_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """The ``corsa`` app with its own commands and those of extensions.

    Args:
        arguments: The command line. An extension's command is imported only if the line calls it or calls nothing.
    """
    app = typer.Typer(
        help=_ABOUT, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
    )
    app.callback()(_global_options)
    app.command("evaluate")(evaluate)
    app.command("testbed")(get_testbed)
    app.command("convert")(convert)
    app.command("stats")(stats)
    app.command("edit")(edit)
    app.command("diagnose")(diagnose)
    app.command("protocol")(protocol)
    called = _called(arguments)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
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


def evaluate(
    model: Annotated[str, typer.Option("--model", "-m", help="The model: a folder, or a name on the Hub.")],
    requests: Annotated[
        Path | None, typer.Option("--requests", "-r", help="Edit requests to ask about, JSON Lines.")
    ] = None,
    untouched: Annotated[
        Path | None,
        typer.Option(help='Facts that should have stayed, JSON Lines: {"prompt", "answer"}, or edit requests.'),
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter to put on the model.")] = None,
    edited: Annotated[
        str | None,
        typer.Option(
            help="Measure this edited model, or what corsa edit wrote, against --model if there is no --baseline."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What to compare with: a model, or a folder of saved results.")
    ] = None,
    later: Annotated[
        bool,
        typer.Option("--later", help="The baseline is these edits right after their update: report forgetting."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for report.html, records.jsonl, untouched.jsonl, summary.json."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="What to call this model in tables and files.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 64,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Length of the answers in tokens.  [default: the longest expected one, plus 16]"),
    ] = None,
    fluency_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Measure fluency on texts of this many tokens behind each edit prompt (slow)."),
    ] = None,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Ask through the chat template.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16 or float16.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Measure what a model answers to edit requests.

    Measured on every request: efficacy (the edit prompt), generality (paraphrases), how often the old answer still
    comes, specificity and portability (the request's probes), probabilities of the new and the old answer; and the
    share of untouched facts still answered right. With a baseline from before the edits also locality (answers that
    stayed as they were); with --later and a baseline from right after the update, forgetting and old-knowledge
    activation. Means come with 95 % bootstrap intervals over requests. Every verdict can be traced to a prompt and an
    output in records.jsonl, and read in report.html.

    An interrupted evaluation with --output goes on where it was when the same command is given again.

    \b
    EXAMPLES
      corsa evaluate --model M --requests facts.jsonl
      corsa evaluate --model M --adapter runs/facts --baseline M \\
          --requests facts.jsonl --untouched others.jsonl --output results
      corsa evaluate --model M --adapter runs/later --requests facts.jsonl --baseline results --later
      corsa evaluate --model M --edited runs/edited --requests facts.jsonl --output results

    \b
    FILES
      DIR/report.html      tables, and every request with its answers: one file, to open in a browser, offline
      DIR/records.jsonl    one line per request: prompts, outputs as they came, verdicts, log-probabilities
      DIR/untouched.jsonl  the same for untouched facts
      DIR/summary.json     the means with their intervals and definitions
      DIR/baseline/        the same three for --baseline, when that is a model
      DIR/unfinished.jsonl what is answered so far, while it runs

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable file, model or adapter; 130 interrupted
    """
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.evaluation import change_table, load_evaluation, save_evaluation, summary_table
    from corsa_plugins.evaluation import evaluate as run
    from corsa_plugins.evaluation.html import versions, write_report
    from corsa_plugins.evaluation.moments import check_asked
    from corsa_plugins.evaluation.report import SUMMARY
    from corsa_plugins.loading import load_edited, load_model
    from corsa_plugins.requests import read_probes, read_requests

    if quiet:
        disable_progress_bar()
    # Files first: a typo in one should not cost the loading of a model.
    if requests is None and untouched is None:
        raise SettingError("nothing to evaluate: give --requests, --untouched, or both")
    if edited and adapter:
        raise SettingError("--edited and --adapter: give one; an adapter of an edited model goes with --model EDITED")
    if edited and not baseline:
        baseline = model
    if later and not baseline:
        raise SettingError("--later needs --baseline: the results from right after the update")
    asked = read_requests(requests) if requests else []
    facts = read_probes(untouched) if untouched else []
    if output and output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder for the results")
    saved = load_evaluation(baseline) if baseline and (Path(baseline).expanduser() / SUMMARY).exists() else None
    if saved and saved.settings:
        max_new_tokens = max_new_tokens or saved.settings.get("max_new_tokens")
        fluency_tokens = fluency_tokens or saved.settings.get("fluency_tokens")
    answering = {
        "max_new_tokens": max_new_tokens,
        "chat_template": chat_template,
        "fluency_tokens": fluency_tokens,
    }
    if saved:
        check_asked(saved, asked, facts, answering)
    settings: dict[str, Any] = {"untouched": facts, "batch_size": batch_size, "progress": not quiet, **answering}
    files = {"after": output / "unfinished.jsonl", "before": output / "baseline" / "unfinished.jsonl"} if output else {}

    def measure(loaded: Any, tokenizer: Any, name: str, moment: str) -> Any:
        return run(loaded, tokenizer, asked, label=name, checkpoint=files.get(moment), **settings)

    before = saved
    if baseline and not saved and not (adapter and baseline == model):
        # One model at a time is in memory.
        before = measure(*load_model(baseline, device=device, dtype=dtype), Path(baseline).name, "before")
    if edited:
        loaded, tokenizer = load_edited(model, edited, device=device, dtype=dtype)
    else:
        loaded, tokenizer = load_model(model, adapter, device=device, dtype=dtype)
    if baseline and not before:
        with loaded.disable_adapter():
            before = measure(loaded, tokenizer, Path(baseline).name, "before")
    after = measure(loaded, tokenizer, label or Path(adapter or edited or model).name, "after")
    title = f"{len(asked)} requests, {len(facts)} untouched facts"
    if output:
        if before and not saved:
            save_evaluation(before, output / "baseline")
        save_evaluation(after, output, baseline=before, later=later)
        options = {
            "model": model, "adapter": adapter, "edited": edited, "requests": requests, "untouched": untouched,
            "baseline": baseline, "later": later, "batch_size": batch_size, "device": device, "dtype": dtype,
        }  # fmt: skip
        given = {name: str(value) for name, value in options.items() if value not in (None, False)}
        write_report(
            output / "report.html",
            [before, after] if before else [after],
            title=f"{after.label}: {title}",
            asked={"command": "corsa evaluate", **given, **(after.settings or {}), **versions()},
            later=later,
        )
        for file in files.values():
            file.unlink(missing_ok=True)
    heading = f"{title}: means with 95 % intervals"
    _show(change_table(before, after, heading, later=later) if before else summary_table([after], title=heading))
    if output:
        typer.echo(f"written to {output}")


def get_testbed(
    out: Annotated[Path | None, typer.Option(help="Folder to write the model and the requests files to.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Measure that it knows its world and can be edited.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Train it from nothing into OUT/model (minutes), not copy it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which facts are edited, and to what.")] = 0,
) -> None:
    """Get a small model of a small world, with facts to edit.

    The testbed ships with the package, so everything can be tried without a download. --out writes it as an ordinary
    Hugging Face model with three rounds of 100 edit requests, and 500 facts that no round touches.

    \b
    EXAMPLES
      corsa testbed --out world
      corsa testbed --check
      corsa testbed --rebuild --out world --check

    \b
    FILES
      OUT/model/             the model and its tokenizer
      OUT/round_1.jsonl ...  edit requests, round_1 to round_3
      OUT/untouched.jsonl    facts of people whom no round edits
      OUT/same_subject.jsonl the other facts of the edited people
      OUT/texts.txt          documents of the kind it was trained on, for corsa stats

    \b
    EXIT CODES
      0 done; 1 a check failed; 2 wrong usage or a damaged testbed; 130 interrupted
    """
    from corsa_plugins.alphaedit.texts import texts_of_testbed
    from corsa_plugins.files import atomic_write_text
    from corsa_plugins.requests import write_requests
    from corsa_plugins.testbed import TestbedRecipe, build_testbed, load_testbed

    if rebuild and out is None:
        raise SettingError("--rebuild needs --out: name the folder to build into")
    if rebuild and out:
        bed = build_testbed(TestbedRecipe(), out / "model")
    else:
        bed = load_testbed()
        if out:
            shutil.copytree(bed.path, out / "model", dirs_exist_ok=True)
    if out:
        plan = bed.world.edit_rounds(n_rounds=3, size=100, seed=seed, untouched=500)
        files = {f"round_{number}": requests for number, requests in enumerate(plan.rounds, start=1)}
        for name, requests in {**files, "untouched": plan.untouched, "same_subject": plan.same_subject}.items():
            write_requests(out / f"{name}.jsonl", requests)
        atomic_write_text(out / "texts.txt", "".join(f"{text}\n" for text in texts_of_testbed(bed, 3000)))
        typer.echo(f"written to {out}: model, {', '.join(files)}, untouched, same_subject, texts.txt")
    elif not check:
        typer.echo(f"the testbed is in {bed.path}; write it and its edit requests to a folder with --out")
    if check and not _testbed_holds(bed):
        raise typer.Exit(1)


def _testbed_holds(bed: Any) -> bool:
    """Show whether the testbed keeps its promises."""
    from rich.table import Table

    from corsa_plugins.testbed.checks import knowledge, value_reach

    shares = {f"facts known, {form}": (share, 0.99) for form, share in knowledge(bed).items()}
    reach = value_reach(bed, n=min(100, len(bed.world.people)), seed=0)
    shares["edits reached by a vector at the last subject token"] = (reach.reached, 0.9)
    table = Table("", "share, %", "at least, %", "")
    for name, (share, least) in shares.items():
        table.add_row(name, f"{100 * share:.1f}", f"{100 * least:.0f}", "ok" if share >= least else "FAILED")
    _show(table)
    return all(share >= least for share, least in shares.values())


def _show(table: Any) -> None:
    from rich.console import Console

    console = Console()
    # Cut cells say nothing; where output goes to a file there is no width to keep to.
    console.print(table) if console.is_terminal else Console(width=200).print(table)


if __name__ == "__main__":
    main()
