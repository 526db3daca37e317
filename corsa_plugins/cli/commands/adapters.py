"""``corsa evaluate-adapters`` and ``corsa route``: several adapters, and a question sent to the one that knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError, require

if TYPE_CHECKING:
    from corsa_plugins.bench.routing.report import RoutingReport
    from corsa_plugins.data.requests import EditRequest

__all__ = ["Describe", "RouterKind", "evaluate_adapters", "route"]

DESCRIPTIONS = "descriptions.json"
ROUTES = "routes.jsonl"
ROUTING = "routing.json"
UNFINISHED = "unfinished"


class RouterKind(StrEnum):
    """How an adapter is chosen."""

    LABEL = "label"
    QUESTION = "question"
    NEAREST = "nearest"


class Describe(StrEnum):
    """How a part is described."""

    SUMMARY = "summary"
    PROMPTS = "prompts"
    SUBJECTS = "subjects"


_Model = Annotated[str, typer.Option("--model", "-m", help="The base model: a folder, or a name on the Hub.")]
_Adapters = Annotated[list[str], typer.Option("--adapter", "-a", help="A PEFT adapter of one part; repeated.")]
_Requests = Annotated[
    list[Path] | None,
    typer.Option(
        "--requests",
        "-r",
        help="The requests of each adapter, in the adapters' order.  [default: requests.jsonl in the adapter's folder, "
        "as corsa train writes it]",
    ),
]
_Router = Annotated[RouterKind, typer.Option(help="How an adapter is chosen; see below.")]
_Describe = Annotated[
    Describe | None,
    typer.Option(help="How parts are described.  [default: summary with --chat-template, else prompts]"),
]
_Descriptions = Annotated[
    Path | None, typer.Option(help="Descriptions to use: a descriptions.json, as written or as you edited it.")
]
_Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="With label: take off what a label gets when nothing is asked.")
]
_Layer = Annotated[
    int | None, typer.Option(min=1, help="With nearest: compare behind this block.  [default: two thirds of the way]")
]
_BatchSize = Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")]
_MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Length of answers in tokens.  [default: the longest expected one, plus 16]")
]
_Chat = Annotated[bool, typer.Option("--chat-template", help="Describe, route and ask through the chat template.")]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")]
_Dtype = Annotated[str, typer.Option(help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16, float16.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def evaluate_adapters(
    model: _Model,
    adapter: _Adapters,
    requests: _Requests = None,
    single: Annotated[
        str | None, typer.Option(help="One adapter trained on all the requests, to compare with: the upper bound.")
    ] = None,
    router: _Router = RouterKind.LABEL,
    describe: _Describe = None,
    descriptions: _Descriptions = None,
    describe_only: Annotated[
        bool, typer.Option("--describe-only", help="Write descriptions.json, to be looked at, and stop.")
    ] = False,
    calibrate: _Calibrate = False,
    layer: _Layer = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the descriptions and the results.")
    ] = None,
    batch_size: _BatchSize = 64,
    max_new_tokens: _MaxNewTokens = None,
    chat_template: _Chat = False,
    device: _Device = None,
    dtype: _Dtype = "auto",
    quiet: _Quiet = False,
) -> None:
    """Measure several adapters, each of a part of the facts, as one model.

    The base model is shown a description of every part and the question, and its choice decides which adapter answers:
    every prompt of the requests, of a probe too, is routed by itself. Measured are routing accuracy, and what the
    requests are answered with the routed and with the true choice; with --single also which share of what is lost to
    one adapter for all is lost by routing (CoRSA paper, B.2).

    \b
    ROUTERS
      label     the paper's: the base model names a description; for models that follow instructions
      question  the description behind which the question is the most probable
      nearest   the part with the request whose edit prompt the base model represents most like the question; needs no
                descriptions, and is the one for base models, and for parts that are about the same kinds of things

    \b
    EXAMPLES
      corsa split facts.jsonl --by template --parts 5 --output parts
      for n in 1 2 3 4 5; do
          corsa train --config run.yaml --requests parts/part-$n.jsonl --output_dir adapters/part-$n
      done
      corsa evaluate-adapters --model M -a adapters/part-1 -a adapters/part-2 ... --chat-template \\
          --describe-only --output results
      corsa evaluate-adapters --model M -a adapters/part-1 -a adapters/part-2 ... --chat-template \\
          --single adapters/all --output results
      corsa route --model M -a adapters/part-1 -a adapters/part-2 ... --router nearest "Where was Ada Berg born?"

    \b
    FILES
      OUTPUT/descriptions.json  name of an adapter -> its description; edit it, and the next call uses it
      OUTPUT/report.html        tables, and every request with its answers: one file, to open in a browser, offline
      OUTPUT/routes.jsonl       one line per prompt: where it belongs, and where it went
      OUTPUT/routing.json       accuracy, confusion matrix, metrics with the routed and the true choice, by part too
      OUTPUT/routed/, true/, single/  records.jsonl and summary.json, as of corsa evaluate

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable file, model or adapter; 130 interrupted (the same command goes on)
    """
    from corsa_plugins.bench.evaluation import evaluate
    from corsa_plugins.bench.evaluation.evaluate import longest_target
    from corsa_plugins.bench.routing.report import RoutingReport
    from corsa_plugins.bench.routing.routing import active_adapter, evaluate_routed

    if output and output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder for the results")
    if describe_only and (output is None or router is RouterKind.NEAREST):
        raise SettingError("--describe-only needs --output, and a router that reads descriptions")
    names, parts = _parts(adapter, requests)
    given = _given(names, router, describe, descriptions, output)
    _check_router(router, calibrate, layer)
    loaded, tokenizer, inside = _load(model, [*adapter, *([single] if single else [])], device, dtype, quiet)
    found = given
    if found is None and router is not RouterKind.NEAREST:
        found = _describe(loaded, tokenizer, names, parts, describe, chat_template)
    if found is not None:
        _keep(found, output)
    if describe_only:
        typer.echo(f"written to {output}: edit {DESCRIPTIONS} if need be, and call again without --describe-only")
        return
    chooser = _router(loaded, tokenizer, parts, found, router, calibrate, layer, chat_template, batch_size)
    everything = [request for part in parts for request in part]
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens or longest_target(tokenizer, everything) + 16,
        "chat_template": chat_template,
        "progress": not quiet,
    }
    unfinished = output / UNFINISHED if output else None

    def several(name: str, by: Any, label: str) -> Any:
        place = unfinished / name if unfinished else None
        own = inside[: len(parts)]
        return evaluate_routed(loaded, tokenizer, parts, own, by, label=label, checkpoint=place, **options)

    true = several("true", None, "true choice").evaluation
    routed = several("routed", chooser, "routed")
    alone = None
    if single:
        with active_adapter(loaded, inside[-1]):
            place = unfinished / "single.jsonl" if unfinished else None
            alone = evaluate(loaded, tokenizer, everything, label="one adapter", checkpoint=place, **options)
    report = RoutingReport(names, [len(part) for part in parts], routed, true, alone)
    asked = {
        "command": "corsa evaluate-adapters", "model": model, "adapters": ", ".join(adapter), "single": single,
        "router": router.value, "layer": getattr(chooser, "layer", None), "calibrate": calibrate or None,
        "chat_template": chat_template or None, "max_new_tokens": options["max_new_tokens"], "dtype": dtype,
    }  # fmt: skip
    if output and unfinished:
        _save(report, output, {name: value for name, value in asked.items() if value is not None}, found)
        shutil.rmtree(unfinished, ignore_errors=True)
    show(report.table())
    show(report.parts_table())
    if output:
        typer.echo(f"written to {output}")


def route(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="What to ask; one or more.")],
    model: _Model,
    adapter: _Adapters,
    requests: _Requests = None,
    router: _Router = RouterKind.LABEL,
    describe: _Describe = None,
    descriptions: _Descriptions = None,
    calibrate: _Calibrate = False,
    layer: _Layer = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of answers in tokens.")] = 32,
    batch_size: _BatchSize = 64,
    chat_template: _Chat = False,
    device: _Device = None,
    dtype: _Dtype = "auto",
    quiet: _Quiet = False,
) -> None:
    """Ask several adapters: each question goes to the one that the router chooses.

    The routers are those of corsa evaluate-adapters, which measures how well they choose. With descriptions given, the
    adapters' requests are not needed, but for the router `nearest`.

    \b
    EXAMPLES
      corsa route --model M -a adapters/part-1 -a adapters/part-2 --chat-template \\
          --descriptions results/descriptions.json "Where was Ada Berg born?"
      corsa route --model M -a adapters/part-1 -a adapters/part-2 --router nearest "Where was Ada Berg born?"

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable file, model or adapter; 130 interrupted
    """
    from rich.table import Table
    from rich.text import Text

    from corsa_plugins.bench.routing.routing import active_adapter
    from corsa_plugins.model.asking import cut_answer, generate_answers

    blank = [question for question in questions if not question.strip()]
    if blank:
        raise SettingError("a question is blank: ask something")
    needed = descriptions is None or router is RouterKind.NEAREST
    names, parts = _parts(adapter, requests) if needed else (_names(adapter), [])
    given = _given(names, router, describe, descriptions, None)
    _check_router(router, calibrate, layer)
    loaded, tokenizer, inside = _load(model, adapter, device, dtype, quiet)
    found = given
    if found is None and router is not RouterKind.NEAREST:
        found = _describe(loaded, tokenizer, names, parts, describe, chat_template)
    chooser = _router(loaded, tokenizer, parts, found, router, calibrate, layer, chat_template, batch_size)
    chosen = chooser.route(questions)
    answers: dict[int, str] = {}
    for place in sorted(set(chosen)):
        asked = [number for number, one in enumerate(chosen) if one == place]
        with active_adapter(loaded, inside[place]):
            said = generate_answers(
                loaded,
                tokenizer,
                [questions[number] for number in asked],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                chat_template=chat_template,
            )
        for number, one in zip(asked, said, strict=True):
            answers[number] = " ".join(one.text.split()) if chat_template else cut_answer(one.text, one.finished)
    table = Table()
    for heading in ("question", "adapter", "answer"):
        table.add_column(heading)
    for number, question in enumerate(questions):
        table.add_row(Text(question), Text(names[chosen[number]]), Text(answers[number]))
    show(table)


def _names(adapters: Sequence[str]) -> list[str]:
    """What to call the adapters: the last part of their paths, or as much as tells them apart."""
    paths = [Path(adapter).expanduser().absolute().parts for adapter in adapters]
    if len(set(paths)) < len(paths):
        raise SettingError(f"--adapter {', '.join(adapters)}: name each adapter once")
    length = 1
    while len({path[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path[-length:]) for path in paths]


def _parts(adapters: Sequence[str], files: Sequence[Path] | None) -> tuple[list[str], list[list[EditRequest]]]:
    """The adapters' names and requests."""
    from corsa_plugins.data.reading import read_requests

    names = _names(adapters)
    if files and len(files) != len(adapters):
        raise SettingError(
            f"{len(files)} files of requests for {len(adapters)} adapters: give one --requests for each --adapter, in "
            "the same order, or none"
        )
    if not files:
        files = [Path(adapter).expanduser() / "requests.jsonl" for adapter in adapters]
        missing = [adapter for adapter, file in zip(adapters, files, strict=True) if not file.is_file()]
        if missing:
            raise SettingError(f"{', '.join(missing)}: no requests.jsonl beside the adapter; give --requests for each")
    return names, [read_requests(file) for file in files]


