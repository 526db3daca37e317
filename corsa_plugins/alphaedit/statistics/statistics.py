"""Statistics of the preserved keys K0: their second moments K0 K0^T / n, a sample, and the model they are of."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.statistics.layer import LayerStatistics, StatisticsError
from corsa_plugins.alphaedit.statistics.storage import StatisticsWriter, read_statistics
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, ArchitectureError, find_architecture
from corsa_plugins.model.identity import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["KeyStatistics"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyStatistics:
    """Statistics of the keys to preserve, by layer.

    >>> statistics = KeyStatistics.load("stats/llama-8b")  # doctest: +SKIP
    >>> statistics.check(model)  # doctest: +SKIP
    >>> statistics.null_space(4, NullSpaceRule("threshold", 0.02)).share  # doctest: +SKIP

    Attributes:
        by_layer: What is known of each layer; those from a folder read their files when they are asked.
        fingerprint: Of the model they were made of; ``None`` if that is not known, as with other tools' files.
        about: How they were collected, as plain data.
        source: Where they came from, for messages.
    """

    by_layer: Mapping[int, LayerStatistics]
    fingerprint: Fingerprint | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = "the statistics"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers there are statistics of, in ascending order."""
        return tuple(sorted(self.by_layer))

    @property
    def folder(self) -> Path | None:
        """The folder that they are read from; ``None`` for those in memory."""
        folders = {getattr(layer, "folder", None) for layer in self.by_layer.values()}
        return folders.pop() if len(folders) == 1 else None

    def layer(self, layer: int) -> LayerStatistics:
        """Statistics of one layer.

        Raises:
            StatisticsError: There are none of it.
        """
        if layer not in self.by_layer:
            there = ", ".join(map(str, self.layers)) or "none"
            raise StatisticsError(f"{self.source}: no statistics of layer {layer}, there are {there}; collect them")
        return self.by_layer[layer]

    def width(self, layer: int) -> int:
        """d, the width of the layer's keys."""
        return self.layer(layer).width

    def count(self, layer: int) -> int:
        """Number of tokens the second moment is the mean of."""
        return self.layer(layer).count

    def moment(self, layer: int) -> Tensor:
        """E[k k^T], (d, d), float64 up to a width of 4096 and float32 beyond, as stored; of routed experts
        (E, d / E, d / E), one for each."""
        return self.layer(layer).moment()

    def sample(self, layer: int) -> Tensor | None:
        """Some of the keys, (d, S) float32, drawn uniformly from all tokens; ``None`` where none were kept."""
        return self.layer(layer).sample()

    def taken(self, layer: int) -> tuple[int, ...]:
        """How many of the tokens took each routed expert; empty where the keys are those of one map."""
        return self.layer(layer).taken

    def eigenvalues(self, layer: int) -> Tensor:
        """Of the second moment: (d,) float64, ascending, none below zero."""
        return self.layer(layer).basis().values

    def null_space(self, layer: int, rule: NullSpaceRule | None = None) -> NullSpace:
        """The null space of the layer's keys; by default AlphaEdit's, of eigenvalues under 0.02.

        Statistics from a folder have their eigenvectors there, and they are read as they are used. Others compute them
        now: O(d^3).

        Raises:
            StatisticsError: There are no statistics of this layer, or their files are damaged.
            NullSpaceError: The rule keeps nothing.
        """
        return NullSpace.from_basis(self.layer(layer).basis(), rule, f"layer {layer}")

    def check(self, model: PreTrainedModel, architecture: Architecture | None = None) -> None:
        """See that these are statistics of this model. Edits of its FFN down maps, and its precision, do not matter.

        Args:
            model: The model to edit.
            architecture: Where its parts are, if they had to be named by hand.

        Raises:
            StatisticsError: They are of another model, naming both, or a layer's keys have another width.
        """
        architecture = architecture or find_architecture(model)
        if self.fingerprint is not None:
            fingerprint = Fingerprint.of(model, architecture)
            different = self.fingerprint.difference(fingerprint)
            if different is not None:
                raise StatisticsError(
                    f"{self.source} are of {self.fingerprint}, and this is {fingerprint}: {different}. A null space of "
                    "one model says nothing about another: collect statistics of this one"
                )
        for layer in self.layers:
            try:
                edited = architecture.edited(layer)
            except (SettingError, ArchitectureError) as error:
                raise StatisticsError(f"{self.source} are of a layer {layer}, and this model: {error}") from error
            if edited.d_in != self.width(layer):
                raise StatisticsError(
                    f"{self.source}: the keys of layer {layer} are {self.width(layer)} wide, and {edited.d_in} in this "
                    "model: these are statistics of another one"
                )
            experts = len(self.layer(layer).taken) or 1
            if experts != edited.experts:
                raise StatisticsError(
                    f"{self.source}: the keys of layer {layer} are those of {experts} maps, and of {edited.experts} in "
                    f"this model ({edited.name}): collect statistics of these"
                )

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write a folder that :meth:`load` reads, with the eigenvectors, so that they are computed once.

        Every file is written completely or not at all, ``statistics.json`` last: a folder that has it is whole. What
        the folder held of other statistics is replaced.

        Returns:
            The path of ``statistics.json``.

        Raises:
            OSError: The folder cannot be written to.
        """
        writer = StatisticsWriter(directory, self.fingerprint, self.about)
        for layer in self.layers:
            writer.add(layer, self.by_layer[layer])
        return writer.finish()

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> KeyStatistics:
        """Open what :meth:`save` or ``corsa stats`` wrote. Nothing large is read yet.

        Raises:
            StatisticsError: There are none, or files are missing, cut short, or from different statistics.
        """
        return cls(*read_statistics(directory))
