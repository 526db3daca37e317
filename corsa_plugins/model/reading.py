"""Reading on from what has been read: rows that begin alike are read once, and rows that are done are read no more.

What a model keeps of its tokens, the keys and values of its attention, is all that later tokens see of them. So prompts
that share a system turn or a chat template, and answers that share a prompt, are read behind one reading of what they
share; and a row whose answer has ended leaves the batch. Whether a model goes on from what it keeps as if it had read
all at once is not known by its name: callers look at what came of a few rows (:mod:`corsa_plugins.model.asking`).
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor

from corsa_plugins.model.architecture import accepts_logits_to_keep
from corsa_plugins.model.batching import base_model, input_device, pad
from corsa_plugins.model.caches import cache_argument, cache_of
from corsa_plugins.model.tokenization import JoinedIds

__all__ = ["WORTH", "Reading", "can_read_on", "continue_greedily", "shared_beginning", "target_logits_behind_prompts"]


WORTH = 64
"""Tokens, all rows together, that a pass of its own saves at least to be made."""


class Reading:
    """What a model has read of some rows so far; :meth:`read` goes on from there.

    Args:
        model: A causal language model; a ``PeftModel`` reads with its active adapter. It is run, and left as it is.

    Attributes:
        mask: (rows, tokens so far), 1 at the tokens, 0 at padding between them.
    """

    def __init__(self, model: Any) -> None:
        base = base_model(model)
        self.mask = torch.zeros(0)
        self._model = model
        self._device = input_device(model)
        self._cache: Any = None
        self._cache_argument = cache_argument(base)
        self._takes_positions = "position_ids" in inspect.signature(type(base).forward).parameters
        self._chooses = accepts_logits_to_keep(base)

    def read(self, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        """Read more of each row.

        Args:
            ids: (rows, tokens) further ids.
            mask: Likewise, their attention mask.
            last: Of how many of these tokens logits are wanted.

        Returns:
            (rows, last, vocabulary).

        Raises:
            NotImplementedError: The model keeps nothing that could be gone on from.
        """
        ids, mask = ids.to(self._device), mask.to(self._device)
        self.mask = mask if self._cache is None else torch.cat([self.mask, mask], dim=-1)
        inputs: dict[str, Any] = {"attention_mask": self.mask, self._cache_argument: self._cache, "use_cache": True}
        if self._takes_positions:  # padding, which nothing attends to, may have any position that there is
            inputs["position_ids"] = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if self._chooses:
            inputs["logits_to_keep"] = last
        output = self._model(input_ids=ids, **inputs)
        self._cache = cache_of(output)
        if not hasattr(self._cache, "layers") or not all(hasattr(layer, "keys") for layer in self._cache.layers):
            raise NotImplementedError(f"{type(base_model(self._model)).__name__} keeps no keys and values")
        return output.logits[:, -last:]

    def choose(self, rows: Sequence[int]) -> None:
        """Go on with these rows, each as often as it is named."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[chosen]
        for layer in self._cache.layers:
            layer.keys, layer.values = (part[chosen.to(part.device)] for part in (layer.keys, layer.values))


def shared_beginning(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with; of each row one is left to be read."""
    ordered = [list(row) for row in rows]
    first, last = min(ordered), max(ordered)
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if first[i] != last[i]), max(most, 0))


def can_read_on(model: Any, longest: int) -> bool:
    """Whether it is worth trying: no recurrent state, and no window that padding between tokens could shift.

    Args:
        longest: Tokens of the longest row with its answer.
    """
    config = base_model(model).config.get_text_config()
    named = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    windows = [window for window in named if isinstance(window, int)]
    stateful = bool(getattr(base_model(model), "_is_stateful", False)) or config.model_type == "rwkv"
    return not stateful and all(longest < window for window in windows)


def continue_greedily(
    model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, ends: Container[int]
) -> list[list[int]]:
    """The likeliest next token of each row, again and again, up to and with the first one of ``ends``.

    Args:
        model: As for :class:`Reading`.
        rows: One batch of token ids, none empty.
        max_new_tokens: At most.
        ends: Tokens that end an answer.

    Raises:
        NotImplementedError: As :meth:`Reading.read`.
    """
    reading, shared = _behind_beginning(model, rows)
    ids, mask = pad([row[shared:] for row in rows], side="left")
    written: list[list[int]] = [[] for _ in rows]
    active = list(range(len(rows)))
    while True:
        tokens = reading.read(ids, mask, 1)[:, 0].argmax(-1).tolist()
        for index, token in zip(active, tokens, strict=True):
            written[index].append(token)
        going = [place for place, token in enumerate(tokens) if token not in ends]
        if not going or len(written[active[going[0]]]) == max_new_tokens:
            return written
        if len(going) < len(active):
            reading.choose(going)
            active, tokens = [active[place] for place in going], [tokens[place] for place in going]
        ids = torch.tensor(tokens)[:, None]
        mask = torch.ones_like(ids)


def target_logits_behind_prompts(model: Any, rows: Sequence[JoinedIds]) -> list[Tensor]:
    """As :func:`corsa_plugins.model.running.target_logits`, every prompt being read once for all of its targets.

    Raises:
        NotImplementedError: As :meth:`Reading.read`.
    """
    numbers = {ids: number for number, ids in enumerate(dict.fromkeys(tuple(row.prompt_ids) for row in rows))}
    prompts, of_row = list(numbers), [numbers[tuple(row.prompt_ids)] for row in rows]
    reading, shared = _behind_beginning(model, prompts)
    ids, mask = pad([prompt[shared:] for prompt in prompts], side="left")
    parts = [reading.read(ids, mask, 1)[of_row]]
    longest = max(len(row.target_ids) for row in rows) - 1
    if longest:
        reading.choose(of_row)
        ids, mask = pad([row.target_ids[:-1] for row in rows])
        parts.append(reading.read(ids, mask, longest))
    logits = torch.cat(parts, dim=1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return [logits[index, : len(row.target_ids)] for index, row in enumerate(rows)]


def _behind_beginning(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Reading, int]:
    """A reading of what all rows begin with, for each of them, if that is worth it; and how many tokens that are."""
    reading, shared = Reading(model), shared_beginning(rows) if len(rows) > 1 else 0
    if shared * (len(rows) - 1) < WORTH:
        return reading, 0
    ids = torch.tensor([list(rows[0][:shared])])
    reading.read(ids, torch.ones_like(ids), 1)
    reading.choose([0] * len(rows))
    return reading, shared