def _given(
    names: Sequence[str],
    router: RouterKind,
    describe: Describe | None,
    descriptions: Path | None,
    output: Path | None,
) -> dict[str, str] | None:
    """The descriptions there are already: those asked for, or those of an earlier call."""
    if router is RouterKind.NEAREST:
        if descriptions or describe:
            raise SettingError("the router nearest reads no descriptions: leave out --descriptions and --describe")
        return None
    if descriptions and describe:
        raise SettingError("--descriptions and --describe: give one")
    path = descriptions
    if path is None and describe is None and output and (output / DESCRIPTIONS).is_file():
        path = output / DESCRIPTIONS
        typer.echo(f"using the descriptions of {path}; with --describe they are made again")
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{path}: no such file of descriptions") from None
    except ValueError as error:
        raise SettingError(f"{path} is not JSON: {error}") from None
    fits = isinstance(found, Mapping) and all(isinstance(text, str) and text.strip() for text in found.values())
    if not fits or set(found) != set(names):
        raise SettingError(f"{path}: it should hold a description for each of {', '.join(names)}, and no others")
    return {name: found[name] for name in names}


def _check_router(router: RouterKind, calibrate: bool, layer: int | None) -> None:
    if calibrate and router is not RouterKind.LABEL:
        raise SettingError("--calibrate goes with --router label")
    if layer is not None and router is not RouterKind.NEAREST:
        raise SettingError("--layer goes with --router nearest")


