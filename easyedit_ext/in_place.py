"""What methods that train weights in place have in common where EasyEdit calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from easyedit_ext.records import AppliedEdit, copied, record_of
from easyedit_ext.requests import to_requests

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from corsa_plugins.data.requests import EditRequest
    from easyedit_ext.hparams.base import HyperParams

__all__ = ["train_in_place"]


def train_in_place(
    model: PreTrainedModel,
    requests: Sequence[Mapping[str, Any]],
    hparams: HyperParams,
    weights: Callable[[PreTrainedModel], Mapping[str, Tensor]],
    train: Callable[[PreTrainedModel, list[EditRequest]], Any],
    *,
    copy: bool,
    originals: bool,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Train, and note in the model's record what came of it.

    Args:
        model: The model; changed in place unless ``copy``.
        requests: EasyEdit's dictionaries.
        hparams: The settings, whose method the record names.
        weights: Of a model: those that train, by name.
        train: Trains a model and gives a report.
        copy: Train a deep copy.
        originals: Give what the weights were before.

    Returns:
        The trained model, and the original weights in main memory; empty unless asked for.

    Raises:
        RequestError: Unusable requests.
    """
    edits = to_requests(requests)
    if copy:
        model = copied(model)
    parameters = weights(model)
    before = {name: weight.detach().to("cpu", copy=True) for name, weight in parameters.items()} if originals else {}
    report = train(model, edits)
    record_of(model).edits.append(AppliedEdit(hparams.METHOD, tuple(edits), report))
    return model, before
