"""The command ``corsa stats``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import load, parse_layers, parse_tokens, place_one
from corsa_plugins.errors import SettingError

__all__ = ["stats"]


def stats(
    directory: Annotated[
        Path | None, typer.Argument(help="A folder of statistics to show, with none of the options below.")
    ] = None,
    model: options.OptionalModel = None,
    text: Annotated[
        str | None,
        typer.Option(help="A text file (a document per line), JSON Lines, or a data set: a folder or a name."),
    ] = None,
    self_text: Annotated[
        str | None,
        typer.Option("--self", help="In place of --text and --tokens: so many tokens that the model writes by itself."),
    ] = None,
    layers: options.Layers = None,
    tokens: Annotated[str, typer.Option(help="How many tokens to read: 500000, 100k, 1M.")] = "1M",
    output: options.OptionalOutput = None,
    field: Annotated[str, typer.Option(help="The field or column with the text.")] = "text",
    split: options.Split = "train",
    config: Annotated[str | None, typer.Option(help="The configuration of a data set that has several.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a row.  [default: 512, or what the model reads]")
    ] = None,
    batch_size: options.BatchSize = 8,
    pack: Annotated[bool, typer.Option("--pack/--no-pack", help="Put several documents into a row.")] = True,
    sample_size: Annotated[int, typer.Option(min=0, help="Keys to keep of each layer.")] = 2048,
    seed: options.Seed = 0,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Begin anew, or go on with what is in --output.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect statistics of the keys that edits must preserve, or show collected ones.

    AlphaEdit and AlphaEdit+ write only where the model's own keys hardly reach: the null space of their second
    moment. It is collected once per model by streaming text through it, and serves every edit. Interrupted, the same
    command goes on where it was. Without --layers they are collected of the first third of the model, which corsa
    edit chooses among. Processes of torchrun or accelerate launch share the text, and begin anew where they were
    interrupted. Ten tokens or more for each feature of a key (the width in the table) are advised.

    \b
    EXAMPLES
      corsa stats --model M --text wiki.jsonl --layers 4-8 --tokens 1M --output stats/M
      corsa stats --model M --text wikimedia/wikipedia --config 20231101.en \\
          --layers 4-8 --output stats/M
      corsa stats --model M --self 50k --output stats/M
      torchrun --nproc-per-node 4 -m corsa_plugins.cli stats --model M --text wiki.jsonl --output stats/M
      corsa stats stats/M

    \b
    FILES
      OUTPUT/statistics.json            what there is, and the fingerprint of the model it was made of
      OUTPUT/layer_4.safetensors        second moment and a sample of the keys of layer 4
      OUTPUT/layer_4.eigen.safetensors  eigenvalues and eigenvectors of the moment, one per row
      OUTPUT/partial.safetensors        the work so far, until it is done
      OUTPUT/self.jsonl                 with --self, the text; what is there is not sampled again

    \b
    EXIT CODES
      0 done; 2 wrong usage, unusable text, or statistics of another model; 130 interrupted
    """
    from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
    from corsa_plugins.alphaedit.statistics.table import statistics_table

    if directory is not None:
        if model or text or self_text or layers or output:
            raise SettingError(f"{directory} is a folder to show: it goes with no other option")
        show(statistics_table(KeyStatistics.load(directory)))
        return
    if text and self_text:
        raise SettingError("--text and --self: give one of them")
    numbers, n_tokens = parse_layers(layers), parse_tokens(self_text or tokens)
    if not model or not (text or self_text) or output is None:
        raise SettingError(
            "corsa stats needs --model, --text or --self and --output; or a folder of statistics to show"
        )
    from corsa_plugins.alphaedit.auto.layers import likely_layers
    from corsa_plugins.alphaedit.statistics.collect import check_folder, collect_statistics
    from corsa_plugins.alphaedit.statistics.texts import read_texts
    from corsa_plugins.model.architecture import find_architecture
    from corsa_plugins.model.processes import started_together
    from corsa_plugins.model.sampling import sample_texts

    # What can be checked comes first: a typo should not cost the loading of a model.
    texts: Iterable[str] = read_texts(text, field=field, split=split, config=config) if text else ()
    check_folder(output, fresh)
    with started_together() as processes:
        loaded, tokenizer = load(model, place_one(processes, device, device_map, max_memory), dtype, quiet)
        if not numbers:
            numbers = likely_layers(len(find_architecture(loaded).blocks))
            told = "where facts are likely to be edited in a model this deep"
            if processes.is_first:
                typer.echo(f"layers {', '.join(map(str, numbers))}: {told}")
        if not text:
            journal = output / "self.jsonl"
            if fresh and processes.is_first:
                journal.unlink(missing_ok=True)
            settings: Any = {"seed": seed, "journal": journal, "progress": not quiet}
            sampled = sample_texts(loaded, tokenizer, n_tokens, **settings) if processes.is_first else ()
            texts = processes.of_first(list(sampled))
        collected = collect_statistics(
            loaded,
            tokenizer,
            texts,
            numbers,
            n_tokens=n_tokens,
            length=length,
            batch_size=batch_size,
            pack=pack,
            sample_size=sample_size,
            seed=seed,
            out=output,
            fresh=fresh,
            progress=not quiet,
            processes=processes,
        )
    if processes.is_first:
        show(statistics_table(collected))
        typer.echo(f"written to {output}")
