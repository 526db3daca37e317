"""The command ``corsa stats``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from rich.table import Table

    from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics

__all__ = ["parse_layers", "parse_tokens", "statistics_table", "stats"]


def stats(
    directory: Annotated[
        Path | None, typer.Argument(help="A folder of statistics to show, with none of the options below.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model: a folder, or a name on the Hub.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", help="A text file (a document per line), JSON Lines, or a data set: a folder or a name."
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks to edit later, from 0: 4,5,6 or 4-8.")] = None,
    tokens: Annotated[str, typer.Option(help="How many tokens to read: 500000, 100k, 1M.")] = "1M",
    out: Annotated[Path | None, typer.Option("--out", "--output", "-o", help="Folder for the statistics.")] = None,
    field: Annotated[str, typer.Option(help="The field or column with the text.")] = "text",
    split: Annotated[str, typer.Option(help="The split of a data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="The configuration of a data set that has several.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a row.  [default: 512, or what the model reads]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 8,
    pack: Annotated[bool, typer.Option("--pack/--no-pack", help="Put several documents into a row.")] = True,
    sample_size: Annotated[int, typer.Option(min=0, help="Keys to keep of each layer.")] = 2048,
    seed: Annotated[int, typer.Option(help="Which keys are kept.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (as saved; float32 for float16 on a CPU), float32, bfloat16 or float16.")
    ] = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Begin anew, or go on with what is in --out.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Collect statistics of the keys that edits must preserve, or show collected ones.

    AlphaEdit and AlphaEdit+ write only where the model's own keys hardly reach: the null space of their second
    moment. It is collected once per model by streaming text through it, and serves every edit. Interrupted, the same
    command goes on where it was. Ten tokens or more for each feature of a key (the width in the table) are advised.

    \b
    EXAMPLES
      corsa stats --model M --text wiki.jsonl --layers 4-8 --tokens 1M --out stats/M
      corsa stats --model M --text wikimedia/wikipedia --config 20231101.en \\
          --layers 4-8 --out stats/M
      corsa stats stats/M

    \b
    FILES
      OUT/statistics.json            what there is, and the fingerprint of the model it was made of
      OUT/layer_4.safetensors        second moment and a sample of the keys of layer 4
      OUT/layer_4.eigen.safetensors  eigenvalues and eigenvectors of the moment, one per row
      OUT/partial.safetensors        the work so far, until it is done

    \b
    EXIT CODES
      0 done; 2 wrong usage, unusable text, or statistics of another model; 130 interrupted
    """
    from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics

    if directory is not None:
        if model or text or layers or out:
            raise SettingError(f"{directory} is a folder to show: it goes with no other option")
        show(statistics_table(KeyStatistics.load(directory)))
        return
    if not model or not text or not layers or out is None:
        raise SettingError("corsa stats needs --model, --text, --layers and --out; or a folder of statistics to show")
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.alphaedit.statistics.collect import check_folder, collect_statistics
    from corsa_plugins.alphaedit.statistics.texts import read_texts
    from corsa_plugins.model.loading import load_model

    if quiet:
        disable_progress_bar()
    # What can be checked comes first: a typo should not cost the loading of a model.
    numbers, n_tokens = parse_layers(layers), parse_tokens(tokens)
    texts = read_texts(text, field=field, split=split, config=config)
    check_folder(out, fresh)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    found = collect_statistics(
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
        out=out,
        fresh=fresh,
        progress=not quiet,
    )
    show(statistics_table(found))
    typer.echo(f"written to {out}")


def parse_layers(text: str) -> tuple[int, ...]:
    """Block numbers from ``"4,5,6"``, ``"4-8"`` or both, in ascending order.

    Raises:
        SettingError: It is neither.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise SettingError(f"layers are {text!r}: write them as 4,5,6 or 4-8")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))


def parse_tokens(text: str) -> int:
    """A number of tokens from ``"500000"``, ``"500_000"``, ``"100k"``, ``"2.5M"`` or ``"1B"``.

    Raises:
        SettingError: It is no such number, or not a whole and positive one.
    """
    match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kKmMbBgG]?)\s*", text)
    number = 0.0
    if match is not None:
        factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}[match[2].lower()]
        number = float(match[1].replace("_", "")) * factor
    if number < 1 or number != round(number):
        raise SettingError(f"tokens are {text!r}: write a number such as 500000, 100k or 1M")
    return round(number)


def statistics_table(statistics: KeyStatistics) -> Table:
    """A row per layer: width, tokens, keys kept, and how much of the key space hardly any key reaches."""
    from rich.table import Table

    from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule

    threshold = NullSpaceRule()
    headings = (
        "layer", "width", "tokens", "keys kept", f"eigenvectors under {threshold.value:g}, %", "their energy, %",
        "smallest 70 %: under", "their energy, %",
    )  # fmt: skip
    table = Table(title=_title(statistics))
    for heading in headings:
        table.add_column(heading, justify="right")
    for layer in statistics.layers:
        values, sample = statistics.eigenvalues(layer), statistics.sample(layer)
        under, share = threshold.count(values), NullSpaceRule("share", 0.7).count(values)
        total = max(float(values.sum()), 1e-300)
        cells = (
            layer, statistics.width(layer), f"{statistics.count(layer):,}", 0 if sample is None else sample.shape[1],
            f"{100 * under / len(values):.1f}", f"{100 * float(values[:under].sum()) / total:.2g}",
            f"{float(values[min(share, len(values) - 1)]):.2g}", f"{100 * float(values[:share].sum()) / total:.2g}",
        )  # fmt: skip
        table.add_row(*map(str, cells))
    return table


def _title(statistics: KeyStatistics) -> str:
    return f"keys of {statistics.fingerprint or 'an unknown model'}"
