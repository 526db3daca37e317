"""What a model has read of each text before the token that is edited: no later change reaches back there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corsa_plugins.alphaedit.lookup.rows import Row
from corsa_plugins.model.architecture import accepts_logits_to_keep
from corsa_plugins.model.batching import input_device, pad
from corsa_plugins.model.caches import cache_argument, cache_of

__all__ = ["ReadPrefix"]


_STATES = ("conv_states", "recurrent_states")


class ReadPrefix:
    """Keys and values of the attention for ``ids[:position]`` of each row; the model then reads the rest alone.

    Rows that begin alike, such as prompts of one form in one context, are read once for all of them.

    Args:
        model: Frozen.
        rows: At least one of them with a token before its position.

    Raises:
        NotImplementedError: The model keeps nothing that another pass could go on from.
    """

    def __init__(self, model: Any, rows: Sequence[Row]) -> None:
        self._cache_argument = cache_argument(model)
        self._takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
        device = input_device(model)
        begins = [row.ids[: row.position] for row in rows]
        distinct = {ids: number for number, ids in enumerate(dict.fromkeys(begins))}
        ids, mask = pad(list(distinct), side="left")
        self.mask = mask.to(device)
        self._starts = torch.tensor([row.position for row in rows], device=device)
        # Padding, which nothing attends to, may have any position that there is.
        numbers = (self.mask.cumsum(-1) - 1).clamp_min(0)
        positions = {"position_ids": numbers} if self._takes_positions else {}
        keep = {"logits_to_keep": 1} if accepts_logits_to_keep(model) else {}
        output = model(input_ids=ids.to(device), attention_mask=self.mask, use_cache=True, **positions, **keep)
        self._cache: Any = cache_of(output)
        layers = getattr(self._cache, "layers", None)
        # Linear attention and convolutions keep a state, of which no token can be told from another.
        if layers is None or not all(_keeps_keys_alone(layer) for layer in layers):
            raise NotImplementedError
        self._choose(torch.tensor([distinct[ids] for ids in begins]))

    def inputs(self, mask: Tensor) -> dict[str, Any]:
        """What to pass to the model beside the ids of what follows, whose attention mask is ``mask``."""
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # a pass puts longer tensors there
        mask = mask.to(self.mask.device)
        longer = torch.cat([self.mask, mask], dim=-1)
        inputs = {"attention_mask": longer, self._cache_argument: cache, "use_cache": True}
        if self._takes_positions:
            inputs["position_ids"] = self._starts[:, None] + torch.arange(mask.shape[1], device=mask.device)
        return inputs

    def keep(self, chosen: Tensor) -> None:
        """Go on with these rows alone."""
        self._starts = self._starts[chosen.to(self.mask.device)]
        self._choose(chosen)

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return sum(part.nbytes for layer in self._cache.layers for part in (layer.keys, layer.values))

    def _choose(self, chosen: Tensor) -> None:
        self.mask = self.mask[chosen.to(self.mask.device)]
        for layer in self._cache.layers:
            layer.keys, layer.values = (part[chosen.to(part.device)] for part in (layer.keys, layer.values))


def _keeps_keys_alone(layer: Any) -> bool:
    """Whether a cache's layer holds keys and values and no states, which those of Falcon-H1 do beside them."""
    keys = (getattr(layer, name, None) for name in ("keys", "values"))
    return all(isinstance(each, Tensor) for each in keys) and not any(hasattr(layer, name) for name in _STATES)
