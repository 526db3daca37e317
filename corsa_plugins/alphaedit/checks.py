"""What cannot be edited is refused before anything is done, and named: requests, and weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.weights import Site
from corsa_plugins.data.contradictions import check_requests
from corsa_plugins.data.requests import EditRequest, Probe, RequestError, quoted
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, ArchitectureError, LinearMap
from corsa_plugins.model.limits import longest_text
from corsa_plugins.model.parts import as_linear_map
from corsa_plugins.model.placement import bring_in
from corsa_plugins.model.quantised import quantised_module
from corsa_plugins.model.tokenization import join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_edit", "check_restraint", "editable_maps"]

logger = logging.getLogger(__name__)


def check_edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    keep: Sequence[Probe],
    settings: AlphaEditSettings,
) -> None:
    """Refuse requests that cannot be edited, and probes that nothing can be validated on; say what contradicts itself.

    Raises:
        RequestError: There are no requests; or some have no subject; or a probe has no answer; or the model cannot read
            what is validated on. All of a kind are named.
    """
    if not requests:
        raise RequestError("there are no edit requests: give at least one")
    problems = [
        f"{request.name(i)}: has no subject, and its key is read at the last token of one: add the field"
        for i, request in enumerate(requests)
        if not request.subject
    ]
    if problems:
        raise RequestError(problems, f"{len(problems)} edit requests cannot be edited")
    for i, probe in enumerate(keep):
        if probe.answer is None:
            raise RequestError(f"keep[{i}] ({quoted(probe.prompt)}) has no answer: give the one that should stay")
    if settings.smoothing is not None:
        _check_lengths(model, tokenizer, requests, keep, bool(settings.values.chat_template))
    for conflict in check_requests(requests).contradictions:
        logger.warning(
            "requests %s contradict each other: the prompt %r is given %s; the edit lands between them",
            ", ".join(map(str, conflict.indices)),
            conflict.prompt,
            " and ".join(map(repr, conflict.targets)),
        )


def _check_lengths(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    keep: Sequence[Probe],
    chat_template: bool,
) -> None:
    """Of what is validated on; the search for values looks at the edit prompts."""
    limit = longest_text(model)
    if limit is None:
        return
    pairs = [(r.name(i), prompt, r.target_new) for i, r in enumerate(requests) for prompt in r.validation_prompts]
    pairs += [(f"keep[{i}]", probe.prompt, str(probe.answer)) for i, probe in enumerate(keep)]
    problems = []
    for name, prompt, answer in pairs:
        length = sum(map(len, join(tokenizer, prompt, answer, chat_template)))
        if length > limit:
            problems.append(
                f"{name}: {length} tokens to validate on, and the model reads {limit}: shorten {quoted(prompt)}"
            )
    if problems:
        raise RequestError(problems, f"{len(problems)} prompts to validate on are too long")


def editable_maps(architecture: Architecture, layers: Iterable[Site]) -> dict[Site, LinearMap]:
    """The FFN down maps of ``layers``, or other linear maps by name, whose weights a change can be written into; those
    that are offloaded are in memory from now on.

    Raises:
        SettingError: There is no such layer, or its weight is without values, or shared with another module.
        ArchitectureError: A block has no FFN that can be told, or a module is no linear map.
    """
    maps = {layer: _editable_map(architecture, layer) for layer in layers}
    names: dict[int, list[str]] = {}
    model: nn.Module = architecture.model
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for linear in maps.values():
        weight: Any = getattr(linear.module, linear.stored, None)
        if len(names.get(id(weight), [])) > 1:
            raise SettingError(
                f"{' and '.join(names[id(weight)])} are one weight: an edit of one would be an edit of all; give "
                "each a copy of its own first"
            )
    return maps


def check_restraint(maps: Mapping[Site, LinearMap], settings: AlphaEditSettings) -> None:
    """Refuse a restraint where there are no weights from before the edits to read.

    Raises:
        SettingError: There is a restraint, and one of the maps is quantised.
    """
    if settings.restraint is None:
        return
    for linear in maps.values():
        if linear.quantised:
            raise SettingError(
                f"{linear.name} is quantised, and the restraint of the settings (RECT, PRUNE, SPHERE) is made of the "
                "weights from before the edits: edit with alphaedit+ or another method without one, or load the model "
                "in bfloat16 or float32"
            )


def _editable_map(architecture: Architecture, layer: Site) -> LinearMap:
    linear = _named_map(architecture, layer) if isinstance(layer, str) else architecture.edited(layer)
    if linear.quantised:
        return linear  # whatever is changed lies beside it
    if linear.experts > 1 and (packed := quantised_module(architecture.model)) is not None:
        raise SettingError(
            f"{packed} is quantised, and {linear.name} is {linear.experts} routed experts, whose own weights an edit "
            "changes: the edited model could not be saved; load it in bfloat16 or float32"
        )
    bring_in(architecture.model, linear.name)
    if linear.parameter.is_meta:
        raise SettingError(f"{linear.name} is on meta, without values: load the model by a device map of accelerate's")
    return linear


def _named_map(architecture: Architecture, name: str) -> LinearMap:
    module = dict(architecture.model.named_modules()).get(name)
    linear = as_linear_map(name, module) if module is not None else None
    if linear is None:
        raise ArchitectureError(f"{name} is no linear map of this model, whose weight could be changed")
    return linear
