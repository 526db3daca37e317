"""``corsa protocol``: methods through several updates, measured right after each and after all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError, require

if TYPE_CHECKING:
    from corsa_plugins.bench.protocols import UpdatePlan
    from corsa_plugins.data.requests import EditRequest, Probe

__all__ = ["Kind", "protocol"]


class Kind(StrEnum):
    """The protocols by name."""

    SINGLE = "single"
    INJECTION = "injection"
    STREAM = "stream"
    BATCHES = "batches"


def protocol(
    kind: Annotated[Kind, typer.Argument(help="Which updates follow each other; see below.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model: a folder, or a name on the Hub.")],
    requests: Annotated[
        list[Path], typer.Option("--requests", "-r", help="Edit requests, JSON Lines; repeated: one file an update.")
    ],
    method: Annotated[
        list[str],
        typer.Option(
            help="alphaedit, alphaedit+, rsft, rsft-merged, rsft-mergekit, lora-sft, corsa, f-learning; "
            "may be repeated."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; every method has one of its own in it.")],
    untouched: Annotated[
        Path | None, typer.Option(help="Facts that no update is about, JSON Lines; asked after every update.")
    ] = None,
    batches: Annotated[
        int | None, typer.Option(min=1, help="For batches: how many to split the requests into.")
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(help="Shares of the later updates' requests, such as 0.25,0.5,1: what does each forget?"),
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option("--statistics", "-s", help="Folder written by corsa stats, for AlphaEdit.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            help="METHOD=FILE.yaml: the settings of a method; or METHOD=PRESET: testbed, and for alphaedit and "
            "alphaedit+ all of corsa edit; may be repeated."
        ),
    ] = None,
    forgetting_rate: Annotated[float | None, typer.Option(help="For f-learning: its lambda.  [default: 0.3]")] = None,
    harness: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, such as mmlu,hellaswag, before and after.")
    ] = None,
    harness_limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each task.")] = None,
    harness_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the updates.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass when asking.")] = 64,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of answers.  [default: the longest target + 16]")
    ] = None,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Ask through the chat template.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Take methods through several updates, and see what each learns, keeps and forgets.

    \b
    PROTOCOLS
      single     one update with all requests
      injection  two files: update with the first, then the second; both are asked at every moment
      stream     rounds in time: a file each, in their order, as corsa convert writes them from a history of facts
      batches    one file in --batches parts, one after the other

    What is measured right after an update and what is measured after all of them are never mixed. The model is not
    changed. A stopped run goes on where it was when the same command is given again.

    With --shares the first update is followed by a part of each later one, besides the whole plan, and what is lost of
    the first one and of the untouched facts is measured by share.

    \b
    EXAMPLES
      corsa protocol injection --model M -r counterfact.jsonl -r mquake.jsonl --method corsa --method f-learning -o runs
      corsa protocol stream --model M -r 2019.jsonl -r 2020.jsonl --method lora-sft --method corsa \\
          --shares 0.25,0.5,0.75,1 -o runs
      corsa protocol batches --batches 10 --model M -r facts.jsonl --method alphaedit+ --statistics stats \\
          --settings alphaedit+=llama3-8b --harness mmlu -o runs

    \b
    FILES
      OUTPUT/report.html                all methods: tables, training, conflicts, every prompt with every answer
      OUTPUT/METHOD/summary.json        by update: efficacy, generality, retention, forgetting, activation, specificity
      OUTPUT/METHOD/ability.json        with --harness: every metric before, after, and the difference
      OUTPUT/METHOD/forgetting.json     with --shares: forgetting by share; the runs are in OUTPUT/METHOD/shares/
      OUTPUT/METHOD/evaluations/        every prompt and answer at every moment
      OUTPUT/METHOD/updates/            adapter, edit state or changed weights of each update

    \b
    EXIT CODES
      0 done; 2 wrong usage or unusable files; 130 interrupted
    """
    from corsa_plugins.bench.ability import Harness, ability_table, compare_ability
    from corsa_plugins.bench.protocols import comparison_table, run_protocol
    from corsa_plugins.bench.protocols.plan import folder_name
    from corsa_plugins.bench.protocols.shares import FORGETTING, forgetting_points, run_shares, write_forgetting
    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.files import atomic_write_text
    from corsa_plugins.model.loading import load_model
    from corsa_plugins.report.page import HarnessScore, versions
    from corsa_plugins.report.protocol_page import write_protocol_page

    if quiet:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    # Everything that a typing error can spoil comes before the model is loaded.
    plan = _plan(kind, [read_requests(path) for path in requests], batches, read_probes(untouched) if untouched else [])
    methods = _methods(method, settings or [], statistics, forgetting_rate)
    parts = _shares(shares, plan) if shares else []
    if harness:
        require("lm_eval", "eval", what="--harness")
    options: dict[str, Any] = {"batch_size": batch_size, "chat_template": chat_template, "progress": not quiet}
    tasks = Harness(harness, limit=harness_limit, include_path=harness_path, **options) if harness else None
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    measures: dict[str, Callable[[Any], Any]] = {}
    if tasks:
        # The name stands for what was asked, and is that of a file.
        name = " ".join(["harness", *tasks.names])[:60] + f" {tasks.key}"
        measures[name] = lambda one: tasks.ask(one, tokenizer)
    options |= {"seed": seed, "max_new_tokens": max_new_tokens, "measures": measures}
    results, scores, forgetting = [], [], []
    for name, one in methods.items():
        folder = output / folder_name(name.replace("+", " plus"))
        try:
            result = run_protocol(
                one,
                plan,
                loaded,
                tokenizer,
                folder,
                **options,
            )
        except SettingError as error:
            raise SettingError(f"{name}: {error}") from error
        results.append(result)
        if parts:
            by_share = run_shares(
                one,
                plan,
                loaded,
                tokenizer,
                folder,
                parts,
                **options,
            )
            forgetting += (own := forgetting_points(by_share))
            write_forgetting([*own, *forgetting_points(by_share, untouched=True)], folder / FORGETTING)
        show(result.table())
        for asked in measures:
            ability = result.measured[0, asked], result.measured[len(plan.sets), asked]
            changes = {
                task: {metric: asdict(change) for metric, change in metrics.items()}
                for task, metrics in compare_ability(*ability).items()
            }
            atomic_write_text(folder / "ability.json", json.dumps(changes, indent=2) + "\n")
            show(ability_table(*ability))
            scores += HarnessScore.of(ability[0], "before") if len(results) == 1 else []
            scores += HarnessScore.of(ability[1], result.method, "before")
    if len(results) > 1:
        show(comparison_table(results))
    run = {
        "protocol": kind, "model": model, "requests": ", ".join(map(str, requests)), "untouched": untouched,
        "batches": batches, "shares": shares, "methods": ", ".join(method), "settings": ", ".join(settings or []),
        "statistics": statistics, "seed": seed, "max_new_tokens": max_new_tokens, "chat_template": chat_template,
        "dtype": dtype,
    }  # fmt: skip
    said = {name: value for name, value in run.items() if value not in (None, "", False)}
    page = write_protocol_page(
        output / "report.html", results, asked={**said, **versions()}, harness=scores, forgetting=forgetting
    )
    typer.echo(f"written to {output}; to read: {page}")


