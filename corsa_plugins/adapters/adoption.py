"""A LoRA adapter as a batch of an edit state, which can be taken out again as any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.adapters.folder import AdapterError, LoraAdapter
from corsa_plugins.adapters.low_rank import LowRank
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditBatch, EditState
from corsa_plugins.model.architecture import Architecture, ArchitectureError, find_architecture
from corsa_plugins.model.identity import Fingerprint, FingerprintError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["adapter_layers", "adopt_adapter", "adopting_editor"]


def adapter_layers(adapter: LoraAdapter, architecture: Architecture) -> dict[int, LowRank]:
    """The changes of an adapter by layer: an edit state holds changes of FFN down maps.

    Raises:
        AdapterError: It changes something else, which is named, or a module that the model has in another shape.
    """
    layers: dict[int, LowRank] = {}
    wanted = dict(adapter.updates)
    for layer in range(len(architecture.blocks)):
        try:
            down = architecture.ffn(layer).down
        except ArchitectureError:  # experts, for one: nothing there that a state could hold
            continue
        update = wanted.pop(down.name, None)
        if update is None:
            continue
        shape = (len(update.left), len(update.right))
        if shape != (down.d_out, down.d_in):
            raise AdapterError(
                f"the adapter changes {down.name} by a matrix of {shape[0]} x {shape[1]}, and this model has "
                f"{down.d_out} x {down.d_in} there: it is of another base"
            )
        layers[layer] = update
    if wanted:
        modules = {name for name, _ in architecture.model.named_modules()}
        foreign = [name for name in wanted if name not in modules]
        if foreign:
            raise AdapterError(
                f"the adapter changes {_few(foreign)}, which this model does not have: it is of another base"
            )
        raise AdapterError(
            f"the adapter changes {_few(list(wanted))}: an edit state holds changes of FFN down maps alone; train "
            "those as the only target modules, or load the adapter with PEFT"
        )
    return layers


def adopting_editor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: LoraAdapter,
    state: EditState | None = None,
    architecture: Architecture | None = None,
) -> AlphaEditor:
    """An editor on an adapter's base that can take it up, with the edits of ``state`` in force.

    Raises:
        AdapterError: The adapter changes something else than FFN down maps.
        StateError: The edits are of another model, or the weights are none that the state knows.
    """
    parts = architecture or find_architecture(model)
    settings = AlphaEditSettings(layers=tuple(adapter_layers(adapter, parts)))
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
        adapter: A LoRA adapter of FFN down maps, of any tool: :func:`~corsa_plugins.adapters.folder.read_adapter`.
        name: Of the batch; by default a number.
        called: Another name of the editor's model, beside the one it knows itself.
        any_base: Take an adapter whose base has another name.

    Returns:
        The batch, which ``editor.revert`` takes out again, in any order with others, bit for bit.

    Raises:
        AdapterError: It is of another base, or holds what a state cannot. Weights and state are as before.
        StateError: As for :meth:`AlphaEditor.adopt`.
    """
    layers = adapter_layers(adapter, editor.architecture)
    own = str(getattr(editor.model.config, "_name_or_path", "") or "")
    _check_base(adapter, editor, {called, own, editor.state.fingerprint.name} - {""}, any_base)
    return editor.adopt(layers, name=name)


def _check_base(adapter: LoraAdapter, editor: AlphaEditor, names: set[str], any_base: bool) -> None:
    told: Mapping[str, object] | None = adapter.about.get("fingerprint")
    if told is not None:
        try:
            own = Fingerprint.from_dict(told)
        except FingerprintError as error:
            raise AdapterError(f"the adapter's corsa.json is damaged: {error}; restore it, or delete it") from error
        different = own.difference(Fingerprint.of(editor.model, editor.architecture))
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
