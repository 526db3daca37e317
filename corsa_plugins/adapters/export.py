"""The edits of a state as a LoRA adapter of the model from before them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from corsa_plugins.adapters.compression import KeyMoment, compress
from corsa_plugins.adapters.efficacy import Asked, changed, share_answered
from corsa_plugins.adapters.folder import DTYPES, LoraAdapter, write_adapter
from corsa_plugins.adapters.low_rank import LowRank, joined
from corsa_plugins.adapters.routed import RoutedLowRank, compress_experts
from corsa_plugins.adapters.servers import VLLM_RANKS, check_rank
from corsa_plugins.adapters.sites import changed_names, experts_at, fused_experts
from corsa_plugins.alphaedit import EditBatch, EditState, KeyStatistics, StateError
from corsa_plugins.alphaedit.checks import editable_maps
from corsa_plugins.alphaedit.weights import Site
from corsa_plugins.errors import SettingError
from corsa_plugins.outputs import check_output

__all__ = ["AdapterForm", "Exported", "ModuleExport", "export_state", "state_adapter"]


@dataclass(frozen=True)
class AdapterForm:
    """What an adapter is to be like.

    Attributes:
        rank: Compress what has more; ``None``: as many as there are, and nothing is lost.
        max_rank: The most it may have, or it is refused. The default is the most that vLLM takes.
        dtype: Of the factors: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        statistics: Of the keys to preserve, for the norm that a compression is best in; ``None``: of the edits' alone.

    Raises:
        SettingError: A value is out of its range.
    """

    rank: int | None = None
    max_rank: int = VLLM_RANKS[-1]
    dtype: str = "float32"
    statistics: KeyStatistics | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise SettingError(f"rank is {self.rank}: it must be at least 1")
        if self.dtype not in DTYPES:
            raise SettingError(f"the adapter's dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}")

    def moment(self, layer: Site, keys: Tensor | None) -> KeyMoment:
        """C of a layer, whose edits have these keys."""
        if self.statistics is None or not isinstance(layer, int) or layer not in self.statistics.layers:
            return KeyMoment(None, keys)
        return KeyMoment(self.statistics.moment(layer), keys)


@dataclass(frozen=True)
class ModuleExport:
    """What became of one module's change; of routed experts, of the one with most of each.

    Attributes:
        ranks: Of the change.
        rank: In the adapter, without what is padded.
        loss: Relative norm of what was left out, on the keys; 0 where nothing was.
    """

    ranks: int
    rank: int
    loss: float


@dataclass(frozen=True)
class Exported:
    """An adapter that was written.

    Attributes:
        path: Its folder.
        rank: Of the adapter.
        modules: By name.
        efficacy: Shares of the edits' prompts answered as asked, with the whole change and with the adapter; ``None``
            where no model was given to ask, or there was nothing to ask it.
        beside_experts: Whether the model has fused experts: PEFT alone loads the adapter then.
    """

    path: Path
    rank: int
    modules: Mapping[str, ModuleExport]
    efficacy: tuple[float, float] | None = None
    beside_experts: bool = False


def state_adapter(
    state: EditState, batches: Sequence[str] = (), form: AdapterForm | None = None, base: str | None = None
) -> tuple[LoraAdapter, dict[str, ModuleExport]]:
    """A state's edits as an adapter, in memory.

    Args:
        state: With at least one batch.
        batches: Names of those to take; by default all. Sums of their adapters are the adapter of all.
        form: What it is to be like.
        base: What the base model is called; by default as the state knows it.

    Raises:
        StateError: No such batch, or none at all.
        SettingError: The rank is too large, or nothing says what the base is called, or what is in the weights is not
            the sum of the updates.
    """
    form = form or AdapterForm()
    chosen = [state.batch(name) for name in batches] or list(state.batches)
    if not chosen:
        raise StateError("the edit state has no batch in force: there is nothing to export")
    held = [batch.name for batch in chosen if batch.restraint is not None and not batch.restraint.linear]
    if held:
        raise SettingError(
            f"the weights hold another thing than the sum of the updates of {', '.join(held)}, by the restraint of "
            "their settings (RECT, PRUNE), and an adapter would add that sum: export the edited model, compared with "
            "the one it was made from"
        )
    base = base or state.fingerprint.name
    if not base:
        raise SettingError("the edit state does not say what its model is called: give the model")
    updates: dict[str, LowRank | RoutedLowRank] = {}
    told: dict[str, ModuleExport] = {}
    for layer, name in changed_names(state).items():
        held_by = [batch for batch in chosen if layer in batch.layers]
        if held_by:
            updates[name], told[name] = _module(state, layer, held_by, form)
    largest = max(told, key=lambda name: told[name].rank)
    check_rank(told[largest].rank, form.max_rank, f"the edits in force at {largest}", _ways(chosen))
    transposed = _transposed(state, next(site for site in state.modules if any(site in b.layers for b in chosen)))
    return LoraAdapter(base, updates, transposed, _about(state, chosen), bool(fused_experts(state))), told


def export_state(
    state: EditState,
    out: str | os.PathLike[str],
    *,
    batches: Sequence[str] = (),
    form: AdapterForm | None = None,
    base: str | None = None,
    asked: Asked | None = None,
    card: Callable[[Path, Exported], object] | None = None,
) -> Exported:
    """Write a state's edits as a LoRA adapter that PEFT, vLLM and llama.cpp's converter read; of a model with fused
    experts PEFT alone (0.19 and later), by ``target_parameters``.

    Without a smaller rank it is equal to the edited model: W0 + left right^T in either, but for rounding.

    Args:
        state, batches, form, base: As for :func:`state_adapter`.
        out: A new or empty folder.
        asked: The base model, to see that it is the one, and to ask it the edits' prompts where ranks are left out.
        card: Called with the folder when everything else is in it, and before it is ``out``, and with what it holds.

    Raises:
        StateError: No such batch; or the model is another one, has changed since, or holds edits already.
        StatisticsError: The statistics are of another model.
        SettingError, OutputError: As for :func:`~corsa_plugins.adapters.folder.write_adapter` and
            :func:`state_adapter`. Nothing is written then.
    """
    check_output(out)
    form = form or AdapterForm()
    if asked is not None:
        check_base(state, asked)
        if form.statistics is not None:
            form.statistics.check(asked.model, asked.architecture)
    adapter, told = state_adapter(state, batches, form, base)
    efficacy = None
    if asked is not None and any(module.rank < module.ranks for module in told.values()):
        efficacy = _efficacy(state, [state.batch(name) for name in batches] or list(state.batches), adapter, asked)
    exported = Exported(Path(out), adapter.rank, told, efficacy, adapter.beside_experts)
    write_adapter(adapter, out, form.dtype, (lambda folder: card(folder, exported)) if card else None)
    return exported


def check_base(state: EditState, asked: Asked) -> None:
    """See that a model is the one that a state's edits were made on, without any of them.

    Raises:
        StateError: It is not; the message says what it is.
    """
    maps = editable_maps(asked.parts, state.modules)
    state.check(asked.model, maps, asked.architecture)
    count = state.in_force(maps)
    names = ", ".join(state.modules.values())
    if count is None:
        raise StateError(
            f"the weights of {names} are neither the originals of the edit state nor what its edits left: the model "
            "has changed since. An adapter is of the model from before the edits: give that one"
        )
    if count:
        held = ", ".join(batch.name for batch in state.batches[:count])
        raise StateError(
            f"the model holds the batches {held} in its weights: an adapter would add them again. Give the model from "
            f"before the edits{f', {state.fingerprint.name}' if state.fingerprint.name else ''}"
        )


def _efficacy(
    state: EditState, batches: Sequence[EditBatch], adapter: LoraAdapter, asked: Asked
) -> tuple[float, float] | None:
    """Each batch is asked in the form that it was edited in."""
    told = [batch for batch in batches if batch.requests]
    if not told:
        return None
    layers = {name: layer for layer, name in changed_names(state).items()}
    found = editable_maps(asked.parts, state.modules)
    maps = {name: found[layers[name]] for name in adapter.updates}
    whole = {name: _joined(state, layers[name], [b for b in batches if layers[name] in b.layers]) for name in maps}
    left = {name: u if isinstance(u, LowRank) else u.side_by_side() for name, u in adapter.updates.items()}
    total = sum(len(batch.requests) for batch in told)
    shares = []
    for updates in (whole, left):
        with changed(maps, updates):
            answered = sum(
                len(batch.requests) * share_answered(asked, batch.requests, bool(batch.settings.values.chat_template))
                for batch in told
            )
        shares.append(answered / total)
    return shares[0], shares[1]


def _module(
    state: EditState, layer: Site, batches: Sequence[EditBatch], form: AdapterForm
) -> tuple[LowRank | RoutedLowRank, ModuleExport]:
    """The change that some batches make of a layer, as it is in an adapter."""
    experts, update = experts_at(state, layer), _joined(state, layer, batches)
    moment = form.moment(layer, torch.cat([batch.layers[layer].keys for batch in batches], 1))
    if experts > 1:
        routed = compress_experts(update, experts, form.rank, moment)
        return routed.update, ModuleExport(routed.needed, routed.update.rank, routed.loss)
    compressed = compress(update, form.rank or update.rank, moment)
    narrow = compressed.update.narrowed()
    return narrow, ModuleExport(update.rank, narrow.rank, compressed.loss)


def _joined(state: EditState, layer: Site, batches: Sequence[EditBatch]) -> LowRank:
    """What some batches put into the weight of a layer, in sum."""
    return joined([state.part(batch, layer, experts_at(state, layer)) for batch in batches])


def _ways(batches: Sequence[EditBatch]) -> str:
    if len(batches) == 1:
        return "--rank compresses it"
    counts = ", ".join(f"{batch.name}: {max(p.left.shape[1] for p in batch.layers.values())}" for batch in batches)
    return f"--batch exports single batches ({counts}), and --rank compresses"


def _transposed(state: EditState, layer: Site) -> bool:
    """Whether the model stores these weights as (d_in, d_out); of square ones the model's type tells."""
    if state.originals[layer].dim() == 3:  # quantised maps are never stored as Conv1D stores its weight
        return False
    d_out, d_in = state.originals[layer].shape
    stored = state.fingerprint.shapes.get(f"{state.modules[layer]}.weight")
    return stored == (d_in, d_out) if d_in != d_out else state.fingerprint.model_type in ("gpt2", "openai-gpt")


def _about(state: EditState, batches: Sequence[EditBatch]) -> dict[str, object]:
    named = [{"name": batch.name, "requests": len(batch.requests)} for batch in batches]
    return {"fingerprint": replace(state.fingerprint).as_dict(), "batches": named}
