"""Where a LoRA layer reads, so that it reaches what its edits are about and little else.

A LoRA layer adds B A x to what its linear map makes of x. Trained from chance in every layer, A comes to read what all
prompts of a form have in common, which is the quickest way to the new answers, and other subjects get them too. Here A
is given and stays as it is, one row for each request, at the down maps of the FFNs of early blocks, where models look
up what they know of a subject at its last token (Meng et al., ROME and MEMIT). B alone is trained::

    A^T = c D (D^T D)^(-1/2),        D's columns: the directions of P (k_i / |k_i| + s_i / |s_i|)

k_i is the key of the request's subject in its prompt, s_i that of the subject with nothing before it; P takes off the
directions that hold most of the keys to preserve. The rows are orthogonal, each as near to its own direction as that
allows: what all subjects have in common would else be in every row, and be moved by every request. c makes what a row
reads at its own key a typical coordinate of what the block puts out there, over the number of layers: so Adam's rate is
in units of the model's own, as that of :class:`corsa_plugins.alphaedit.values.settings.ValueSettings` is where it is
relative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from corsa_plugins.alphaedit.auto.layers import likely_layers, windows
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.lookup.wider import of_subjects
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import Architecture, ArchitectureError, find_architecture
from corsa_plugins.model.batching import batches_by_length, pad
from corsa_plugins.model.borrowing import frozen, hooked
from corsa_plugins.model.running import logits_at, stopped_after

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PRESERVED", "early_layers", "read_directions"]

PRESERVED = 0.1
"""The share of the directions that is taken off: those that hold most of the keys to preserve."""

_BATCH = 32
_MOST_KEYS = 4096
_SAME = 1e-6  # of the largest eigenvalue: directions that are told apart by less are the same


def early_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """The first five blocks that facts are likely to be edited in."""
    return windows(likely_layers(len(find_architecture(model).blocks)))[0]


def read_directions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    preserved: Sequence[Sequence[int]] = (),
    chat_template: bool = False,
) -> dict[str, Tensor]:
    """A of each FFN's down map, by the map's name: (N, d_in) float32, a row for each request.

    Args:
        model: Without an adapter. It is run, and left as it is.
        tokenizer: Its tokenizer.
        requests: With subjects.
        layers: Blocks, counted from 0.
        preserved: Token ids of texts whose keys are to be preserved; without any, nothing is taken off.
        chat_template: Whether prompts are read through the tokenizer's chat template.

    Raises:
        RequestError: No requests, or some without a subject.
        SettingError: No such layer, or no layers.
        ArchitectureError: A block has no FFN that can be told, as one of experts.
    """
    parts = find_architecture(model)
    for layer in layers:
        mixture = parts.mixture(layer)
        if mixture is not None:
            raise ArchitectureError(
                f"{mixture.name} is a mixture of experts: PEFT takes an adapter of its shared expert for one of the "
                "routed ones, by its name; choose layers without experts"
            )
    reading: dict[str, Any] = {"chat_template": chat_template, "architecture": parts}
    keys = request_keys(model, tokenizer, requests, layers, ["{}"], **reading)
    bare = request_keys(model, tokenizer, of_subjects(requests), layers, ["{}"], **reading)
    kept = _all_keys(parts, preserved, layers) if preserved else {}
    found = {}
    for layer in layers:
        typical = request_outputs(model, tokenizer, requests, layer, **reading).double()
        unit = typical.pow(2).mean(0).sqrt() / len(layers)
        own, alone = keys[layer].double(), bare[layer].double()
        directions = own / own.norm(dim=0) + alone / alone.norm(dim=0)
        if layer in kept:
            directions = _without(directions, kept[layer].to(directions))
        rows = _orthogonal(directions)
        read = (rows * own).sum(0).abs().mean()
        found[parts.ffn(layer).down.name] = (rows * unit.mean() / read).T.float()
    return found


def _orthogonal(directions: Tensor) -> Tensor:
    """The orthonormal columns that are nearest to the directions (d, N) of as many; of the same ones, the same."""
    unit = directions / directions.norm(dim=0)
    values, vectors = torch.linalg.eigh(unit.T @ unit)
    inverse = torch.where(values > _SAME * values[-1], values.clamp(min=1e-300).rsqrt(), 0)
    return unit @ (vectors * inverse) @ vectors.T


def _without(directions: Tensor, keys: Tensor) -> Tensor:
    """Directions (d, N) less the share :data:`PRESERVED` of all d that holds most of the keys (d, M)."""
    energy, right = torch.linalg.eigh(keys.T @ keys)
    n = min(round(PRESERVED * len(keys)), int((energy > energy[-1] * 1e-10).sum()))
    basis = keys @ right[:, -n:] / energy[-n:].sqrt() if n else keys[:, :0]
    return directions - basis @ (basis.T @ directions)


def _all_keys(parts: Architecture, texts: Sequence[Sequence[int]], layers: Sequence[int]) -> Mapping[int, Tensor]:
    """The keys (d, M) of every token of some texts, or of evenly chosen ones where they are many."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with frozen(parts.model), stopped_after(parts, max(layers)):
        for batch in batches_by_length([len(text) for text in texts], _BATCH):
            ids, mask = pad([texts[index] for index in batch])
            chosen = mask.flatten().bool()

            def keep(layer: int, inputs: Tensor, chosen: Tensor = chosen) -> None:
                found[layer].append(inputs.reshape(-1, inputs.shape[-1])[chosen.to(inputs.device)].double())

            with ExitStack() as stack:
                for layer in layers:
                    module: nn.Module = parts.ffn(layer).down.module
                    stack.enter_context(hooked(module, lambda _, args, at=layer: keep(at, args[0]), before=True))
                zero = torch.zeros(1, dtype=torch.long)
                logits_at(parts, ids, mask, zero, zero)
    keys = {layer: torch.cat(rows) for layer, rows in found.items()}
    return {layer: rows[:: 1 + len(rows) // _MOST_KEYS].T for layer, rows in keys.items()}
