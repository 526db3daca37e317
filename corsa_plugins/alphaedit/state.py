"""Which edits are in force: their keys, their updates, and the weights from before them.

The weights of an edited layer are always W0 + sum over the batches in force of left right^T, or what a restraint makes
of these (:mod:`~corsa_plugins.alphaedit.restraint`), summed in float64 in the order the edits were made and rounded
once. So a batch can be taken out again in any order, and with none in force the weights are W0, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from corsa_plugins.alphaedit.edit_batch import EditBatch
from corsa_plugins.alphaedit.restraint import RestraintSettings, restrained_factors, write_restrained
from corsa_plugins.alphaedit.state_files import STATE_JSON, StateError, damage_named, read_state, write_state
from corsa_plugins.alphaedit.weights import (
    Factors,
    LayerUpdate,
    Site,
    is_original_of,
    mark_of,
    original_of,
)
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import Architecture, LinearMap
from corsa_plugins.model.identity import Fingerprint, checksum

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EditBatch", "EditState", "StateError"]


@dataclass(frozen=True)
class EditState:
    """The edits in force on one model. Immutable: an editor replaces its state as a whole.

    Attributes:
        fingerprint: Of the model.
        modules: Layer, or module where an adapter changed another one (:data:`Site`) -> name of the changed module.
        originals: By the same, W0 (d_out, d_in), in the model's own precision, in main memory; of a quantised weight,
            which stays as it is, the shape alone: (d_out, d_in, 0).
        contexts: Templates that keys and values are averaged over; the same for all edits.
        batches: In the order they were made.
        marks: Checksums of the edited weights by layer: ``marks[k]`` with the first k batches in force, or ``None``
            where that was never the case. ``marks[len(batches)]`` is what the model should hold now.
    """

    fingerprint: Fingerprint
    modules: Mapping[Site, str] = field(default_factory=dict)
    originals: Mapping[Site, Tensor] = field(default_factory=dict)
    contexts: tuple[str, ...] = ()
    batches: tuple[EditBatch, ...] = ()
    marks: tuple[Mapping[Site, str] | None, ...] = ({},)

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """Every request in force, in the order of the edits."""
        return tuple(request for batch in self.batches for request in batch.requests)

    @property
    def beside_downs(self) -> frozenset[str]:
        """Names of the weights that adapters changed beside FFN down maps, which a fingerprint knows."""
        return frozenset(f"{name}.weight" for site, name in self.modules.items() if isinstance(site, str))

    def batch(self, name: str) -> EditBatch:
        """The batch of that name.

        Raises:
            StateError: There is none; the message says which there are.
        """
        for batch in self.batches:
            if batch.name == name:
                return batch
        names = ", ".join(batch.name for batch in self.batches) or "none"
        raise StateError(f"there is no batch {name!r} in force; there are: {names}")

    def prior_keys(self, layer: int, d_in: int) -> Tensor:
        """K_p (d_in, M) of the layer, the keys of every edit in force; M may be 0."""
        keys = [batch.layers[layer].keys for batch in self.batches if layer in batch.layers]
        return torch.cat(keys, dim=1) if keys else torch.zeros(d_in, 0)

    def prior_names(self, layer: int) -> list[str]:
        """Names of the columns of :meth:`prior_keys`: the case id, or the place among :attr:`requests`, of each."""
        edited = [layer in batch.layers for batch in self.batches for _ in batch.requests]
        return [request.name(i) for i, request in enumerate(self.requests) if edited[i]]

    def anchor(self, layer: int) -> float | None:
        """The reference norm that values of the layer were last brought to; ``None``: no edit in force has one."""
        return next((batch.anchors[layer] for batch in reversed(self.batches) if layer in batch.anchors), None)

    def updates(self, layer: Site) -> list[LayerUpdate]:
        """The updates of the layer, in the order they were made."""
        return [batch.layers[layer] for batch in self.batches if layer in batch.layers]

    def part(self, batch: EditBatch, layer: Site, experts: int = 1) -> Factors:
        """What a batch of the state, whose restraint is linear if it has one, puts into a layer's weight, in which so
        many routed experts lie side by side."""
        update, rule = batch.layers[layer], batch.restraint
        return update if rule is None else restrained_factors(rule, self.originals[layer], update, experts)

    def in_force(self, maps: Mapping[Site, LinearMap]) -> int | None:
        """How many of the batches the weights in ``maps`` hold, in their order; ``None``: the weights are none we know.

        Weights that someone put back to what they were before an edit are recognised: the edit can be forgotten.
        """
        if not self.originals:
            return 0
        present = {layer: mark_of(maps[layer]) for layer in self.originals}
        for count in range(len(self.batches), -1, -1):
            if self.marks[count] is not None and dict(self.marks[count] or {}) == present:
                return count
        return None

    def free_name(self) -> str:
        """A number that is no batch's name: that of the next batch, if it is free."""
        taken = {batch.name for batch in self.batches}
        number = len(self.batches) + 1
        while str(number) in taken:
            number += 1
        return str(number)

    def first(self, count: int) -> EditState:
        """The state with the first ``count`` batches only."""
        return replace(self, batches=self.batches[:count], marks=self.marks[: count + 1])

    def with_batch(self, batch: EditBatch) -> EditState:
        """The state with one batch more; of what the weights are with it there are no checksums yet."""
        if any(batch.name == other.name for other in self.batches):
            raise StateError(f"there is a batch {batch.name!r} already: choose another name")
        return replace(self, batches=(*self.batches, batch), marks=(*self.marks, None))

    def with_mark(self, mark: Mapping[Site, str]) -> EditState:
        """The state with other checksums of the weights with every batch in force."""
        return replace(self, marks=(*self.marks[:-1], dict(mark)))

    def with_layers(self, maps: Mapping[Site, LinearMap]) -> EditState:
        """The state with the present weights of layers it did not know yet as their originals."""
        new = {layer: linear for layer, linear in maps.items() if layer not in self.originals}
        if not new:
            return self
        originals = {layer: original_of(linear) for layer, linear in new.items()}
        known = {layer: mark_of(linear) for layer, linear in new.items()}
        return replace(
            self,
            modules={**self.modules, **{layer: linear.name for layer, linear in new.items()}},
            originals={**self.originals, **originals},
            marks=tuple(None if mark is None else {**mark, **known} for mark in self.marks),
        )

    def without(self, name: str) -> EditState:
        """The state without a batch, its keys and updates gone; of the weights without it there are no checksums yet.

        Raises:
            StateError: There is no such batch.
        """
        index = self.batches.index(self.batch(name))
        batches = self.batches[:index] + self.batches[index + 1 :]
        # The batches after it were never in force without it.
        marks = (*self.marks[: index + 1], *[None] * (len(batches) - index))
        return replace(self, batches=batches, marks=marks)

    def write(self, maps: Mapping[Site, LinearMap]) -> dict[Site, str]:
        """Put W0 + all updates into the weights; returns their checksums by layer."""
        for layer in self.originals:
            self.write_layer(layer, maps[layer])
        return {layer: mark_of(maps[layer]) for layer in self.originals}

    def write_layer(
        self, layer: Site, linear: LinearMap, more: Factors | None = None, restraint: RestraintSettings | None = None
    ) -> None:
        """Put W0 + all updates of a layer into its weight.

        Args:
            layer: One that the state knows.
            linear: Its map.
            more: The update of a batch that is not in the state yet.
            restraint: Of that batch.
        """
        made = [(batch.layers[layer], batch.restraint) for batch in self.batches if layer in batch.layers]
        updates: list[tuple[Factors, RestraintSettings | None]] = [
            *made,
            *([] if more is None else [(more, restraint)]),
        ]
        write_restrained(linear, self.originals[layer], updates)

    def check_model(self, model: PreTrainedModel, architecture: Architecture | None = None) -> None:
        """See that this state is of this model, whatever its precision.

        Raises:
            StateError: It is of another model.
        """
        different = self.fingerprint.difference(Fingerprint.of(model, architecture), self.beside_downs)
        if different is not None:
            raise StateError(
                f"the edit state was made on another model: {different}; load the model that was edited, or start a "
                "new state"
            )

    def check(
        self, model: PreTrainedModel, maps: Mapping[Site, LinearMap], architecture: Architecture | None = None
    ) -> None:
        """See that this state is of this model, in this precision.

        Raises:
            StateError: It is of another model, or the model was loaded in another precision.
        """
        self.check_model(model, architecture)
        for layer, original in self.originals.items():
            linear = maps[layer]
            if linear.name != self.modules[layer] or original.shape[:2] != (linear.d_out, linear.d_in):
                raise StateError(f"the edit state edits {self.modules[layer]}, and the model has {linear.name} there")
            if not is_original_of(original, linear):
                made, now = original.dtype, linear.parameter.dtype if not linear.quantised else "quantised"
                raise StateError(
                    f"the edit state was made in {made}, and {linear.name} is {now}: load the model with that dtype"
                )

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the state to a folder, completely or not at all; an earlier state there is replaced.

        The folder has ``state.json`` (requests, settings, reports) and ``state.safetensors`` (weights from before,
        keys, updates).

        Raises:
            StateError: The folder holds anything else, which would be lost.
            OSError: It cannot be written; what was there is still there.
        """
        tensors = {f"original.{layer}": weight for layer, weight in self.originals.items()}
        for number, batch in enumerate(self.batches):
            tensors |= batch.tensors(f"batch.{number}")
        description = {
            "fingerprint": self.fingerprint.as_dict(),
            "modules": {str(layer): name for layer, name in self.modules.items()},
            "contexts": list(self.contexts),
            "marks": [None if mark is None else {str(layer): m for layer, m in mark.items()} for mark in self.marks],
            "batches": [batch.as_dict() for batch in self.batches],
        }
        write_state(Path(path), description, tensors)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EditState:
        """Read a folder that :meth:`save` wrote.

        Raises:
            StateError: It is not one, or damaged; the message names it.
        """
        with damage_named(Path(path)):
            description, tensors = read_state(Path(path))
            state = cls(
                fingerprint=Fingerprint.from_dict(description["fingerprint"]),
                modules={_site(layer): name for layer, name in description["modules"].items()},
                originals={_site(layer): tensors[f"original.{layer}"] for layer in description["modules"]},
                contexts=tuple(description["contexts"]),
                batches=tuple(
                    EditBatch.from_parts(batch, tensors, f"batch.{number}")
                    for number, batch in enumerate(description["batches"])
                ),
                marks=tuple(
                    None if mark is None else {_site(layer): m for layer, m in mark.items()}
                    for mark in description["marks"]
                ),
            )
            state._check_whole(Path(path))
        return state

    def _check_whole(self, path: Path) -> None:
        marked = self.marks[0] or {}
        for layer, original in self.originals.items():
            if original.dim() == 2 and marked.get(layer) != checksum(original):
                raise StateError(f"{path} is damaged: the original weight of layer {layer} has changed; restore it")
        if len(self.marks) != len(self.batches) + 1:
            raise StateError(f"{path} is damaged: {STATE_JSON} has checksums of other batches; restore it")
        for batch in self.batches:
            for layer, update in batch.layers.items():
                d_out, d_in = self.originals[layer].shape[:2]
                n = len(batch.requests)
                rank = n or update.left.shape[-1]
                shapes = (update.keys.shape, update.left.shape, update.right.shape)
                if shapes != ((d_in, n), (d_out, rank), (d_in, rank)):
                    raise StateError(f"{path} is damaged: batch {batch.name} has other shapes at layer {layer}")


def _site(text: str) -> Site:
    return int(text) if text.isdigit() else text
