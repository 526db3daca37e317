"""``corsa evaluate``: what a model answers to edit requests, and what else an edit did to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError, require

if TYPE_CHECKING:
    from corsa_plugins.bench.ability import Ability, Harness
    from corsa_plugins.bench.evaluation import Evaluation
    from corsa_plugins.data.requests import EditRequest, Probe

__all__ = ["evaluate"]

HARNESS = "harness.json"


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
        str | None,
        typer.Option(
            help="What to compare with: a model, or a folder of saved results.  "
            "[default with --edited, or with --adapter and --harness: --model]"
        ),
    ] = None,
    later: Annotated[
        bool,
        typer.Option("--later", help="The baseline is these edits right after their update: report forgetting."),
    ] = False,
    harness: Annotated[
        str | None, typer.Option(help="General ability too: tasks of lm-evaluation-harness, such as mmlu,hellaswag.")
    ] = None,
    harness_limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each task.")] = None,
    harness_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
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

    --harness runs lm-evaluation-harness on the model and, where there is a baseline, on that too, and gives the
    differences with their standard errors. A folder as --baseline must have been measured with the same tasks.

    An interrupted evaluation with --output goes on where it was when the same command is given again.

    \b
    EXAMPLES
      corsa evaluate --model M --requests facts.jsonl
      corsa evaluate --model M --adapter runs/facts --baseline M \\
          --requests facts.jsonl --untouched others.jsonl --output results
      corsa evaluate --model M --adapter runs/later --requests facts.jsonl --baseline results --later
      corsa evaluate --model M --edited runs/edited --requests facts.jsonl --output results
      corsa evaluate --model M --edited runs/edited --requests facts.jsonl --harness mmlu,hellaswag --output results

    \b
    FILES
      DIR/report.html      tables, and every request with its answers: one file, to open in a browser, offline
      DIR/records.jsonl    one line per request: prompts, outputs as they came, verdicts, log-probabilities
      DIR/untouched.jsonl  the same for untouched facts
      DIR/summary.json     the means with their intervals and definitions; general ability
      DIR/harness.json     with --harness: scores of each task as soon as it is done
      DIR/baseline/        the same files for --baseline, when that is a model
      DIR/unfinished.jsonl what is answered so far, while it runs

    \b
    EXIT CODES
      0 done; 2 wrong usage or an unusable file, model or adapter; 130 interrupted
    """
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.alphaedit.edited import load_edited
    from corsa_plugins.bench.ability import Harness, ability_table
    from corsa_plugins.bench.evaluation import change_table, load_evaluation, summary_table
    from corsa_plugins.bench.evaluation.moments import ReportError, check_asked
    from corsa_plugins.bench.evaluation.tables import SUMMARY
    from corsa_plugins.data.reading import read_probes, read_requests
    from corsa_plugins.model.loading import load_model

    if quiet:
        disable_progress_bar()
    # Files first: a typo in one should not cost the loading of a model.
    if requests is None and untouched is None and harness is None:
        raise SettingError("nothing to evaluate: give --requests, --untouched, or both; or --harness")
    if edited and adapter:
        raise SettingError("--edited and --adapter: give one; an adapter of an edited model goes with --model EDITED")
    if harness is None and (harness_limit is not None or harness_path is not None):
        raise SettingError("--harness-limit and --harness-path need --harness: name the tasks")
    if edited and not baseline:
        baseline = model
    if later and not baseline:
        raise SettingError("--later needs --baseline: the results from right after the update")
    if adapter and harness and not baseline:
        baseline = model
    asked = read_requests(requests) if requests else []
    facts = read_probes(untouched) if untouched else []
    if output and output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder for the results")
    results = Path(baseline).expanduser() if baseline else None
    saved = load_evaluation(results) if results and (results / SUMMARY).exists() else None
    if saved and results and output and output.resolve() == results.resolve():
        raise SettingError(f"--output {output} holds the baseline, which would be lost: name another folder")
    own = label or _name(adapter or edited or model)
    other = saved.label if saved else _name(baseline) if baseline else ""
    if other == own and baseline and not saved and not label:  # such as world/model and edited/model
        own, other = _name(adapter or edited or model, of_parent=True), _name(baseline, of_parent=True)
    other = f"{other} (baseline)" if other == own else other
    if saved and saved.settings:
        max_new_tokens = max_new_tokens or saved.settings.get("max_new_tokens")
        fluency_tokens = fluency_tokens or saved.settings.get("fluency_tokens")
    answering = {
        "max_new_tokens": max_new_tokens,
        "chat_template": chat_template,
        "fluency_tokens": fluency_tokens,
    }
    if saved and (asked or facts):
        try:
            check_asked(saved, asked, facts, answering)
        except ReportError as error:
            raise ReportError(f"--baseline {baseline}: {error}") from None
    tasks = None
    if harness:
        require("lm_eval", "eval", what="--harness")
        tasks = Harness(
            harness,
            limit=harness_limit,
            batch_size=batch_size,
            chat_template=chat_template,
            include_path=harness_path,
            progress=not quiet,
        )
    ask = _Asker(asked, facts, {"batch_size": batch_size, "progress": not quiet, **answering}, tasks, output)
    before = ask.saved(replace(saved, label=other), str(baseline)) if saved else None
    if baseline and not before and not (adapter and baseline == model):
        # One model at a time is in memory.
        before = ask(*load_model(baseline, device=device, dtype=dtype), other, baseline=True)
    if edited:
        loaded, tokenizer = load_edited(model, edited, device=device, dtype=dtype)
    else:
        loaded, tokenizer = load_model(model, adapter, device=device, dtype=dtype)
    if baseline and not before:
        with loaded.disable_adapter():
            before = ask(loaded, tokenizer, other, baseline=True)
    after = ask(loaded, tokenizer, own)
    title = f"{len(asked)} requests, {len(facts)} untouched facts" if asked or facts else "general ability"
    if output:
        options = {
            "model": model, "adapter": adapter, "edited": edited, "requests": requests, "untouched": untouched,
            "baseline": baseline, "later": later, "harness": harness, "harness_limit": harness_limit,
            "harness_path": harness_path, "batch_size": batch_size, "device": device, "dtype": dtype,
        }  # fmt: skip
        given = {name: str(value) for name, value in options.items() if value not in (None, False)}
        ask.save(before, after, keep_before=saved is None, later=later, title=title, given=given)
    if asked or facts:
        heading = f"{title}: means with 95 % intervals"
        first, second = before.evaluation if before else None, after.evaluation
        show(change_table(first, second, heading, later=later) if first else summary_table([second], title=heading))
    if after.ability is not None:
        labels = (before.evaluation.label if before else "", after.evaluation.label)
        show(ability_table(before.ability if before else None, after.ability, labels))
    if output:
        typer.echo(f"written to {output}")


