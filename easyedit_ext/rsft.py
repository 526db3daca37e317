"""R-SFT as EasyEdit calls a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.rsft import rsft, trainable_parameters
from easyedit_ext.hparams import RSFTHyperParams
from easyedit_ext.hparams.base import expect, fields_named
from easyedit_ext.in_place import train_in_place
from easyedit_ext.method import EasyEditMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["EASYEDIT", "apply_rsft_to_model"]


@fields_named(RSFTHyperParams)
def apply_rsft_to_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: RSFTHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Teach a model the requests by R-SFT; see :func:`corsa_plugins.rsft.rsft`.

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
        NonFiniteLossError: NaN or infinity, naming the request. The weights are as before, bit for bit.
    """
    expect(hparams, RSFTHyperParams)
    settings = hparams.settings(_modules(model, hparams))
    return train_in_place(
        model,
        requests,
        hparams,
        lambda model: trainable_parameters(model, settings),
        lambda model, edits: rsft(model, tok, edits, settings),
        copy=copy,
        originals=return_orig_weights,
    )


EASYEDIT = EasyEditMethod(RSFTHyperParams.METHOD, apply_rsft_to_model, "left")
"""Padded as EasyEdit pads for its FT; the method itself works with either side."""


def _modules(model: PreTrainedModel, hparams: RSFTHyperParams) -> list[str]:
    """Names of the modules that train."""
    if hparams.modules is not None:
        return hparams.modules
    if hparams.mlp_module_tmp is not None:
        return [hparams.mlp_module_tmp.format(layer) for layer in hparams.layers]
    architecture = find_architecture(model)
    return [name for layer in hparams.layers for name in architecture.trained(layer)]