def _plan(
    kind: Kind, files: Sequence[Sequence[EditRequest]], batches: int | None, untouched: Sequence[Probe]
) -> UpdatePlan:
    from corsa_plugins.bench.protocols import cross_set_injection, sequential_batches, single_update, temporal_stream

    if (batches is not None) != (kind is Kind.BATCHES):
        raise SettingError("--batches goes with the protocol batches, which needs it")
    if kind is Kind.INJECTION:
        if len(files) != 2:
            raise SettingError(f"injection takes two files of requests, one for each update; {len(files)} given")
        return cross_set_injection(files[0], files[1], untouched=untouched)
    if kind is Kind.STREAM:
        return temporal_stream(files, untouched=untouched)
    if len(files) != 1:
        raise SettingError(f"{kind} takes one file of requests; {len(files)} given")
    if batches is not None:
        return sequential_batches(files[0], batches, untouched=untouched)
    return single_update(files[0], untouched=untouched)


def _shares(given: str, plan: UpdatePlan) -> list[float]:
    from corsa_plugins.bench.protocols.shares import with_share

    try:
        shares = [float(part) for part in given.split(",")]
    except ValueError:
        raise SettingError(f"--shares {given}: give numbers over 0, at most 1, with commas between them") from None
    for share in shares:
        with_share(plan, share)
    return shares


def _methods(
    names: Sequence[str], settings: Sequence[str], statistics: Path | None, forgetting_rate: float | None
) -> dict[str, Any]:
    """The methods by name, each with the options that are for it."""
    from corsa_plugins.alphaedit import KeyStatistics
    from corsa_plugins.bench.protocols import make_method

    if len(set(names)) != len(names):
        raise SettingError(f"--method {', '.join(names)}: name each method once")
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for given in settings:
        name, equals, value = given.partition("=")
        if not equals or name not in options:
            raise SettingError(f"--settings {given}: write METHOD=FILE.yaml, METHOD being one of {', '.join(names)}")
        options[name]["settings"] = value
    if forgetting_rate is not None:
        if "f-learning" not in options:
            raise SettingError("--forgetting-rate is for f-learning, which is not among the methods")
        options["f-learning"]["forgetting_rate"] = forgetting_rate
    editors = [name for name in names if name.startswith("alphaedit")]
    for name in editors:
        if statistics is None:
            raise SettingError(f"{name} needs --statistics: a folder written by corsa stats")
        if "settings" not in options[name]:
            raise SettingError(f"{name} needs --settings {name}=PRESET, or a YAML file, with the layers to edit")
    known = KeyStatistics.load(statistics) if editors and statistics else None
    for name in editors:
        options[name]["statistics"] = known
    methods = {}
    for name in names:
        try:
            methods[name] = make_method(name, **options[name])
        except SettingError as error:
            given = f"--settings {name}={options[name]['settings']}: " if "settings" in options[name] else ""
            raise SettingError(f"{given}{error}") from None
    return methods
