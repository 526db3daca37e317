"""What tells an edited model from its base, as a LoRA adapter: R-SFT, merges, any training of linear maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corsa_plugins.adapters.compression import KeyMoment, compress, needed_rank
from corsa_plugins.adapters.efficacy import Asked, changed, share_answered
from corsa_plugins.adapters.export import AdapterForm, Exported, ModuleExport
from corsa_plugins.adapters.folder import AdapterError, LoraAdapter, write_adapter
from corsa_plugins.adapters.low_rank import LowRank
from corsa_plugins.adapters.servers import check_rank
from corsa_plugins.adapters.sites import down_maps
from corsa_plugins.alphaedit.lookup.keys import request_keys
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import LinearMap
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.model.parts import as_linear_map
from corsa_plugins.model.placement import bring_in, named_values
from corsa_plugins.model.quantised import refuse_quantised
from corsa_plugins.outputs import check_output

__all__ = ["export_difference"]


@torch.no_grad()
def export_difference(
    edited: nn.Module,
    base: Asked,
    out: str | os.PathLike[str],
    *,
    form: AdapterForm | None = None,
    called: str | None = None,
    requests: Sequence[EditRequest] = (),
    card: Callable[[Path, Exported], object] | None = None,
) -> Exported:
    """Write the difference of two models as a LoRA adapter of the base.

    Exact, up to the rounding of the edited weights, where the rank suffices: without a rank in ``form``, each matrix
    takes as many as that needs, mostly all there are for weights that were trained or pruned. A smaller one is the best
    in the norm of the keys, where they are known: for the FFNs' down maps, from statistics and requests.

    Args:
        edited: The edited model.
        base: The model from before; left as it is.
        out: A new or empty folder.
        form: What the adapter is to be like.
        called: What the base model is called; by default as its configuration says.
        requests: The edits: their keys count in the norm, and their prompts are asked before and after compression.
        card: As for :func:`~corsa_plugins.adapters.export.export_state`.

    Raises:
        AdapterError: The models do not differ, or in something else than the weights of linear maps, which is named.
        SettingError, OutputError: As for :func:`~corsa_plugins.adapters.export.export_state`.
    """
    check_output(out)
    for model in (edited, base.model):
        refuse_quantised(model, "a difference is taken of weights")
    form = form or AdapterForm()
    called = called or str(getattr(base.model.config, "_name_or_path", "") or "")
    if not called:
        raise SettingError("the base model does not say what it is called: give its name")
    downs = down_maps(base.parts)
    updates: dict[str, LowRank] = {}
    told: dict[str, ModuleExport] = {}
    whole: dict[str, LowRank] = {}
    maps = dict(_changed_maps(edited, base.model))
    for name, (before, after) in maps.items():
        delta = after.weight.double().cpu() - before.weight.double().cpu()
        update = LowRank.of(delta)
        epsilon = max(torch.finfo(after.weight.dtype).eps, 2.0**-24)
        needed = needed_rank(update, epsilon * float(after.weight.double().norm()))
        moment = _moment(form, base, downs.get(name), requests)
        compressed = compress(update, min(form.rank or needed, needed), moment if form.rank else None)
        updates[name], whole[name] = compressed.update, update
        told[name] = ModuleExport(needed, compressed.update.rank, compressed.loss if form.rank else 0.0)
    if not updates:
        raise AdapterError("the two models are equal: there is nothing to export")
    largest = max(told, key=lambda name: told[name].rank)
    check_rank(told[largest].rank, form.max_rank, f"what {largest} needs to be exact", "--rank compresses it")
    transposed = [before.transposed for before, _ in maps.values()]
    if len(set(transposed)) > 1:
        raise AdapterError("some of the changed weights are stored transposed, and some not: no adapter holds both")
    about = {"fingerprint": Fingerprint.of(base.model, base.architecture).as_dict()}
    adapter = LoraAdapter(called, updates, transposed[0], about)
    efficacy = None
    if requests and any(module.rank < module.ranks for module in told.values()):
        befores = {name: before for name, (before, _) in maps.items()}
        for name in befores:
            bring_in(base.model, name)
        with changed(befores, whole):
            share = share_answered(base, requests, base.chat_template)
        with changed(befores, updates):
            efficacy = share, share_answered(base, requests, base.chat_template)
    exported = Exported(Path(out), adapter.rank, told, efficacy)
    write_adapter(adapter, out, form.dtype, (lambda folder: card(folder, exported)) if card else None)
    return exported


def _changed_maps(edited: nn.Module, base: nn.Module) -> Iterator[tuple[str, tuple[LinearMap, LinearMap]]]:
    """The linear maps whose weights differ, by name.

    Raises:
        AdapterError: Something else differs.
    """
    after = dict(named_values(edited))
    before = dict(named_values(base))
    if after.keys() != before.keys() or any(after[name].shape != before[name].shape for name in before):
        names = [n for n in {**before, **after} if _shape(before.get(n)) != _shape(after.get(n))]
        raise AdapterError(
            f"these are two architectures: {names[0]} is not the same in both; give the model from before"
        )
    for name, parameter in before.items():
        if torch.equal(parameter.cpu(), after[name].to(parameter.dtype).cpu()):
            continue
        module, _, part = name.rpartition(".")
        pair = [as_linear_map(module, model.get_submodule(module)) for model in (base, edited)]
        if part != "weight" or pair[0] is None or pair[1] is None:
            raise AdapterError(f"{name} differs, and is no linear map's weight: a LoRA adapter cannot hold it")
        yield module, (pair[0], pair[1])


def _shape(parameter: Tensor | None) -> Any:
    return None if parameter is None else parameter.shape


def _moment(form: AdapterForm, base: Asked, layer: int | None, requests: Sequence[EditRequest]) -> KeyMoment:
    if layer is None or form.rank is None:
        return KeyMoment()
    keys = None
    located = [request for request in requests if request.subject]
    if located:
        found = request_keys(
            base.model, base.tokenizer, located, [layer], ["{}"], chat_template=base.chat_template,
            architecture=base.architecture,
        )  # fmt: skip
        keys = found[layer].cpu()
    return form.moment(layer, keys)
