"""K1 and W K1: the keys of edit requests, and what a block puts out at the same tokens (Meng et al., MEMIT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from corsa_plugins.alphaedit.lookup.contexts import BARE, check_contexts, context_weights
from corsa_plugins.alphaedit.lookup.rows import Row, prompt_rows
from corsa_plugins.alphaedit.lookup.subjects import FactToken
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, LinearMap, RoutedExperts, find_architecture
from corsa_plugins.model.batching import batches_by_length, pad
from corsa_plugins.model.borrowing import frozen, hooked
from corsa_plugins.model.running import hidden_states, logits_at, stopped_after

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["request_keys", "request_outputs"]


# Nine parameters: a model's, how its prompts are read, and what most callers leave to be found.
def request_keys(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    contexts: Sequence[str],
    *,
    batch_size: int = 128,
    fact_token: FactToken = "subject_last",
    chat_template: bool = False,
    architecture: Architecture | None = None,
) -> dict[int, Tensor]:
    """K1 of each layer: the input of its FFN's down map where each request looks its fact up; of routed experts side by
    side the keys of all of them, weighted by the gates, which are zero but for the experts that the token takes.

    A key is the mean over the kinds of context, the bare prompt and the generated ones, of the mean within the kind
    (Meng et al., MEMIT): the bare prompt weighs a half, the others share a half.

    Args:
        model: A causal language model of transformers, on any device. It is run, and left as it is.
        tokenizer: Its tokenizer; the padding side makes no difference.
        requests: With subjects.
        layers: Blocks, counted from 0. One pass serves them all; blocks above the highest are not run.
        contexts: As :func:`corsa_plugins.alphaedit.lookup.contexts.generate_contexts` gives them; ``"{}"`` comes first.
        batch_size: Texts per forward pass, each request being one in each context.
        fact_token: Which token of the subject.
        chat_template: Whether prompts are read through the tokenizer's chat template, contexts and all.
        architecture: By default what :func:`corsa_plugins.model.architecture.find_architecture` finds.

    Returns:
        Layer -> (d_in, N), float32 or the model's precision where that is higher, on the layer's device; a column
        per request, in their order.

    Raises:
        RequestError: No requests, or, listed together, those without a subject or too long for the model.
        SettingError: No such layer, no layers, or contexts that are not templates.
        ArchitectureError: A block has no FFN that can be told, or routed experts put out another thing than their keys
            say.
    """
    parts = architecture or find_architecture(model)
    check_contexts(contexts)
    if not layers:
        raise SettingError("layers is empty: name at least one block")
    maps = {layer: parts.edited(layer) for layer in layers}
    groups = prompt_rows(model, tokenizer, requests, contexts, fact_token, chat_template)
    rows = [row for group in groups for row in group]
    captured = _at_positions(parts, rows, maps, batch_size)
    weights = context_weights(contexts)
    return {
        layer: torch.einsum("ncd,c->dn", keys.view(len(requests), len(contexts), -1), weights.to(keys))
        for layer, keys in captured.items()
    }


# Nine parameters, as those of request_keys.
def request_outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    layer: int,
    *,
    batch_size: int = 128,
    fact_token: FactToken = "subject_last",
    chat_template: bool = False,
    architecture: Architecture | None = None,
    site: nn.Module | None = None,
) -> Tensor:
    """What block ``layer`` puts out where each request looks its fact up, in the bare prompt.

    Args and errors are those of :func:`request_keys`; ``site`` is a module of the block to listen to instead.

    Returns:
        (hidden, N), float32 or the model's precision where that is higher; a column per request.
    """
    parts = architecture or find_architecture(model)
    module = parts.block(layer).module if site is None else site
    groups = prompt_rows(model, tokenizer, requests, [BARE], fact_token, chat_template)
    rows = [row for group in groups for row in group]
    return _at_positions(parts, rows, {layer: module}, batch_size)[layer].t().contiguous()


def _at_positions(
    parts: Architecture, rows: Sequence[Row], watched: Mapping[int, LinearMap | nn.Module], batch_size: int
) -> dict[int, Tensor]:
    """(rows, width) at the position of each row: of a linear map its input, of a module its output."""
    batches = list(batches_by_length([len(row.ids) for row in rows], batch_size))
    captured: dict[int, list[Tensor]] = {layer: [] for layer in watched}
    with frozen(parts.model), stopped_after(parts, max(watched)):
        for indices in batches:
            batch = [rows[index] for index in indices]
            ids, mask = pad([row.ids for row in batch])
            number = torch.arange(len(batch))
            positions = torch.tensor([row.position for row in batch])

            def keep(layer: int, values: Tensor) -> None:
                captured[layer].append(values.to(torch.promote_types(values.dtype, torch.float32)))

            with ExitStack() as stack:
                for layer, what in watched.items():
                    first = not captured[layer]
                    stack.enter_context(_watched(what, partial(keep, layer), (*ids.shape,), positions, first))
                logits_at(parts, ids, mask, number[:1], positions[:1])
    order = torch.tensor([index for indices in batches for index in indices])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return {layer: torch.cat(values)[back.to(values[0].device)] for layer, values in captured.items()}


def _watched(
    what: LinearMap | nn.Module, keep: Callable[[Tensor], None], shape: tuple[int, int], at: Tensor, first: bool
) -> AbstractContextManager[None]:
    """Within the block ``keep`` is given what there is at positions ``at`` of rows of this shape, a row each."""

    def chosen(values: Any) -> Tensor:
        values = hidden_states(values)
        # Some FFNs work on (rows * length, width); of several streams the first is the one that FFNs add to.
        values = values.reshape(-1, *shape, values.shape[-1])[0]
        result: Tensor = values[torch.arange(len(at), device=values.device), at.to(values.device)]
        return result

    if isinstance(what, RoutedExperts):
        experts = what

        def read(_: nn.Module, args: Any, kwargs: Any) -> None:
            if first:
                experts.check(args, kwargs)
            keep(experts.keys(args, kwargs, torch.arange(len(at)) * shape[1] + at).dense())

        return hooked(experts.module, read, before=True, with_kwargs=True)
    if isinstance(what, LinearMap):
        return hooked(what.module, lambda _, args: keep(chosen(args[0])), before=True)
    return hooked(what, lambda _, args, output: keep(chosen(output)))