def _load(
    model: str, adapters: Sequence[str], device: str | None, dtype: str, quiet: bool
) -> tuple[Any, Any, list[str]]:
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.bench.routing.routing import load_adapters
    from corsa_plugins.model.loading import load_model

    require("peft", "trl", what="several adapters")
    if quiet:
        disable_progress_bar()
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    together, inside = load_adapters(loaded, adapters)
    return together, tokenizer, inside


def _describe(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    parts: Sequence[Sequence[EditRequest]],
    describe: Describe | None,
    chat_template: bool,
) -> dict[str, str]:
    from corsa_plugins.bench.routing.routing import list_prompts, list_subjects, summarise

    how = describe or (Describe.SUMMARY if chat_template else Describe.PROMPTS)
    if how is Describe.SUMMARY:
        texts = [summarise(model, tokenizer, part, chat_template=chat_template) for part in parts]
    else:
        texts = [(list_subjects if how is Describe.SUBJECTS else list_prompts)(part) for part in parts]
    return dict(zip(names, texts, strict=True))


def _keep(descriptions: Mapping[str, str], output: Path | None) -> None:
    from corsa_plugins.files import atomic_write_text

    for name, description in descriptions.items():
        typer.echo(f"{name}: {description}")
    if output:
        text = json.dumps(dict(descriptions), indent=2, ensure_ascii=False)
        atomic_write_text(output / DESCRIPTIONS, text + "\n")


