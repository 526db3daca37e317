"""Options that several commands have: each is declared here once, and means the same everywhere.

A command takes what it needs as the type of a parameter; the parameter's own default makes an option optional::

    def edit(model: options.Model, layers: options.Layers = None, quiet: options.Quiet = False) -> None: ...

What only one command has, it declares itself; ``tests/cli/test_options.py`` holds all of them to it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Adapter",
    "AdapterFolder",
    "Adapters",
    "BatchName",
    "BatchSize",
    "Calibrate",
    "ChatTemplate",
    "DeltaOnly",
    "Describe",
    "Description",
    "Descriptions",
    "Device",
    "DeviceMap",
    "Dtype",
    "Edited",
    "Harness",
    "HarnessLimit",
    "HarnessPath",
    "Keep",
    "Label",
    "Later",
    "Layer",
    "Layers",
    "MaxMemory",
    "MaxNewTokens",
    "Model",
    "OptionalModel",
    "OptionalOutput",
    "OptionalRequests",
    "OptionalRequestsFiles",
    "OptionalSplit",
    "OptionalStatistics",
    "OptionalUntouched",
    "OptionalWeights",
    "Output",
    "OwnOptions",
    "Private",
    "PushToHub",
    "Quiet",
    "Requests",
    "RequestsFiles",
    "Router",
    "RouterKind",
    "Seed",
    "Settings",
    "SettingsOfMethods",
    "Size",
    "Split",
    "State",
    "Statistics",
    "Untouched",
    "Weights",
    "list_option",
    "method_option",
]


class RouterKind(StrEnum):
    """How an adapter is chosen."""

    LABEL = "label"
    QUESTION = "question"
    NEAREST = "nearest"


class Description(StrEnum):
    """How a part is described to the router."""

    SUMMARY = "summary"
    PROMPTS = "prompts"
    SUBJECTS = "subjects"


# What is asked about, and of which model.
_MODEL = typer.Option("--model", "-m", help="The model: a folder, a GGUF file, or a name on the Hub.")
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
_ADAPTER = typer.Option(
    "--adapter", "-a", help="A PEFT adapter of the model: a folder; one that is read may be a name on the Hub."
)
Adapter = Annotated[str | None, _ADAPTER]
AdapterFolder = Annotated[str, _ADAPTER]
Adapters = Annotated[list[str], _ADAPTER]
Edited = Annotated[str | None, typer.Option("--edited", help="The edited model, or a folder written by corsa edit.")]
_REQUESTS = typer.Option("--requests", "-r", help="Edit requests, JSON Lines.")
Requests = Annotated[Path, _REQUESTS]
OptionalRequests = Annotated[Path | None, _REQUESTS]
RequestsFiles = Annotated[list[Path], _REQUESTS]
OptionalRequestsFiles = Annotated[list[Path] | None, _REQUESTS]
_UNTOUCHED = typer.Option(
    "--untouched", help='Facts that no edit is about, JSON Lines: {"prompt", "answer"}, or requests.'
)
Untouched = Annotated[Path, _UNTOUCHED]
OptionalUntouched = Annotated[Path | None, _UNTOUCHED]
Keep = Annotated[Path | None, typer.Option("--keep", help='Facts that should stay, JSON Lines: {"prompt", "answer"}.')]
_SPLIT = typer.Option("--split", help="The split of a data set.")
Split = Annotated[str, _SPLIT]
OptionalSplit = Annotated[str | None, _SPLIT]

# How to edit.
_STATISTICS = typer.Option("--statistics", "-s", help="Folder written by corsa stats.")
Statistics = Annotated[Path, _STATISTICS]
OptionalStatistics = Annotated[Path | None, _STATISTICS]
_SETTINGS = typer.Option("--settings", help="YAML file of settings, or a preset: testbed, gpt2-xl, llama3-8b, ...")
Settings = Annotated[str | None, _SETTINGS]
SettingsOfMethods = Annotated[list[str] | None, _SETTINGS]
OwnOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="Another option of the method: NAME=VALUE; corsa protocol --list names them."),
]
Layers = Annotated[
    str | None, typer.Option("--layers", help="Blocks to edit, from 0, such as 4,5,6 or 4-8; overrides --settings.")
]
State = Annotated[Path | None, typer.Option("--state", help="Earlier edits in force: a folder written by corsa edit.")]
_WEIGHTS = typer.Option("--weights", help="Weights of what is merged, such as '0.5 0.5'.")
Weights = Annotated[str, _WEIGHTS]
OptionalWeights = Annotated[str | None, _WEIGHTS]
Size = Annotated[int, typer.Option("--size", min=1, help="How many edit requests.")]

BatchName = Annotated[str | None, typer.Option("--name", help="What to call this batch.  [default: a number]")]
DeltaOnly = Annotated[
    bool, typer.Option("--delta-only", help="Write the edit state alone: what changed, not the whole model.")
]

# How adapters are chosen among.
Router = Annotated[RouterKind, typer.Option("--router", help="How an adapter is chosen; see ROUTERS below.")]
Describe = Annotated[
    Description | None,
    typer.Option("--describe", help="How parts are described.  [default: summary with --chat-template, else prompts]"),
]
Descriptions = Annotated[
    Path | None,
    typer.Option("--descriptions", help="Descriptions to use: a descriptions.json, as written or as you edited it."),
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="With label: take off what a label gets when nothing is asked.")
]
Layer = Annotated[
    int | None,
    typer.Option(
        "--layer", min=1, help="With nearest: compare behind this block, from 1.  [default: two thirds of the way]"
    ),
]

# How a model is run and asked.
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="In parts over several devices: auto, balanced, balanced_low_0, sequential, or JSON, or a file of it, by "
        "module, with GPUs by number, cpu and disk.",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory", help="How much of each device a made device map uses: 0=20GiB,cpu=60GiB; the rest is on disk."
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16, float16; or quantised while read: "
        "int8, int4 (torchao), nf4, llm-int8 (bitsandbytes).",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences per forward pass.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        min=1,
        help="Length of answers in tokens; where answers are expected, by default the longest of them, plus 16.",
    ),
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="Put prompts and answers through the chat template.")
]
Harness = Annotated[
    str | None,
    typer.Option(
        "--harness",
        help="General ability too: tasks of lm-evaluation-harness, such as mmlu,hellaswag, or those of a paper: "
        "alphaedit-paper, corsa-paper, merging-paper.",
    ),
]
HarnessLimit = Annotated[
    int | None, typer.Option("--harness-limit", min=1, help="Only so many questions of each task.")
]
HarnessPath = Annotated[Path | None, typer.Option("--harness-path", help="Folder with task files of your own.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]

# What is written, and shown.
_OUTPUT = typer.Option("--output", "--out", "-o", help="The file or folder to write; see FILES below.")
Output = Annotated[Path, _OUTPUT]
OptionalOutput = Annotated[Path | None, _OUTPUT]
PushToHub = Annotated[
    str | None,
    typer.Option("--push-to-hub", help="Upload it too, with a card: OWNER/NAME on the Hub, or a name of your own."),
]
Private = Annotated[bool, typer.Option("--private", help="The repository on the Hub is, or must be, private.")]
Label = Annotated[str | None, typer.Option("--label", help="What to call this model in tables and files.")]
Later = Annotated[
    bool,
    typer.Option("--later", help="What is compared with is from right after the update: report forgetting."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def method_option(more: str = "") -> Any:
    """``--method`` with the names of all methods, those of extensions as well, in its help.

    A function, as what is installed is asked when a command is made and not when this module is imported::

        def edit(method: Annotated[str, method_option()] = "alphaedit+") -> None: ...

    Args:
        more: What else to say of it.
    """
    from corsa_plugins.methods.registry import method_names

    return typer.Option("--method", help=f"{', '.join(method_names())}; corsa protocol --list tells more.{more}")


def list_option(callback: Callable[[bool], None] | None = None, more: str = "") -> Any:
    """``--list``, which a command understands without its other parameters.

    Args:
        callback: Shows what there is and raises :class:`typer.Exit`, before missing parameters are found missing.
        more: What else to say of it.
    """
    text = f"Show what there is to choose from, and exit.{more}"
    return typer.Option("--list", help=text, is_eager=callback is not None, callback=callback)
