"""Which edits are in force: their keys, their updates, and the weights from before them.

The weights of an edited layer are always W0 + sum over the batches in force of left right^T, summed in float64 in the
order the edits were made and rounded once. So a batch can be taken out again in any order, and with none in force the
weights are W0, bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsa_plugins.alphaedit.report import EditReport
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_directory
from corsa_plugins.model.architecture import Architecture, LinearMap
from corsa_plugins.model.identity import Fingerprint, checksum

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EditBatch", "EditState", "LayerUpdate", "StateError", "write_weight"]

_FORMAT = 1
_JSON = "state.json"
_TENSORS = "state.safetensors"
_CHUNK = 2**24  # elements of a weight that are held in float64 at a time: 128 MiB


class StateError(CorsaError, ValueError):
    """An edit state that does not fit the model, cannot be read, or has no such batch."""


@dataclass(frozen=True)
class LayerUpdate:
    """What one batch of N edits did to one layer.

    Attributes:
        keys: (d_in, N), the keys with the batch in force: K_p of later edits.
        left: (d_out, N), the residuals, as smoothed.
        right: (d_in, N); the update is ``left @ right.T``.
    """

    keys: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class EditBatch:
    """Requests that were edited together.

    Attributes:
        name: Unique within a state.
        requests: In order; the columns of the tensors.
        layers: By number of the block.
        settings: It was made with.
        report: What came of it.
    """

    name: str
    requests: tuple[EditRequest, ...]
    layers: Mapping[int, LayerUpdate]
    settings: AlphaEditSettings
    report: EditReport


@dataclass(frozen=True)
class EditState:
    """The edits in force on one model. Immutable: an editor replaces its state as a whole.

    Attributes:
        fingerprint: Of the model.
        modules: Layer -> name of the edited module.
        originals: Layer -> W0 (d_out, d_in), in the model's own precision, in main memory.
        contexts: Templates that keys and values are averaged over; the same for all edits.
        batches: In the order they were made.
        marks: Checksums of the edited weights by layer: ``marks[k]`` with the first k batches in force, or ``None``
            where that was never the case. ``marks[len(batches)]`` is what the model should hold now.
    """

    fingerprint: Fingerprint
    modules: Mapping[int, str] = field(default_factory=dict)
    originals: Mapping[int, Tensor] = field(default_factory=dict)
    contexts: tuple[str, ...] = ()
    batches: tuple[EditBatch, ...] = ()
    marks: tuple[Mapping[int, str] | None, ...] = ({},)

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """Every request in force, in the order of the edits."""
        return tuple(request for batch in self.batches for request in batch.requests)

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

    def updates(self, layer: int) -> list[LayerUpdate]:
        """The updates of the layer, in the order they were made."""
        return [batch.layers[layer] for batch in self.batches if layer in batch.layers]

    def in_force(self, maps: Mapping[int, LinearMap]) -> int | None:
        """How many of the batches the weights in ``maps`` hold, in their order; ``None``: the weights are none we know.

        Weights that someone put back to what they were before an edit are recognised: the edit can be forgotten.
        """
        if not self.originals:
            return 0
        found = {layer: checksum(maps[layer].weight) for layer in self.originals}
        for count in range(len(self.batches), -1, -1):
            if self.marks[count] is not None and dict(self.marks[count] or {}) == found:
                return count
        return None

    def first(self, count: int) -> EditState:
        """The state with the first ``count`` batches only."""
        return replace(self, batches=self.batches[:count], marks=self.marks[: count + 1])

    def with_batch(self, batch: EditBatch, mark: Mapping[int, str]) -> EditState:
        """The state with one batch more, and the checksums of the weights with it in force."""
        if any(batch.name == other.name for other in self.batches):
            raise StateError(f"there is a batch {batch.name!r} already: choose another name")
        return replace(self, batches=(*self.batches, batch), marks=(*self.marks, dict(mark)))

    def with_mark(self, mark: Mapping[int, str]) -> EditState:
        """The state with other checksums of the weights with every batch in force."""
        return replace(self, marks=(*self.marks[:-1], dict(mark)))

    def with_layers(self, maps: Mapping[int, LinearMap]) -> EditState:
        """The state with the present weights of layers it did not know yet as their originals."""
        new = {layer: place for layer, place in maps.items() if layer not in self.originals}
        if not new:
            return self
        originals = {layer: place.weight.detach().to("cpu", copy=True).contiguous() for layer, place in new.items()}
        known = {layer: checksum(weight) for layer, weight in originals.items()}
        return replace(
            self,
            modules={**self.modules, **{layer: place.name for layer, place in new.items()}},
            originals={**self.originals, **originals},
            marks=tuple(None if mark is None else {**mark, **known} for mark in self.marks),
        )

    def without(self, name: str, mark: Mapping[int, str]) -> EditState:
        """The state without a batch, its keys and updates gone, and the checksums of the weights without it."""
        place = self.batches.index(self.batch(name))
        batches = self.batches[:place] + self.batches[place + 1 :]
        # The batches after it were never in force without it, until now all of them are.
        marks: list[Mapping[int, str] | None] = [*self.marks[: place + 1], *[None] * (len(batches) - place)]
        marks[len(batches)] = dict(mark)
        return replace(self, batches=batches, marks=tuple(marks))

    def write(self, maps: Mapping[int, LinearMap]) -> dict[int, str]:
        """Put W0 + all updates into the weights; returns their checksums by layer."""
        for layer, original in self.originals.items():
            write_weight(maps[layer], original, self.updates(layer))
        return {layer: checksum(maps[layer].weight) for layer in self.originals}

    def check_model(self, model: PreTrainedModel, architecture: Architecture | None = None) -> None:
        """See that this state is of this model, whatever its precision.

        Raises:
            StateError: It is of another model.
        """
        found = Fingerprint.of(model, architecture)
        if not self.fingerprint.matches(found):
            raise StateError(
                f"the edit state was made on another model: {self.fingerprint.difference(found)}; load the model that "
                "was edited, or start a new state"
            )

    def check(
        self, model: PreTrainedModel, maps: Mapping[int, LinearMap], architecture: Architecture | None = None
    ) -> None:
        """See that this state is of this model, in this precision.

        Raises:
            StateError: It is of another model, or the model was loaded in another precision.
        """
        self.check_model(model, architecture)
        for layer, original in self.originals.items():
            place = maps[layer]
            if place.name != self.modules[layer] or place.weight.shape != original.shape:
                raise StateError(f"the edit state edits {self.modules[layer]}, and the model has {place.name} there")
            if place.weight.dtype != original.dtype:
                raise StateError(
                    f"the edit state was made in {original.dtype}, and {place.name} is {place.weight.dtype}: load the "
                    f"model with that dtype"
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
        from safetensors.torch import save_file

        path = Path(path)
        if path.is_dir() and {file.name for file in path.iterdir()} - {_JSON, _TENSORS}:
            raise StateError(f"{path} is a folder with other files in it: name a new one for the edit state")
        tensors = {f"original.{layer}": weight for layer, weight in self.originals.items()}
        for number, batch in enumerate(self.batches):
            for layer, update in batch.layers.items():
                for part in ("keys", "left", "right"):
                    tensors[f"batch.{number}.{layer}.{part}"] = getattr(update, part).contiguous()
        described = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint.as_dict(),
            "modules": {str(layer): name for layer, name in self.modules.items()},
            "contexts": list(self.contexts),
            "marks": [None if mark is None else {str(layer): m for layer, m in mark.items()} for mark in self.marks],
            "batches": [
                {
                    "name": batch.name,
                    "layers": sorted(batch.layers),
                    "requests": [request.model_dump(mode="json") for request in batch.requests],
                    "settings": batch.settings.as_dict(),
                    "report": batch.report.as_dict(),
                }
                for batch in self.batches
            ],
            "tensors": sorted(tensors),
        }
        with atomic_directory(path) as folder:
            save_file(tensors, folder / _TENSORS)
            (folder / _JSON).write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EditState:
        """Read a folder that :meth:`save` wrote.

        Raises:
            StateError: It is not one, or damaged; the message names it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(path)
        if not (path / _JSON).is_file():
            raise StateError(f"{path} is no edit state: there is no {_JSON} in it")
        try:
            described = json.loads((path / _JSON).read_text(encoding="utf-8"))
            if described["format"] != _FORMAT:
                raise StateError(f"{path} has format {described['format']}, and this version reads {_FORMAT}: upgrade")
            tensors = load_file(path / _TENSORS)
            if sorted(tensors) != described["tensors"]:
                raise StateError(f"{path} is damaged: {_TENSORS} does not hold what {_JSON} lists; restore both files")
            state = cls(
                fingerprint=Fingerprint.from_dict(described["fingerprint"]),
                modules={int(layer): name for layer, name in described["modules"].items()},
                originals={int(layer): tensors[f"original.{layer}"] for layer in described["modules"]},
                contexts=tuple(described["contexts"]),
                batches=tuple(_batch(number, data, tensors) for number, data in enumerate(described["batches"])),
                marks=tuple(
                    None if mark is None else {int(layer): m for layer, m in mark.items()}
                    for mark in described["marks"]
                ),
            )
            state._check_whole(path)
            return state
        except StateError:
            raise
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(
                f"{path} is damaged, or of another version, and cannot be read ({error}); restore both files, or use "
                "the version that wrote them"
            ) from error

    def _check_whole(self, path: Path) -> None:
        marked = self.marks[0] or {}
        for layer, original in self.originals.items():
            if marked.get(layer) != checksum(original):
                raise StateError(f"{path} is damaged: the original weight of layer {layer} has changed; restore it")
        if len(self.marks) != len(self.batches) + 1:
            raise StateError(f"{path} is damaged: {_JSON} has checksums of other batches; restore it")
        for batch in self.batches:
            for layer, update in batch.layers.items():
                d_out, d_in = self.originals[layer].shape
                n = len(batch.requests)
                if (update.keys.shape, update.left.shape, update.right.shape) != ((d_in, n), (d_out, n), (d_in, n)):
                    raise StateError(f"{path} is damaged: batch {batch.name} has other shapes at layer {layer}")


def _batch(number: int, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EditBatch:
    return EditBatch(
        name=data["name"],
        requests=tuple(EditRequest.model_validate(request) for request in data["requests"]),
        layers={
            layer: LayerUpdate(**{p: tensors[f"batch.{number}.{layer}.{p}"] for p in ("keys", "left", "right")})
            for layer in data["layers"]
        },
        settings=AlphaEditSettings.from_dict(data["settings"]),
        report=EditReport.from_dict(data["report"]),
    )


@torch.no_grad()
def write_weight(place: LinearMap, original: Tensor, updates: Sequence[LayerUpdate]) -> None:
    """Put ``original`` + the sum of the updates into a linear map, summed in float64 by blocks of rows."""
    weight = place.weight
    if not updates:
        weight.copy_(original)
        return
    left = torch.cat([update.left for update in updates], dim=1).to(weight.device)
    right = torch.cat([update.right for update in updates], dim=1).to(weight.device, torch.float64)
    rows = max(1, _CHUNK // place.d_in)
    for start in range(0, place.d_out, rows):
        part = slice(start, start + rows)
        weight[part] = (original[part].to(weight.device).double() + left[part].double() @ right.T).to(weight.dtype)
