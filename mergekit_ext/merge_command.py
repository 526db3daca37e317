"""``corsa merge``: the arguments of ``mergekit-yaml``, all of them."""

from __future__ import annotations

import logging
from typing import Any

import click
from mergekit.common import parse_kmb
from mergekit.options import MergeOptions, PrettyPrintHelp, add_merge_options

from mergekit_ext.merging import merge_recipe

__all__ = ["merge_command"]

_HELP = """Merge models by a mergekit recipe, with scaled_pruned_delta among the methods.

RECIPE is a YAML file, or the name of a packaged recipe (rsft-qwen2.5-7b, two-editors, lora-into-base); every method of
mergekit works. OUT is a new folder: it is there whole when the merge is done, and not before.

\b
EXAMPLES
  corsa merge recipe.yaml merged
  corsa merge recipe.yaml merged --cuda --low-cpu-memory
  corsa merge recipe.yaml merged --lazy-unpickle --out-shard-size 2B

\b
RECIPE
  merge_method: scaled_pruned_delta
  base_model: Qwen/Qwen2.5-7B-Instruct
  models:
    - model: ./edited
      parameters: {weight: 0.8, density: 0.2}

\b
EXIT CODES
  0 done; 2 wrong usage, or a recipe, model or disk at fault (the message says which); 130 interrupted
"""


class _ShardSize(click.ParamType):
    """mergekit's own answers a number it cannot read with a traceback."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = parse_kmb(value)
        except (ValueError, IndexError):
            size = 0
        if size < 1:
            self.fail(f"{value!r} is no number of parameters: write 5B, 500M or 70k", param, ctx)
        return size


@click.command("merge", cls=PrettyPrintHelp, help=_HELP)
@click.argument("recipe")
@click.argument("out")
@add_merge_options
def merge_command(merge_options: MergeOptions, recipe: str, out: str) -> None:
    merge_options.apply_global_options()
    if merge_options.verbosity:  # `corsa` has set up logging before mergekit could
        logging.getLogger().setLevel(logging.DEBUG if merge_options.verbosity > 1 else logging.INFO)
    merged = merge_recipe(recipe, out, merge_options)
    told = "" if merged.changed is None else f"; tensors changed: {len(merged.changed)}, all others are the base's own"
    if merged.lost:
        told += f" ({len(merged.lost)} of them though an edited model differs)"
    click.echo(f"merged into {merged.path}{told}")


for _option in merge_command.params:
    if _option.name == "out_shard_size":
        _option.type = _ShardSize()
