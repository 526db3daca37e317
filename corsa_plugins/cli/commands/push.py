"""``corsa push``: adapters, edit states, edited models and edit requests to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options

__all__ = ["push"]


def push(
    path: Annotated[Path, typer.Argument(help="A folder that a command wrote, or a file of edit requests.")],
    name: Annotated[str, typer.Argument(help="The repository: OWNER/NAME, or a name of your own.")],
    private: options.Private = False,
    results: Annotated[
        Path | None, typer.Option("--results", help="A folder of corsa evaluate, whose figures the card is to give.")
    ] = None,
) -> None:
    """Upload what was edited to the Hugging Face Hub, with a card that says what it is.

    A model, or else an adapter, comes to the root of the repository, where transformers and PEFT look for it; an edit
    state beside it under state/. Edit requests make a data set. The card says what was edited, of which model (and its
    fingerprint), by what method and settings, with which figures and versions, and lists the first facts: think of
    --private. All comes in one commit, or nothing; a folder is not changed.

    \b
    EXAMPLES
      corsa push edited me/capitals --results results
      corsa push adapter me/capitals-lora --private
      corsa push facts.jsonl me/capital-facts

    \b
    EXIT CODES
      0 done; 2 no token, no network, no right to write, or nothing to upload; 130 interrupted
    """
    from corsa_plugins.hub import Made, contents_of, open_repository

    contents = contents_of(path)
    made = Made(figures=_figures(results)) if results else None
    repository = open_repository(name, contents.kind, private=private)
    typer.echo(f"uploaded to {repository.upload(path, made)}")


def _figures(folder: Path) -> dict[str, str]:
    from corsa_plugins.bench.evaluation import METRICS, load_evaluation

    told = {}
    for name, interval in load_evaluation(folder).summary().items():
        metric = METRICS[name]
        scale = 100 if metric.percent else 1
        low, mean, high = (scale * value for value in (interval.low, interval.mean, interval.high))
        told[metric.title_with_unit] = f"{mean:.4g}  [{low:.4g}, {high:.4g}]"
    return told
