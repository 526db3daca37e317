"""What a method has to offer to be run through a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corsa_plugins.data.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["REPORT", "Method", "Session"]

REPORT = "report.json"
"""Name of the file, in the folder of an update, in which a method says what became of each request."""


class Session(Protocol):
    """One model on its way through updates."""

    @property
    def model(self) -> Any:
        """The model as it is now, to be evaluated: the base model, edited in place, or a ``PeftModel`` on it."""

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        """Make one update, on top of the earlier ones.

        Args:
            requests: What to change; at least one.
            folder: Empty. Whatever :meth:`restore` needs goes there; a method that trains may put the history of its
                training there as well (:mod:`corsa_plugins.methods.history`), and one that has a report of each request
                puts that into :data:`REPORT`.
        """

    def restore(self, folder: Path) -> None:
        """Put a finished update in place instead of making it again.

        Called in the order of the updates, for each from the first on; afterwards the model is, bit for bit, what it
        was after :meth:`update` had filled ``folder``.
        """

    def close(self) -> None:
        """Give the base model back as it was, bit for bit. Also after a failed or interrupted update."""


class Method(Protocol):
    """A way to update a model, with its settings. Holds no model and no state."""

    @property
    def name(self) -> str:
        """For tables and labels."""

    def describe(self) -> dict[str, Any]:
        """Everything its result depends on, as plain data: a run that is taken up again must have the same."""

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """Begin on a model without updates. Nothing is changed yet.

        Raises:
            CorsaError: This method cannot work on this model.
        """
