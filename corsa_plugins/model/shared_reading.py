"""Asking behind one reading of what questions share, where two of them come out as by themselves; else not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from corsa_plugins.model.batching import base_model
from corsa_plugins.model.reading import (
    WORTH,
    can_read_on,
    continue_greedily,
    shared_beginning,
    target_logits_behind_prompts,
)
from corsa_plugins.model.running import target_logits
from corsa_plugins.model.tokenization import JoinedIds

__all__ = ["SharedReading", "by_prompt", "saves_tokens"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class SharedReading:
    """Reading on from what rows share, as long as a model does so as if it read each by itself: of the first batch the
    longest and the shortest row are looked at.

    Args:
        model: To ask.
        n_rows: Of the whole work; with a few there is nothing to save.
        longest: Tokens of the longest row with its answer.

    Attributes:
        tried: Whether it is done.
    """

    LEAST = 4

    def __init__(self, model: Any, n_rows: int, longest: int) -> None:
        self.tried = n_rows >= self.LEAST and can_read_on(model, longest)
        self._model = model
        self._looked = False

    def written(self, batch: Sequence[list[int]], max_new_tokens: int, ends: Sequence[int]) -> list[list[int]] | None:
        """What the model goes on with behind each row; ``None``: it has to be asked otherwise."""

        def likeliest(index: int, written: Sequence[list[int]], logits: Tensor) -> bool:
            said = logits.gather(-1, torch.tensor(written[index], device=logits.device)[:, None])[:, 0]
            return self._same(logits.amax(-1), said, logits)

        return self._checked(
            lambda: continue_greedily(self._model, batch, max_new_tokens, ends),
            lambda index, written: JoinedIds(batch[index], written[index]),
            likeliest,
        )

    def predicting(self, batch: Sequence[JoinedIds]) -> list[Tensor] | None:
        """Logits as :func:`target_logits` gives them; ``None``: they have to be had otherwise."""
        return self._checked(
            lambda: target_logits_behind_prompts(self._model, batch),
            lambda index, found: batch[index],
            lambda index, found, logits: self._same(found[index], logits, logits),
        )

    def _checked(
        self,
        run: Callable[[], list[_Result]],
        as_row: Callable[[int, list[_Result]], JoinedIds],
        agrees: Callable[[int, list[_Result], Tensor], bool],
    ) -> list[_Result] | None:
        """What ``run`` gives, if two of its rows agree with the logits that they have by themselves."""
        if not self.tried:
            return None
        try:
            found = run()
        except NotImplementedError:
            self.tried = False
            return None
        if not self._looked:
            places = sorted({0, len(found) - 1})  # the longest and the shortest
            alone = [target_logits(self._model, [as_row(place, found)])[0] for place in places]
            self._looked = True
            self.tried = all(agrees(place, found, logits) for place, logits in zip(places, alone, strict=True))
            if not self.tried:
                logger.info("%s does not go on from what it has read", type(base_model(self._model)).__name__)
        return found if self.tried else None

    def _same(self, found: Tensor, wanted: Tensor, logits: Tensor) -> bool:
        rounding = max(1e-4, 4 * torch.finfo(next(self._model.parameters()).dtype).eps)
        tolerance = rounding * float(logits.abs().nan_to_num(0, 0, 0).max())
        return torch.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True)


def saves_tokens(rows: Sequence[JoinedIds], batch_size: int) -> bool:
    """Whether to read prompts once saves a quarter of the tokens, and in a batch what a further pass is worth."""
    prompts = set(map(_prompt, rows))
    shared = shared_beginning(list(prompts)) if len(prompts) > 1 else 0
    behind = shared + sum(len(prompt) - shared for prompt in prompts) + sum(len(row.target_ids) - 1 for row in rows)
    saved = sum(len(row.prompt_ids) + len(row.target_ids) for row in rows) - behind
    return saved >= max(behind / 3, 2 * WORTH * len(rows) / max(batch_size, 1))


def by_prompt(rows: Sequence[JoinedIds], lengths: Sequence[int]) -> list[int]:
    """Numbers in place of lengths: rows of one prompt stand together, and prompts are in the order of length."""
    longest: dict[tuple[int, ...], int] = {}
    for row, length in zip(rows, lengths, strict=True):
        longest[_prompt(row)] = max(length, longest.get(_prompt(row), 0))
    places = {prompt: place for place, prompt in enumerate(sorted(longest, key=longest.__getitem__))}
    return [places[_prompt(row)] for row in rows]


def _prompt(row: JoinedIds) -> tuple[int, ...]:
    return tuple(row.prompt_ids)
