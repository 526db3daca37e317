"""The keys of many tokens: what goes into the down maps of some layers, in one forward pass that ends there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.model.architecture import LinearMap
from corsa_plugins.model.batching import input_device, pad
from corsa_plugins.model.borrowing import hooked
from corsa_plugins.model.limits import vocabulary_size
from corsa_plugins.model.routed import RoutedExperts, RoutedKeys

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BrokenKeysError", "KeyCapture"]


class BrokenKeysError(CorsaError, ValueError):
    """Keys that are NaN or infinite; the message names the layer."""


class _Enough(Exception):
    """All keys are there: what is left of the forward pass is not needed."""


class KeyCapture:
    """Hooks on the down maps, within a ``with`` block.

    Args:
        model: In evaluation mode and without gradients.
        maps: The down map of each layer.
    """

    def __init__(self, model: PreTrainedModel, maps: Mapping[int, LinearMap]) -> None:
        self.model: Any = model
        self.maps = dict(maps)
        self._captured: dict[int, Tensor | RoutedKeys] = {}
        self._checked: set[int] = set()
        self._hooks = contextlib.ExitStack()
        self._vocabulary, self._device = vocabulary_size(model), input_device(model)

    def __enter__(self) -> KeyCapture:
        for layer, linear in self.maps.items():
            self._hooks.enter_context(hooked(linear.module, self._note(layer), before=True, with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._hooks.close()
        self._captured.clear()

    def _note(self, layer: int) -> Any:
        linear = self.maps[layer]

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(linear, RoutedExperts):
                if layer not in self._checked:
                    linear.check(args, kwargs)
                    self._checked.add(layer)
                self._captured[layer] = linear.keys(args, kwargs)
            else:
                self._captured[layer] = args[0].detach()
            if len(self._captured) == len(self.maps):
                raise _Enough

        return note

    def keys(self, rows: Sequence[Sequence[int]]) -> dict[int, Tensor | RoutedKeys]:
        """The keys of every token of ``rows``, row by row.

        Returns:
            For each layer (tokens, d), in the precision and on the device of the model; of routed experts by expert.

        Raises:
            BrokenKeysError: Some are NaN or infinite.
            SettingError: A token is not in the model's vocabulary.
            ArchitectureError: Routed experts put out another thing than their keys say.
        """
        ids, mask = pad(rows)
        if int(ids.max()) >= self._vocabulary:
            raise SettingError(
                f"token {int(ids.max())} of the text, and the model embeds {self._vocabulary}: use its own tokenizer"
            )
        padded = not bool(mask.all())
        inputs = {"attention_mask": mask.to(self._device)} if padded else {}
        self._captured.clear()
        with contextlib.suppress(_Enough):
            self.model(input_ids=ids.to(self._device), use_cache=False, **inputs)
        missing = [layer for layer in self.maps if layer not in self._captured]
        if missing:
            raise SettingError(f"the down map of layer {missing[0]} does not run in the model's forward pass")
        keys = {layer: self._flat(layer, mask if padded else None, mask.numel()) for layer in self.maps}
        self._captured.clear()
        return keys

    def _flat(self, layer: int, mask: Tensor | None, positions: int) -> Tensor | RoutedKeys:
        keys = self._captured[layer]
        if isinstance(keys, Tensor):
            keys = keys.reshape(-1, self.maps[layer].d_in)
        if len(keys) != positions:
            raise SettingError(f"layer {layer} has {len(keys)} keys for {positions} tokens: this FFN leaves some out")
        if mask is not None:
            read = mask.reshape(-1).bool()
            keys = keys[read.to(keys.device)] if isinstance(keys, Tensor) else keys.chosen(read.nonzero()[:, 0])
        finite = keys.isfinite().all(1) if isinstance(keys, Tensor) else keys.finite()
        if not finite.all():
            kept = keys.dtype if isinstance(keys, Tensor) else self.maps[layer].parameter.dtype
            raise BrokenKeysError(
                f"layer {layer}: keys are NaN or infinite at {int((~finite).sum())} of {len(keys)} "
                f"tokens ({self.maps[layer].name}, {str(kept).removeprefix('torch.')}): "
                "look for NaN in the model's weights, or load it in bfloat16 or float32"
            )
        return keys
