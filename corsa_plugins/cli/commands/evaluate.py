"""``corsa evaluate``: what a model answers to edit requests, and what else an edit did to it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import check_results, place_one
from corsa_plugins.errors import SettingError, require

__all__ = ["evaluate"]


def evaluate(
    model: options.Model,
    requests: options.OptionalRequests = None,
    untouched: options.OptionalUntouched = None,
    adapter: options.Adapter = None,
    edited: options.Edited = None,
    baseline: Annotated[
        str | None, typer.Option(help="What to compare with: a model, or a folder of saved results.")
    ] = None,
    later: options.Later = False,
    harness: options.Harness = None,
    harness_limit: options.HarnessLimit = None,
    harness_path: options.HarnessPath = None,
    output: options.OptionalOutput = None,
    label: options.Label = None,
    batch_size: options.BatchSize = 64,
    max_new_tokens: options.MaxNewTokens = None,
    fluency_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Measure fluency on texts of this many tokens behind each edit prompt (slow)."),
    ] = None,
    chat_template: options.ChatTemplate = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Measure what a model answers to edit requests.

    Measured on every request: efficacy (the edit prompt), generality (paraphrases), how often the old answer still
    comes, specificity and portability (the request's probes), probabilities of the new and the old answer; and the
    share of untouched facts still answered right. With a baseline from before the edits also locality (answers that
    stayed as they were); with --later and a baseline from right after the update, forgetting and old-knowledge
    activation. Means come with 95 % bootstrap intervals over requests. Every verdict can be traced to a prompt and an
    output in records.jsonl, and read in report.html.

    --harness runs lm-evaluation-harness on the model and, where there is a baseline, on that too, and gives the
    differences with their standard errors. A folder as --baseline must have been measured with the same tasks.

    With --edited, or with --adapter and --harness, the baseline is --model where no other is given.
    An interrupted evaluation with --output goes on where it was when the same command is given again. Processes of
    torchrun or accelerate launch share the questions, with the results of one.

    \b
    EXAMPLES
      corsa evaluate --model M --requests facts.jsonl
      corsa evaluate --model M --adapter runs/facts --baseline M \\
          --requests facts.jsonl --untouched others.jsonl --output results
      torchrun --nproc-per-node 4 -m corsa_plugins.cli evaluate --model M --requests facts.jsonl
      corsa evaluate --model M --adapter runs/later --requests facts.jsonl --baseline results --later
      corsa evaluate --model M --edited runs/edited --requests facts.jsonl --output results
      corsa evaluate --model M --edited runs/edited --requests facts.jsonl --harness mmlu,hellaswag --output results

    \b
    FILES
      OUTPUT/report.html      tables, and every request with its answers: one file, to open in a browser, offline
      OUTPUT/records.jsonl    one line per request: prompts, outputs as they came, verdicts, log-probabilities
      OUTPUT/untouched.jsonl  the same for untouched facts
      OUTPUT/summary.json     the means with their intervals and definitions; general ability
      OUTPUT/harness.json     with --harness: scores of each task as soon as it is done
      OUTPUT/baseline/        the same files for --baseline, when that is a model
      OUTPUT/unfinished.jsonl what is answered so far, while it runs

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable file, model or adapter; 130 interrupted
    """
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.bench.ability import Harness, ability_table
    from corsa_plugins.bench.evaluation import change_table, summary_table
    from corsa_plugins.bench.measure import Questions, Subject, measure
    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.model.processes import started_together
    from corsa_plugins.report.evaluation_page import save_measurement

    if quiet:
        disable_progress_bar()
    if harness is None and (harness_limit is not None or harness_path is not None):
        raise SettingError("--harness-limit and --harness-path need --harness: name the tasks")
    if later and not baseline and not edited:
        raise SettingError("--later needs --baseline: the results from right after the update")
    against = baseline or (model if edited or (adapter and harness) else None)
    subject = Subject(model, adapter, edited, against, label)
    # Files first: a typo in one should not cost the loading of a model.
    check_results(output, "corsa evaluate")
    edits, facts = read_requests(requests) if requests else [], read_probes(untouched) if untouched else []
    asking: dict[str, Any] = {"chat_template": chat_template, "batch_size": batch_size, "progress": not quiet}
    tasks = None
    if harness:
        require("lm_eval", "eval", what="--harness")
        tasks = Harness(harness, limit=harness_limit, include_path=harness_path, **asking)
    with started_together() as processes:
        questions = Questions(edits, facts, tasks, max_new_tokens, fluency_tokens, **asking, processes=processes)
        where = place_one(processes, device, device_map, max_memory)
        measurement = measure(subject, questions, folder=output, device=where, dtype=dtype)
    if not processes.is_first:
        return
    if output:
        given = {
            "model": model, "adapter": adapter, "edited": edited, "requests": requests, "untouched": untouched,
            "baseline": against, "later": later, "harness": harness, "harness_limit": harness_limit,
            "harness_path": harness_path, "batch_size": batch_size, "device": device, "device_map": device_map,
            "max_memory": max_memory, "dtype": dtype,
        }  # fmt: skip
        told = {name: str(value) for name, value in given.items() if value not in (None, False)}
        save_measurement(measurement, output, asked={"command": "corsa evaluate", **told}, later=later)
    before, after = measurement.before, measurement.after
    if edits or facts:
        heading = f"{questions.title}: means with 95 % intervals"
        if before:
            show(change_table(before.evaluation, after.evaluation, heading, later=later))
        else:
            show(summary_table([after.evaluation], title=heading))
    if after.ability is not None:
        labels = (before.evaluation.label if before else "", after.evaluation.label)
        show(ability_table(before.ability if before else None, after.ability, labels))
    if output:
        typer.echo(f"written to {output}")
