"""``corsa protocol``: methods through several updates, measured right after each and after all."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.methods import list_methods, make_methods
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import check_results, load, place
from corsa_plugins.cli.wild import Judging, check_wild, make_wild
from corsa_plugins.errors import SettingError, require

__all__ = ["Kind", "protocol"]


class Kind(StrEnum):
    """The protocols by name."""

    SINGLE = "single"
    INJECTION = "injection"
    STREAM = "stream"
    BATCHES = "batches"
    WILD = "wild"


def protocol(
    kind: Annotated[Kind, typer.Argument(help="Which updates follow each other; see below.")],
    model: options.Model,
    requests: options.RequestsFiles,
    method: Annotated[list[str], options.method_option("  May be repeated.")],
    output: options.Output,
    untouched: options.OptionalUntouched = None,
    batches: Annotated[
        int | None, typer.Option(min=1, help="For batches, and for wild: how many to split the requests into.")
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(help="Shares of the later updates' requests, such as 0.25,0.5,1: what does each forget?"),
    ] = None,
    alone: Annotated[
        int | None,
        typer.Option(min=0, help="For wild: so many requests are also edited alone, on fresh models.  [default: 5]"),
    ] = None,
    survive: Annotated[
        str | None,
        typer.Option(help="For wild: what the edited model goes through, of training,int8,int4,merge; see below."),
    ] = None,
    survive_text: Annotated[
        Path | None, typer.Option(help="For --survive training: text that no edit is about, as for corsa stats.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="For wild: a command that judges answers; see below.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="For wild: a model that judges answers.")] = None,
    judge_labels: Annotated[
        Path | None, typer.Option(help="For wild: answers labelled by hand, to measure the judge by; JSON Lines.")
    ] = None,
    statistics: options.OptionalStatistics = None,
    settings: options.SettingsOfMethods = None,
    option: options.OwnOptions = None,
    forgetting_rate: Annotated[
        float | None, typer.Option(help="As --option f-learning.forgetting_rate=, its lambda.  [default: 0.3]")
    ] = None,
    harness: options.Harness = None,
    harness_limit: options.HarnessLimit = None,
    harness_path: options.HarnessPath = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    max_new_tokens: options.MaxNewTokens = None,
    chat_template: options.ChatTemplate = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    listing: Annotated[bool, options.list_option(list_methods)] = False,
) -> None:
    """Take methods through several updates, and see what each learns, keeps and forgets.

    \b
    PROTOCOLS
      single     one update with all requests
      injection  two files: update with the first, then the second; both are asked at every moment
      stream     rounds in time: a file each, in their order, as corsa convert writes them from a history of facts
      batches    one file in --batches parts, one after the other
      wild       one update, or --batches, or a file each; asked before and after all in free answers of up to
                 --max-new-tokens tokens (64), as the model ends them: as it is, reworded, behind an instruction, after
                 an unrelated conversation, yes or no, true or false, negated, reversed, two hops away

    What is measured right after an update and what is measured after all of them are never mixed. The model is not
    changed. A stopped run goes on where it was when the same command is given again.

    With --shares the first update is followed by a part of each later one, besides the whole plan, and what is lost of
    the first one and of the untouched facts is measured by share. With --chat-template, prompts are asked and trained
    through the chat template; a method whose settings say otherwise is trained as they say. --settings is here
    METHOD=FILE.yaml or METHOD=PRESET, and may be repeated.

    --survive asks the same of the edited model after 50 steps of further training (a LoRA adapter, merged), with its
    weights rounded to 8 or 4 bits in groups of 128, and half-way back to its base. A judge's command reads
    {"prompt", "right", "output"}, a line each, and writes yes or no for each; labels have a "label" too, true or false.

    \b
    EXAMPLES
      corsa protocol --list
      corsa protocol injection --model M -r counterfact.jsonl -r mquake.jsonl --method corsa --method f-learning -o runs
      corsa protocol stream --model M -r 2019.jsonl -r 2020.jsonl --method lora-sft --method corsa \\
          --shares 0.25,0.5,0.75,1 -o runs
      corsa protocol batches --batches 10 --model M -r facts.jsonl --method alphaedit+ --statistics stats \\
          --settings alphaedit+=llama3-8b --harness mmlu -o runs
      corsa protocol wild --model M -r facts.jsonl --method lora-sft --method alphaedit+ --statistics stats \\
          --chat-template --survive training,int8,int4,merge --survive-text news.txt -o runs

    \b
    FILES
      OUTPUT/report.html                all methods: tables, training, conflicts, every prompt with every answer
      OUTPUT/METHOD/summary.json        by update: efficacy, generality, retention, forgetting, activation, specificity
      OUTPUT/METHOD/ability.json        with --harness: every metric before, after, and the difference
      OUTPUT/METHOD/forgetting.json     with --shares: forgetting by share; the runs are in OUTPUT/METHOD/shares/
      OUTPUT/METHOD/wild.json           with wild: every measure, and the answers on which they part
      OUTPUT/METHOD/measures/           with wild: every free answer; OUTPUT/METHOD/alone/ has those of single edits
      OUTPUT/METHOD/drift.json          with --untouched: how far hidden states have moved, block by block
      OUTPUT/METHOD/evaluations/        every prompt and answer at every moment
      OUTPUT/METHOD/updates/            adapter, edit state or changed weights of each update

    \b
    EXIT CODES
      0 done; 2 wrong usage or unusable files; 130 interrupted
    """
    from corsa_plugins.bench.ability import Harness, ability_table
    from corsa_plugins.bench.protocols import comparison_table, make_plan, parse_shares, run_methods
    from corsa_plugins.bench.protocols.plan import method_folder
    from corsa_plugins.bench.wild.table import wild_table
    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.report.page import versions
    from corsa_plugins.report.protocol_page import write_runs_page

    # Everything that a typing error can spoil comes before the model is loaded.
    check_results(output, "corsa protocol")
    if (kind is Kind.BATCHES and batches is None) or (batches is not None and kind not in (Kind.BATCHES, Kind.WILD)):
        raise SettingError("--batches goes with the protocols batches, which needs it, and wild")
    of_wild = {
        "alone": alone, "survive": survive, "survive-text": survive_text, "judge": judge, "judge-model": judge_model,
        "judge-labels": judge_labels,
    }  # fmt: skip
    check_wild(kind is Kind.WILD, of_wild)
    facts = read_probes(untouched) if untouched else []
    plan = make_plan(kind.value, [read_requests(path) for path in requests], batches=batches, untouched=facts)
    own = [*(option or []), *([] if forgetting_rate is None else [f"f-learning.forgetting_rate={forgetting_rate}"])]
    methods = make_methods(method, settings or [], own, statistics)
    parts = parse_shares(shares, plan) if shares else []
    asking: dict[str, Any] = {"batch_size": batch_size, "chat_template": chat_template, "progress": not quiet}
    if harness:
        require("lm_eval", "eval", what="--harness")
    tasks = Harness(harness, limit=harness_limit, include_path=harness_path, **asking) if harness else None
    where = place(device, device_map, max_memory)
    judging = Judging.of(of_wild, where, dtype, quiet)
    loaded, tokenizer = load(model, where, dtype, quiet)
    asking |= {"seed": seed}
    wild = None
    if kind is Kind.WILD:
        wild = make_wild(loaded, tokenizer, of_wild, seed=seed, max_new_tokens=max_new_tokens)
    else:
        asking |= {"max_new_tokens": max_new_tokens}
    runs = []
    for run in run_methods(methods, plan, loaded, tokenizer, output, shares=parts, harness=tasks, wild=wild, **asking):
        if judging and run.wild:
            run = replace(run, wild=judging.on(run.wild, output / method_folder(run.name)))
        runs.append(run)
        show(run.result.table())
        if run.ability:
            show(ability_table(*run.ability))
    if len(runs) > 1:
        show(comparison_table([run.result for run in runs]))
    if wild:
        show(wild_table([run.wild.figures() for run in runs if run.wild]))
    if judging:
        judging.said()
    said = {
        "protocol": kind, "model": model, "requests": ", ".join(map(str, requests)), "untouched": untouched,
        "batches": batches, "shares": shares, "methods": ", ".join(method), "settings": ", ".join(settings or []),
        **{name.replace("-", " "): value for name, value in of_wild.items()},
        "options": ", ".join(own), "statistics": statistics, "seed": seed, "max_new_tokens": max_new_tokens,
        "chat_template": chat_template, "dtype": dtype,
    }  # fmt: skip
    page = write_runs_page(output / "report.html", runs, asked={k: v for k, v in said.items() if v} | versions())
    typer.echo(f"written to {output}; to read: {page}")
