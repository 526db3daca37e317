"""LocFT-BF as EasyEdit calls a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from corsa_plugins.methods.effect import RequestEffect, effect_of
from corsa_plugins.methods.locft.train import LocFTReport, locft, weights_of
from easyedit_ext.hparams import LocFTBFHyperParams
from easyedit_ext.hparams.base import expect, fields_named
from easyedit_ext.in_place import train_in_place
from easyedit_ext.method import EasyEditMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.data.requests import EditRequest

__all__ = ["EASYEDIT", "TaughtRequests", "apply_locft_bf_to_model"]


@dataclass(frozen=True)
class TaughtRequests:
    """What one training did.

    Attributes:
        training: Its epochs and steps.
        requests: What the model answers to each request when it is done.
    """

    training: LocFTReport
    requests: tuple[RequestEffect, ...]

    def __str__(self) -> str:
        """One line."""
        taken, epochs = sum(request.taken for request in self.requests), len(self.training.losses)
        told = f"{taken} of {len(self.requests)} facts learned in {epochs} epochs and {self.training.steps} steps"
        return f"{told}; mean loss {self.training.losses[-1]:.3g} in the last one"


@fields_named(LocFTBFHyperParams)
def apply_locft_bf_to_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: LocFTBFHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Teach a model the requests by LocFT-BF; see :func:`corsa_plugins.methods.locft.train.locft`.

    Args:
        model: The model; changed in place unless ``copy``.
        tok: Its tokenizer; the padding side makes no difference.
        requests: EasyEdit's dictionaries; see :func:`easyedit_ext.requests.to_requests`.
        hparams: The settings.
        copy: Edit a deep copy, and leave ``model`` alone.
        return_orig_weights: Return what the trained weights were before.
        keep_original_weight: Accepted as other methods do; the original weights are in what is returned.
        **kwargs: What ``BaseEditor`` passes to every method; not used.

    Returns:
        The edited model, and the original weights by parameter name, in main memory; empty unless asked for.

    Raises:
        RequestError, SettingError, ArchitectureError: Unusable requests or settings. The model is as before.
        NonFiniteLossError: NaN or infinity. The weights are as before, bit for bit.
    """
    expect(hparams, LocFTBFHyperParams)
    settings = hparams.settings()

    def teach(model: PreTrainedModel, edits: list[EditRequest]) -> TaughtRequests:
        training = locft(model, tok, edits, settings, seed=hparams.seed)
        effect = effect_of(model, tok, edits, chat_template=bool(settings.chat_template))
        return TaughtRequests(training, effect.requests)

    return train_in_place(
        model,
        requests,
        hparams,
        lambda model: weights_of(model, settings),
        teach,
        copy=copy,
        originals=return_orig_weights,
    )


EASYEDIT = EasyEditMethod(LocFTBFHyperParams.METHOD, apply_locft_bf_to_model, "left")
"""Padded as EasyEdit pads for its FT; the method itself works with either side."""
