"""``--push-to-hub``: a card beside what a command wrote, and all of it on the Hub where that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.hub import Made

__all__ = ["Publisher"]

logger = logging.getLogger(__name__)


class Publisher:
    """What becomes of a folder that a command writes: it has a card, and is uploaded where that is asked for.

    Made before any work: the repository is made, or found to be writable, at once.

    Args:
        name: Of the repository, if there is to be one.
        private: Whether it is.

    Raises:
        SettingError: ``private`` without a repository.
        HubError: The repository cannot be written to.
    """

    def __init__(self, name: str | None, private: bool) -> None:
        from corsa_plugins.hub import open_repository

        if private and name is None:
            raise SettingError(
                "--private is of the repository that --push-to-hub names: give that too, or leave it out"
            )
        self._repository = open_repository(name, private=private) if name is not None else None

    def card(self, made: Made) -> Callable[[Path], None]:
        """What writes the card into the folder before it has its name: where the folder is, there is a card in it."""
        from corsa_plugins.hub import write_card

        def write(folder: Path) -> None:
            try:
                write_card(folder, made)
            except OSError:
                raise
            except Exception as error:  # of whatever kind: a card is not worth the work that it is about
                logger.warning("%s has no card: %s", folder.name, error)

        return write

    def upload(self, folder: Path) -> None:
        """Upload the folder, if that was asked for, and say where it is."""
        if self._repository is not None:
            typer.echo(f"uploaded to {self._repository.upload(folder)}")