def _router(
    model: Any,
    tokenizer: Any,
    parts: Sequence[Sequence[EditRequest]],
    descriptions: Mapping[str, str] | None,
    router: RouterKind,
    calibrate: bool,
    layer: int | None,
    chat_template: bool,
    batch_size: int,
) -> Any:
    from corsa_plugins.bench.routing.routing import NearestRouter, Router

    shared: dict[str, Any] = {"chat_template": chat_template, "batch_size": batch_size}
    if descriptions is None:
        return NearestRouter(model, tokenizer, parts, layer=layer, **shared)
    how: Any = router.value
    return Router(model, tokenizer, list(descriptions.values()), how=how, calibrate=calibrate, **shared)


def _save(
    report: RoutingReport, output: Path, asked: Mapping[str, Any], descriptions: Mapping[str, str] | None
) -> None:
    from corsa_plugins.bench.evaluation import METRICS, save_evaluation
    from corsa_plugins.bench.evaluation.tables import metric_title
    from corsa_plugins.files import atomic_write_text
    from corsa_plugins.report.page import Comparison, versions, write_report

    keys = ["true", "routed"] if report.single is None else ["single", "true", "routed"]
    for key, evaluation in zip(keys, report.evaluations, strict=True):
        save_evaluation(evaluation, output / key)
    lines = []
    for one in report.routed.routes:
        row = {**asdict(one), "true": report.names[one.true], "chosen": report.names[one.chosen]}
        lines.append(json.dumps(row, ensure_ascii=False))
    atomic_write_text(output / ROUTES, "".join(f"{line}\n" for line in lines))
    text = json.dumps({"asked": dict(asked), **report.as_dict()}, indent=2, ensure_ascii=False)
    atomic_write_text(output / ROUTING, text + "\n")
    summaries = [one.summary() for one in report.evaluations]
    blank: list[Any] = [None] * (len(summaries) - 1)
    overall = Comparison(
        f"{sum(report.sizes)} requests, {len(report.names)} adapters",
        [one.label for one in report.evaluations],
        [
            ("Routing accuracy, %", 1, [*blank, report.routed.accuracy]),
            *((metric_title(n), METRICS[n].better, [one.get(n) for one in summaries]) for n in report.metrics),
        ],
        f"Of edit prompts and paraphrases; a router that draws is right in {100 * report.chance:.1f} %.",
    )
    by_part = [one.summary() for place in range(len(report.names)) for one in report.part(place)]
    accuracies: list[Any] = []
    for place in range(len(report.names)):
        accuracies += [*blank, report.routed.accuracy_of(("prompt", "paraphrases"), place)]
    parts = Comparison(
        "By part",
        [f"{name}: {one.label}" for name in report.names for one in report.evaluations],
        [
            ("Routing accuracy, %", 1, accuracies),
            *((metric_title(n), METRICS[n].better, [one.get(n) for one in by_part]) for n in report.metrics),
        ],
    )
    write_report(
        output / "report.html",
        [],
        title="Several adapters",
        asked={**asked, **versions()},
        comparisons=[overall, parts],
        answers=[report.evaluations],
        notes=[f"{name}: {description}" for name, description in (descriptions or {}).items()],
    )
