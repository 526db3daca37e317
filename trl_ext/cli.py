"""What the extension adds to the console script: `corsa train`."""

from __future__ import annotations

from collections.abc import Sequence

from corsa_plugins.cli.plugin import passthrough
from corsa_plugins.errors import require
from trl_ext.launching import in_processes, launch_command, wants_launch
from trl_ext.reporting import naming_broken_loggers

__all__ = ["train"]


@passthrough
def train(argv: Sequence[str]) -> int:
    """Train a CoRSA adapter from a file of edit requests, through TRL."""
    _require_trl("corsa train")
    if wants_launch(argv):
        with naming_broken_loggers("corsa train"):
            from trl_ext.arguments import check_names

        command, settings = launch_command(argv)
        check_names(settings, prog="corsa train")  # what is wrong with them is said once, not by every process
        return in_processes(command)
    with naming_broken_loggers("corsa train"):
        from trl_ext.train import main

    main(argv, prog="corsa train")
    return 0


def _require_trl(what: str) -> None:
    for module in ("trl", "peft", "datasets"):
        require(module, "trl", what=what)
