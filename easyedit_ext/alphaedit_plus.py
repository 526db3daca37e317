"""AlphaEdit+ as EasyEdit calls a method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from corsa_plugins.alphaedit import AlphaEditor, EditState, StateError
from corsa_plugins.alphaedit.transaction import EditedWeights
from corsa_plugins.alphaedit.weights import Site
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import LinearMap
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.model.quantised import refuse_quantised
from easyedit_ext.hparams import AlphaEditPlusHyperParams
from easyedit_ext.hparams.base import expect, fields_named
from easyedit_ext.method import EasyEditMethod
from easyedit_ext.records import AppliedEdit, copied, record_of
from easyedit_ext.requests import to_requests
from easyedit_ext.statistics import ProjectorKeys, preserved_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.model.architecture import Architecture

__all__ = ["EASYEDIT", "apply_alphaedit_plus_to_model", "known_state", "put_in_force"]

logger = logging.getLogger(__name__)


@fields_named(AlphaEditPlusHyperParams)
def apply_alphaedit_plus_to_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: AlphaEditPlusHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    reset_cache: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Edit a model with AlphaEdit+; see :class:`corsa_plugins.alphaedit.AlphaEditor`.

    Edits that are in force on this model count as earlier edits; those whose weights were put back since, as
    ``BaseEditor`` does without ``sequential_edit``, are forgotten.

    Args:
        model: The model; changed in place unless ``copy``.
        tok: Its tokenizer; the padding side makes no difference.
        requests: EasyEdit's dictionaries, each with a subject; see :func:`easyedit_ext.requests.to_requests`.
        hparams: The settings.
        copy: Edit a deep copy, and leave ``model`` alone.
        return_orig_weights: Return what the edited weights were before this call.
        keep_original_weight: Accepted as other methods do; the original weights are in what is returned.
        reset_cache: Forget all earlier edits: the weights as they are count as the originals.
        **kwargs: What ``BaseEditor`` passes to every method; not used.

    Returns:
        The edited model, and the original weights by parameter name, in main memory; empty unless asked for.

    Raises:
        RequestError, SettingError, ArchitectureError: Unusable requests or settings.
        StatisticsError: There are no statistics of the preserved keys of this model, and none can be collected.
        StateError: Something else changed the edited weights since the last edit.
        EditError: NaN or infinity, naming the layer.

        Whatever is raised, the weights are as before, bit for bit.
    """
    expect(hparams, AlphaEditPlusHyperParams)
    edits = to_requests(requests)
    if copy:
        model = copied(model)
    refuse_quantised(model, "EasyEdit takes weights and gives them back")
    record = record_of(model)
    settings, architecture = hparams.settings(), hparams.architecture(model)
    _refuse_experts(architecture, settings.layers)
    keys = preserved_keys(model, tok, hparams, architecture, record.statistics)
    if isinstance(keys.statistics, ProjectorKeys):  # which has no order of eigenvectors, as was said when it was found
        settings = replace(settings, search=None)
    state = _present_state(model, None if reset_cache else known_state(model), hparams, architecture)
    editor = AlphaEditor(model, tok, keys.statistics, settings, state=state, architecture=architecture)
    originals = {}
    if return_orig_weights:
        for layer in settings.layers:
            down = architecture.ffn(layer).down
            parameter: Any = down.module.weight
            originals[f"{down.name}.weight"] = parameter.detach().to("cpu", copy=True)
    try:
        report = editor.edit(edits)
    finally:
        if editor.state is not state:  # an edit that is made is remembered, whatever interrupts what follows
            record.state = editor.state
    record.edits.append(AppliedEdit(hparams.METHOD, tuple(edits), report, keys.source))
    return model, originals


def _refuse_experts(architecture: Architecture, layers: Sequence[int]) -> None:
    for layer in layers:
        edited = architecture.edited(layer)
        if edited.experts > 1:
            raise SettingError(
                f"layers: {edited.name} is {edited.experts} routed experts, and EasyEdit knows one down map a layer: "
                "edit with corsa edit, or corsa_plugins.alphaedit.AlphaEditor"
            )


def _present_state(
    model: PreTrainedModel, known: EditState | None, hparams: AlphaEditPlusHyperParams, architecture: Architecture
) -> EditState:
    """The edits in force, of the model as it is now."""
    now = Fingerprint.of(model, architecture)
    if known is None:
        return EditState(now, contexts=tuple(hparams.contexts or ()))
    if hparams.contexts is not None and tuple(hparams.contexts) != known.contexts:
        logger.warning("contexts: the edits in force were made with %s, which this one uses too", list(known.contexts))
    different = known.fingerprint.difference(now)
    if different is None:
        return known
    # the record is of this very object, and the edited weights are those that the state knows
    logger.warning(
        "something else has changed this model since the last AlphaEditPlus edit (%s): the edits in force stay, with "
        "the keys that they had then",
        different,
    )
    return replace(known, fingerprint=now)


EASYEDIT = EasyEditMethod(AlphaEditPlusHyperParams.METHOD, apply_alphaedit_plus_to_model, "right")
"""Padded as EasyEdit pads for its AlphaEdit; the method itself works with either side."""


def known_state(model: nn.Module) -> EditState | None:
    """The AlphaEdit+ edits in force on a model, without those that someone has taken back by restoring its weights.

    Returns:
        The state; ``None`` if no edit is in force.

    Raises:
        StateError: The weights are neither those after an edit nor those from before one.
    """
    state = record_of(model).state
    if state is None or not state.batches:
        return None
    count = state.in_force(_maps(model, state))
    if count is None:
        raise StateError(
            f"the weights of {', '.join(state.modules.values())} are neither what the last AlphaEditPlus edit left nor "
            "what they were before one: something else changed them. Put them back, or call easyedit_ext.reset(model) "
            "to take them as the originals"
        )
    return state.first(count) if count else None


def put_in_force(model: PreTrainedModel, state: EditState) -> EditState:
    """Give a model the edits of a state, if it has not got them.

    Returns:
        The state, with what these weights are now: sums may round in another way than where the edits were made.

    Raises:
        StateError: The state is of another model, or the weights are none that it knows. Nothing is changed.
    """
    try:
        maps = _maps(model, state)
    except AttributeError as error:
        raise StateError(f"the edit state was made on another model: {error}") from None
    state.check(model, maps)
    if state.in_force(maps) is None:
        raise StateError(
            f"the weights of {', '.join(state.modules.values())} are neither the originals of these edits nor edited "
            "by them: load the model they were made on"
        )
    weights = EditedWeights(state, maps)
    weights.apply()
    return weights.state


def _maps(model: nn.Module, state: EditState) -> dict[Site, LinearMap]:
    """The linear maps that a state edits. Looked up each time: a record that held them would keep its model alive."""
    maps: dict[Site, LinearMap] = {}
    for layer, name in state.modules.items():
        d_out, d_in = state.originals[layer].shape[:2]
        maps[layer] = LinearMap(name, model.get_submodule(name), d_in, d_out)
    return maps