def _name(given: str, of_parent: bool = False) -> str:
    """What a model or an adapter is called; that of ``.`` is the folder's. With its parent's: ``world/model``."""
    path = Path(given).expanduser()
    path = path.resolve() if path.name in ("", "..") else path
    return "/".join(part for part in (path.parent.name if of_parent else "", path.name) if part)


@dataclass(frozen=True)
class _Measured:
    """One model: its answers, and its scores where the harness was asked for."""

    evaluation: Evaluation
    ability: Ability | None


@dataclass(frozen=True)
class _Asker:
    """Asks a model all that is to be asked, and writes what came of it."""

    requests: list[EditRequest]
    facts: list[Probe]
    settings: dict[str, Any]
    harness: Harness | None
    output: Path | None

    def __call__(self, model: Any, tokenizer: Any, label: str, *, baseline: bool = False) -> _Measured:
        from corsa_plugins.bench.evaluation import Evaluation
        from corsa_plugins.bench.evaluation import evaluate as run

        folder = self._folder(baseline)
        found = Evaluation(label, ())
        if self.requests or self.facts:
            unfinished = folder / "unfinished.jsonl" if folder else None
            found = run(
                model,
                tokenizer,
                self.requests,
                untouched=self.facts,
                label=label,
                checkpoint=unfinished,
                **self.settings,
            )
        if self.harness is None:
            return _Measured(found, None)
        if folder is None:
            return _Measured(found, self.harness.ask(model, tokenizer))
        return _Measured(found, self.harness.ask_once(model, tokenizer, folder / HARNESS))

    def saved(self, evaluation: Evaluation, folder: str) -> _Measured:
        """A baseline from a folder of results."""
        from corsa_plugins.bench.ability import HarnessFileError, plain_ability
        from corsa_plugins.bench.evaluation.tables import SUMMARY

        if not self.requests and not self.facts:
            evaluation = replace(evaluation, records=(), untouched=(), settings=None)
        if self.harness is None:
            return _Measured(evaluation, None)
        try:
            scores = self.harness.read(Path(folder).expanduser() / HARNESS)
            summary = json.loads((Path(folder).expanduser() / SUMMARY).read_text(encoding="utf-8"))
            told = summary.get("general_ability", {}).get("scores", {})
            if told != {**told, **plain_ability(scores)}:
                # Another model may have been evaluated into the folder since.
                raise HarnessFileError(f"the scores in {HARNESS} are not those in {SUMMARY}")
            return _Measured(evaluation, scores)
        except HarnessFileError as error:
            raise HarnessFileError(
                f"--baseline {folder}: {error}. Measure it with the same --harness options into that folder, give the "
                "model itself as --baseline, or leave --harness out"
            ) from error

    def save(
        self,
        before: _Measured | None,
        after: _Measured,
        *,
        keep_before: bool,
        later: bool,
        title: str,
        given: dict[str, str],
    ) -> None:
        from corsa_plugins.bench.evaluation import save_evaluation
        from corsa_plugins.report.page import versions, write_report
        from corsa_plugins.report.sources import harness_scores

        assert self.output is not None
        if before and keep_before:
            save_evaluation(before.evaluation, self.output / "baseline", further=self._further(None, before))
        first = before.evaluation if before else None
        further = self._further(before, after)
        save_evaluation(after.evaluation, self.output, baseline=first, later=later, further=further)
        measured = [one for one in (before, after) if one]
        harness = harness_scores(further["general_ability"], after.evaluation.label) if further else None
        write_report(
            self.output / "report.html",
            [one.evaluation for one in measured] if self.requests or self.facts else [],
            title=f"{after.evaluation.label}: {title}",
            asked={"command": "corsa evaluate", **given, **(after.evaluation.settings or {}), **versions()},
            harness=harness,
            later=later,
        )
        for baseline in (False, True):
            folder = self._folder(baseline)
            assert folder is not None
            (folder / "unfinished.jsonl").unlink(missing_ok=True)

    def _folder(self, baseline: bool) -> Path | None:
        return self.output / "baseline" if self.output and baseline else self.output

    def _further(self, before: _Measured | None, after: _Measured) -> dict[str, Any]:
        """What the summary says of general ability."""
        from corsa_plugins.bench.ability import ability_summary

        if self.harness is None or after.ability is None:
            return {}
        found: dict[str, Any] = {"settings": self.harness.settings}
        if before and before.ability is not None:
            found |= ability_summary(after.ability, before.ability, before.evaluation.label)
        else:
            found |= ability_summary(after.ability)
        return {"general_ability": found}
