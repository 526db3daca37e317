"""A batch as an edit state keeps it: what was asked for, and what that did to each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from corsa_plugins.alphaedit.report import EditReport
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.weights import Factors, LayerUpdate, Site
from corsa_plugins.data.requests import EditRequest

__all__ = ["EditBatch"]

_PARTS = ("keys", "left", "right")


@dataclass(frozen=True)
class EditBatch:
    """Requests that were edited together, or changes that were made elsewhere: those have neither requests nor keys.

    Attributes:
        name: Unique within a state.
        requests: In order; the columns of the tensors.
        layers: By number of the block, or by the name of another module.
        settings: It was made with.
        report: What came of it.
        anchors: By block, the reference norm that its values were brought to; later batches take it up.
    """

    name: str
    requests: tuple[EditRequest, ...]
    layers: Mapping[Site, LayerUpdate]
    settings: AlphaEditSettings
    report: EditReport
    anchors: Mapping[int, float] = field(default_factory=dict)

    @property
    def restraint(self) -> RestraintSettings | None:
        """What is made of its updates before they are put into the weights; of changes made elsewhere, nothing."""
        return self.settings.restraint if self.requests else None

    @classmethod
    def adopted(cls, name: str, updates: Mapping[Site, Factors], settings: AlphaEditSettings) -> EditBatch:
        """A batch of changes that were made elsewhere; the settings are those of the editor that took them up."""
        layers = {
            site: LayerUpdate(update.right.new_zeros(len(update.right), 0), update.left, update.right)
            for site, update in updates.items()
        }
        return cls(name, (), layers, settings, EditReport(name, (), ()))

    def as_dict(self) -> dict[str, Any]:
        """All but the tensors, as plain data."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "requests": [request.model_dump(mode="json") for request in self.requests],
            "settings": self.settings.as_dict(),
            "report": self.report.as_dict(),
            "anchors": {str(layer): norm for layer, norm in self.anchors.items()},
        }

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The updates, by names that begin with ``prefix``."""
        return {
            f"{prefix}.{layer}.{part}": getattr(update, part).contiguous()
            for layer, update in self.layers.items()
            for part in _PARTS
        }

    @classmethod
    def from_parts(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> EditBatch:
        """The batch of :meth:`as_dict`'s data and :meth:`tensors`."""
        return cls(
            name=data["name"],
            requests=tuple(EditRequest.model_validate(request) for request in data["requests"]),
            layers={
                layer: LayerUpdate(**{part: tensors[f"{prefix}.{layer}.{part}"] for part in _PARTS})
                for layer in data["layers"]
            },
            settings=AlphaEditSettings.from_dict(data["settings"]),
            report=EditReport.from_dict(data["report"]),
            anchors={int(layer): float(norm) for layer, norm in data.get("anchors", {}).items()},
        )
