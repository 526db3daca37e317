"""What the extension adds to the console script: `corsa merge`."""

from __future__ import annotations

from collections.abc import Sequence

from corsa_plugins.cli.plugin import passthrough

__all__ = ["merge"]


@passthrough
def merge(argv: Sequence[str]) -> int:
    """Merge models by a mergekit recipe, with scaled_pruned_delta among the methods."""
    from mergekit_ext.merge_command import merge_command

    merge_command.main(args=list(argv), prog_name="corsa merge", standalone_mode=False)
    return 0
