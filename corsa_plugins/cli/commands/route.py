"""``corsa route``: a question, sent to the adapter that knows."""

from __future__ import annotations

from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import load, place
from corsa_plugins.errors import SettingError, require

__all__ = ["route"]


def route(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="What to ask; one or more.")],
    model: options.Model,
    adapter: options.Adapters,
    requests: options.OptionalRequestsFiles = None,
    router: options.Router = options.RouterKind.LABEL,
    describe: options.Describe = None,
    descriptions: options.Descriptions = None,
    calibrate: options.Calibrate = False,
    layer: options.Layer = None,
    max_new_tokens: options.MaxNewTokens = 32,
    batch_size: options.BatchSize = 64,
    chat_template: options.ChatTemplate = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Ask several adapters: each question goes to the one that the router chooses.

    --adapter is given once for each part, and so is --requests, in the same order; by default the requests of an
    adapter are requests.jsonl in its folder. With descriptions given they are not needed, but for the router `nearest`.

    \b
    ROUTERS
      label, question, nearest: those of corsa evaluate-adapters, which measures how well they choose

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

    from corsa_plugins.bench.routing.adapters import adapter_names, load_adapters, read_adapter_requests
    from corsa_plugins.bench.routing.choice import RouterChoice
    from corsa_plugins.bench.routing.several import ask_adapters

    if not all(question.strip() for question in questions):
        raise SettingError("a question is blank: ask something")
    names = adapter_names(adapter)
    needed = descriptions is None or router is options.RouterKind.NEAREST
    parts = read_adapter_requests(adapter, requests) if needed else []
    choice = RouterChoice(router, describe, descriptions, calibrate, layer, chat_template)
    texts = choice.given(names)
    require("peft", "trl", what="several adapters")
    loaded, tokenizer = load(model, place(device, device_map, max_memory), dtype, quiet)
    together, inside = load_adapters(loaded, adapter)
    texts = texts or choice.describe_parts(together, tokenizer, dict(zip(names, parts, strict=True)))
    chooser = choice.router(together, tokenizer, parts, list(texts.values()), batch_size=batch_size)
    answers = ask_adapters(
        together,
        tokenizer,
        inside,
        chooser,
        questions,
        max_new_tokens=max_new_tokens or 32,
        batch_size=batch_size,
        chat_template=chat_template,
    )
    table = Table("question", "adapter", "answer")
    for answer in answers:
        table.add_row(Text(answer.question), Text(names[answer.chosen]), Text(answer.text))
    show(table)
