"""Options that several commands have: each is declared here once, and means the same everywhere.

A command takes what it needs as the type of a parameter; the parameter's own default makes an option optional::

    def edit(model: Model, layers: Layers = None, device: Device = None, quiet: Quiet = False) -> None: ...
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from corsa_plugins.errors import SettingError

__all__ = [
    "BatchSize",
    "ChatTemplate",
    "Device",
    "Dtype",
    "Harness",
    "HarnessLimit",
    "HarnessPath",
    "Keep",
    "Layers",
    "MaxNewTokens",
    "Model",
    "OptionalModel",
    "OptionalRequests",
    "OptionalStatistics",
    "Quiet",
    "Requests",
    "Settings",
    "State",
    "Statistics",
    "Untouched",
    "load",
    "parse_layers",
]

_MODEL = typer.Option("--model", "-m", help="The model: a folder, or a name on the Hub.")
_REQUESTS = typer.Option("--requests", "-r", help="Edit requests, JSON Lines.")
_STATISTICS = typer.Option("--statistics", "-s", help="Folder written by corsa stats.")

Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Requests = Annotated[Path, _REQUESTS]
OptionalRequests = Annotated[Path | None, _REQUESTS]
Statistics = Annotated[Path, _STATISTICS]
OptionalStatistics = Annotated[Path | None, _STATISTICS]
Settings = Annotated[
    str | None, typer.Option("--settings", help="YAML file of settings, or a preset: testbed, gpt2-xl, llama3-8b, ...")
]
Layers = Annotated[
    str | None, typer.Option("--layers", help="Blocks to edit, from 0, such as 4,5,6 or 4-8; overrides --settings.")
]
State = Annotated[Path | None, typer.Option("--state", help="Earlier edits in force: a folder written by corsa edit.")]
Keep = Annotated[Path | None, typer.Option("--keep", help='Facts that should stay, JSON Lines: {"prompt", "answer"}.')]
Untouched = Annotated[
    Path | None,
    typer.Option("--untouched", help='Facts that no edit is about, JSON Lines: {"prompt", "answer"}, or requests.'),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16, float16.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences per forward pass when asking.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", min=1, help="Length of answers in tokens.  [default: the longest expected one, plus 16]"
    ),
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="Put prompts and answers through the chat template.")
]
Harness = Annotated[
    str | None,
    typer.Option("--harness", help="General ability too: tasks of lm-evaluation-harness, such as mmlu,hellaswag."),
]
HarnessLimit = Annotated[
    int | None, typer.Option("--harness-limit", min=1, help="Only so many questions of each task.")
]
HarnessPath = Annotated[Path | None, typer.Option("--harness-path", help="Folder with task files of your own.")]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Block numbers from ``"4,5,6"``, ``"4-8"`` or both, in ascending order; ``None`` of nothing.

    Raises:
        SettingError: It is neither.
    """
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise SettingError(f"layers is {text!r}: give numbers such as 4,5,6 or a range such as 4-8")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def load(model: str, device: str | None, dtype: str, quiet: bool) -> Any:
    """The model of ``--model``, ``--device`` and ``--dtype`` with its tokenizer; ``--quiet``: without bars."""
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.model.loading import load_model

    if quiet:
        disable_progress_bar()
    return load_model(model, device=device, dtype=dtype)
