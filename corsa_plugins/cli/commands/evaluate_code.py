"""``corsa evaluate-code``: updates of code, measured by running what a model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import harmless, show
from corsa_plugins.cli.values import check_folder, parse_guarantees, parse_numbers, place
from corsa_plugins.errors import SettingError

__all__ = ["evaluate_code"]


def evaluate_code(
    model: options.OptionalModel = None,
    adapter: options.Adapter = None,
    edited: options.Edited = None,
    problems: Annotated[
        Path | None, typer.Option("--problems", help="Problems that need an update: of corsa convert --to-problems.")
    ] = None,
    humaneval: Annotated[
        Path | None, typer.Option("--humaneval", help="Unrelated problems, JSON Lines of HumanEval's format.")
    ] = None,
    prepend: Annotated[
        bool, typer.Option("--prepend", help="Tell the update in front of each problem: the baseline of no training.")
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Run the problems' own solutions, and ask no model.")
    ] = False,
    trained: Annotated[
        bool, typer.Option("--trained", help="Also ask problems that were trained on; they are told apart.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--first", min=1, help="Ask so many of each file at most.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers to each problem.")] = 5,
    ks: Annotated[
        str, typer.Option("--pass-at", help="The k of pass@k, such as 1,5.  [default: 1, and all samples]")
    ] = "",
    temperature: Annotated[float, typer.Option("--temperature", help="Of the sampling.")] = 0.8,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from the likeliest tokens of this probability.")
    ] = 0.7,
    seconds: Annotated[float, typer.Option("--seconds", help="Time of each program.")] = 15.0,
    memory: Annotated[float, typer.Option("--memory", help="Memory of each of its processes, in GiB.")] = 4.0,
    jobs: Annotated[int, typer.Option("--at-once", min=1, help="How many programs run at once.")] = 2,
    unenforced: Annotated[
        str, typer.Option("--unenforced", help="Promises of the sandbox to do without, such as network,files.")
    ] = "",
    output: options.OptionalOutput = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    max_new_tokens: options.MaxNewTokens = None,
    chat_template: options.ChatTemplate = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Measure updates of code by running what a model writes (CoRSA paper, 5.3; CodeUpdateArena).

    UPass is pass@k on problems that need an update: an answer passes where all tests pass with the update in place,
    and not without it. SPass is pass@k on unrelated problems. Both are the unbiased estimate from --samples answers.

    What a model writes runs in a sandbox: no network, no files but its own, no environment, limits on time, memory,
    processes and files. Each of these promises is tried on this machine first, and the command refuses where one is
    not kept, unless --unenforced names it.

    \b
    EXAMPLES
      corsa convert --format codeupdatearena arena-ungrouped.jsonl updates.jsonl --to-problems problems.jsonl
      corsa evaluate-code --problems problems.jsonl --humaneval HumanEval.jsonl --reference
      corsa train --config examples/corsa_code.yaml
      corsa evaluate-code --model M --adapter runs/code --chat-template \\
          --problems problems.jsonl --humaneval HumanEval.jsonl -o results/corsa
      corsa evaluate-code --model M --prepend --chat-template --problems problems.jsonl -o results/prepend

    \b
    FILES
      OUTPUT/answers.jsonl  one line per problem: every answer as it was written, and what came of it
      OUTPUT/code.json      UPass and SPass with intervals, and how many answers came to what

    \b
    EXIT CODES
      0 done; 2 wrong usage, an unusable file, model or machine; 130 interrupted (the same command goes on)
    """
    from corsa_plugins.bench.code import Sampling, check_references, humaneval_task, measure_code, update_task
    from corsa_plugins.bench.measure.subject import Subject
    from corsa_plugins.data.code_problems import read_humaneval, read_problems
    from corsa_plugins.sandbox import Limits, check_sandbox

    check_folder(output)
    if not reference and (model is None or output is None):
        raise SettingError("give --model and --output, or --reference to run the problems' own solutions")
    at = [int(k) for k in parse_numbers(ks, "--pass-at")] if ks else sorted({1, 1 if reference else samples})
    if max(at) > (1 if reference else samples) or min(at) < 1:
        raise SettingError(f"--pass-at is {ks}: no k may be more than the samples ({1 if reference else samples})")
    sampling = Sampling(
        samples, temperature, top_p, max_new_tokens or Sampling.max_new_tokens, seed, chat_template, batch_size
    )
    updates = [each for each in read_problems(problems) if trained or not each.trained] if problems else []
    others = read_humaneval(humaneval) if humaneval else []
    if problems and not updates:
        raise SettingError(f"{problems}: every problem was trained on; --trained asks them")
    tasks = [update_task(each, prepend=prepend) for each in updates[:limit]]
    tasks += [humaneval_task(each, instruct=chat_template) for each in others[:limit]]
    without = parse_guarantees(unenforced)
    sandbox = check_sandbox(Limits(seconds=seconds, memory=int(memory * 2**30)), without=without)
    if reference:
        result = check_references(tasks, sandbox, jobs=jobs, progress=not quiet)
        for each in result.problems:
            if not each.verdicts[0].passed:
                typer.echo(harmless(f"{each.task_id}: {each.verdicts[0].what}: {each.verdicts[0].why}"))
    else:
        assert model is not None
        assert output is not None
        subject = Subject(model, adapter, edited)
        label = f"{subject.labels()[0]}{', update told' if prepend else ''}"
        loaded, tokenizer = subject.load(place(device, device_map, max_memory), dtype)
        result = measure_code(
            loaded, tokenizer, tasks, sampling, sandbox, label=label, folder=output, jobs=jobs, progress=not quiet,
        )  # fmt: skip
    show(result.table(at))
    if output:
        given = {"model": model, "adapter": adapter, "edited": edited, "problems": problems, "humaneval": humaneval}
        result.save(output, at, {name: str(value) for name, value in given.items() if value is not None})
        typer.echo(f"written to {output}")
