"""``corsa evaluate-adapters``: several adapters, each of a part of the facts, measured as one model."""

from __future__ import annotations

from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import harmless, show
from corsa_plugins.cli.values import check_results, load, place
from corsa_plugins.errors import SettingError, require

__all__ = ["evaluate_adapters"]


def evaluate_adapters(
    model: options.Model,
    adapter: options.Adapters,
    requests: options.OptionalRequestsFiles = None,
    single: Annotated[
        str | None, typer.Option(help="One adapter trained on all the requests, to compare with: the upper bound.")
    ] = None,
    router: options.Router = options.RouterKind.LABEL,
    describe: options.Describe = None,
    descriptions: options.Descriptions = None,
    describe_only: Annotated[
        bool, typer.Option("--describe-only", help="Write descriptions.json, to be looked at, and stop.")
    ] = False,
    calibrate: options.Calibrate = False,
    layer: options.Layer = None,
    output: options.OptionalOutput = None,
    batch_size: options.BatchSize = 64,
    max_new_tokens: options.MaxNewTokens = None,
    chat_template: options.ChatTemplate = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Measure several adapters, each of a part of the facts, as one model.

    The base model is shown a description of every part and the question, and its choice decides which adapter answers:
    every prompt of the requests, of a probe too, is routed by itself. Measured are routing accuracy, and what the
    requests are answered with the routed and with the true choice; with --single also which share of what is lost to
    one adapter for all is lost by routing (CoRSA paper, B.2).

    --adapter is given once for each part, and so is --requests, in the same order; by default the requests of an
    adapter are requests.jsonl in its folder, as corsa train writes it.

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
    from corsa_plugins.bench.routing.adapters import adapter_names, load_adapters, read_adapter_requests
    from corsa_plugins.bench.routing.choice import RouterChoice
    from corsa_plugins.bench.routing.descriptions import DESCRIPTIONS, write_descriptions
    from corsa_plugins.bench.routing.several import AdapterPart, measure_adapters
    from corsa_plugins.report.adapters_page import UNFINISHED, save_adapters

    check_results(output, "corsa evaluate-adapters")
    if describe_only and (output is None or router is options.RouterKind.NEAREST):
        raise SettingError("--describe-only needs --output, and a router that reads descriptions")
    names, parts = adapter_names(adapter), read_adapter_requests(adapter, requests)
    earlier = output / DESCRIPTIONS if output and router is not options.RouterKind.NEAREST else None
    if earlier and earlier.is_file() and not descriptions and not describe:
        typer.echo(f"using the descriptions of {earlier}; with --describe they are made again")
        descriptions = earlier
    choice = RouterChoice(router, describe, descriptions, calibrate, layer, chat_template)
    texts = choice.given(names)
    require("peft", "trl", what="several adapters")
    loaded, tokenizer = load(model, place(device, device_map, max_memory), dtype, quiet)
    together, inside = load_adapters(loaded, [*adapter, *([single] if single else [])])
    texts = texts or choice.describe_parts(together, tokenizer, dict(zip(names, parts, strict=True)))
    for name, text in texts.items():
        typer.echo(harmless(f"{name}: {text}"))
    if texts and output:
        write_descriptions(texts, output / DESCRIPTIONS)
    if describe_only:
        typer.echo(f"written to {output}: edit {DESCRIPTIONS} if need be, and call again without --describe-only")
        return
    chooser = choice.router(together, tokenizer, parts, list(texts.values()), batch_size=batch_size)
    report = measure_adapters(
        together,
        tokenizer,
        [AdapterPart(*part) for part in zip(names, inside, parts, strict=False)],
        chooser,
        single=inside[-1] if single else None,
        checkpoint=output / UNFINISHED if output else None,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        chat_template=chat_template,
        progress=not quiet,
    )
    if output:
        asked = {
            "command": "corsa evaluate-adapters", "model": model, "adapters": ", ".join(adapter), "single": single,
            "router": router.value, "layer": getattr(chooser, "layer", None), "calibrate": calibrate or None,
            "chat_template": chat_template or None, "max_new_tokens": report.settings["max_new_tokens"], "dtype": dtype,
        }  # fmt: skip
        save_adapters(report, output, asked=asked, descriptions=texts)
    show(report.table())
    show(report.parts_table())
    if output:
        typer.echo(f"written to {output}")
