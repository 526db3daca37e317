"""``--push-to-hub``: a card beside what a command wrote, and all of it on the Hub where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.hub import Made

__all__ = ["publisher"]


def publisher(name: str | None, private: bool) -> Callable[[Path, Made], None]:
    """What to call when a folder is written: it writes the card, and uploads the folder where ``name`` is given.

    Call it before any work: the repository is made, or found to be writable, at once.

    Raises:
        SettingError: ``--private`` without a repository.
        HubError: The repository cannot be written to.
    """
    from corsa_plugins.hub import open_repository, write_card

    if private and name is None:
        raise SettingError("--private is of the repository that --push-to-hub names: give that too, or leave it out")
    repository = open_repository(name, private=private) if name is not None else None

    def finish(folder: Path, made: Made) -> None:
        write_card(folder, made)
        if repository is not None:
            typer.echo(f"uploaded to {repository.upload(folder)}")

    return finish
