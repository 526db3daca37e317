"""A LoRA adapter as a batch of an edit state, which can be taken out again as any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.adapters.folder import AdapterError, LoraAdapter
from corsa_plugins.adapters.low_rank import LowRank
from corsa_plugins.adapters.routed import RoutedLowRank
from corsa_plugins.adapters.sites import down_maps
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditBatch, EditState
from corsa_plugins.alphaedit.checks import editable_maps
from corsa_plugins.alphaedit.weights import Site
from corsa_plugins.model.architecture import Architecture, find_architecture
from corsa_plugins.model.identity import Fingerprint, FingerprintError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["adapter_sites", "adopt_adapter", "adopting_editor"]


def adapter_sites(adapter: LoraAdapter, architecture: Architecture) -> dict[Site, LowRank]:
    """The changes of an adapter as an edit state names them: FFN down maps, and routed experts, by the block, other
    linear maps by name.

    Raises:
        AdapterError: It changes a module that the model does not have, or has in another shape, or other experts.
        SettingError, ArchitectureError: A weight cannot be changed: quantised, offloaded, shared, or no linear map's.
    """
    downs = down_maps(architecture)
    there = {name for name, _ in architecture.model.named_modules()}
    there |= {name for name, _ in architecture.model.named_parameters()}
    foreign = [name for name in adapter.updates if name not in there]
    if foreign:
        raise AdapterError(f"the adapter changes {_few(foreign)}, which this model has not: it is of another base")
    unknown = [n for n, update in adapter.updates.items() if isinstance(update, RoutedLowRank) and n not in downs]
    if unknown:
        raise AdapterError(
            f"the adapter changes {_few(unknown)}: of experts a state knows the down maps of routed ones, where no "
            f"expert is shared ({_few(list(downs))})"
        )
    sites: dict[Site, LowRank] = {
        downs.get(name, name): update if isinstance(update, LowRank) else update.side_by_side()
        for name, update in adapter.updates.items()
    }
    for site, linear in editable_maps(architecture, sites).items():
        shape = (len(sites[site].left), len(sites[site].right))
        if shape != (linear.d_out, linear.d_in):
            raise AdapterError(
                f"the adapter changes {linear.name} by a matrix of {shape[0]} x {shape[1]}, and this model has "
                f"{linear.d_out} x {linear.d_in} there: it is of another base"
            )
    return sites


def adopting_editor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: LoraAdapter,
    state: EditState | None = None,
    architecture: Architecture | None = None,
) -> AlphaEditor:
    """An editor on an adapter's base that can take it up, with the edits of ``state`` in force.

    Raises:
        AdapterError: The adapter does not fit the model.
        StateError: The edits are of another model, or the weights are none that the state knows.
    """
    parts = architecture or find_architecture(model)
    adapter_sites(adapter, parts)  # refused before anything is done
    settings = AlphaEditSettings(layers=tuple(sorted(down_maps(parts).values()))[:1])
    editor = AlphaEditor(model, tokenizer, None, settings, state=state, architecture=parts)
    editor.apply()
    return editor


def adopt_adapter(
    editor: AlphaEditor, adapter: LoraAdapter, *, name: str | None = None, called: str = "", any_base: bool = False
) -> EditBatch:
    """Put an adapter's change into the weights as a batch of the editor's state.

    The base is told by its weights where the adapter was written by :mod:`corsa_plugins.adapters`, else by its name:
    the editor's model must be called what the adapter says.

    Args:
        editor: On the base, with or without edits. It needs no statistics.
        adapter: A LoRA adapter, of any tool: :func:`~corsa_plugins.adapters.folder.read_adapter`.
        name: Of the batch; by default a number.
        called: Another name of the editor's model, beside the one it knows itself.
        any_base: Take an adapter whose base has another name.

    Returns:
        The batch, which ``editor.revert`` takes out again, in any order with others, bit for bit.

    Raises:
        AdapterError: It is of another base, or holds what a state cannot. Weights and state are as before.
        StateError: As for :meth:`AlphaEditor.adopt`.
    """
    sites = adapter_sites(adapter, editor.architecture)
    own = str(getattr(editor.model.config, "_name_or_path", "") or "")
    _check_base(adapter, editor, {called, own, editor.state.fingerprint.name} - {""}, any_base)
    return editor.adopt(sites, name=name)


def _check_base(adapter: LoraAdapter, editor: AlphaEditor, names: set[str], any_base: bool) -> None:
    told: Mapping[str, object] | None = adapter.about.get("fingerprint")
    if told is not None:
        try:
            own = Fingerprint.from_dict(told)
        except FingerprintError as error:
            raise AdapterError(f"the adapter's corsa.json is damaged: {error}; restore it, or delete it") from error
        different = own.difference(Fingerprint.of(editor.model, editor.architecture), editor.state.beside_downs)
        if different is not None:
            raise AdapterError(f"the adapter is of another base, {own}: {different}")
        return
    if any_base or any(_same(adapter.base, name) for name in names):
        return
    raise AdapterError(
        f"the adapter says that its base is {adapter.base or 'nothing'}, and this model is "
        f"{' or '.join(sorted(names)) or 'without a name'}: give the base by that name, or say --any-base "
        "(any_base=True) if this is it under another name"
    )


def _same(first: str, second: str) -> bool:
    return first == second or (Path(first).exists() and Path(first).resolve() == Path(second).resolve())


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
