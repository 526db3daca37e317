"""The prompt once: chosen and rejected rows of a batch share their beginning, which passes through the model once.

A pair with a prompt of P tokens and answers of A runs P + 2A tokens forward in place of 2P + 2A. Two gradients then
need two backward passes, for in the prompt they are no longer those of one vector
(:mod:`corsa_plugins.corsa.gradients`): 3P + 6A tokens a look in place of 4P + 4A, and 2P + 4A where only the sum of the
two is wanted. So it pays for prompts longer than both answers together, and :func:`pays` counts for every batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from corsa_plugins.model.sharing import SharedRows, Sharing, share_rows
from trl_ext.head import has_completion_head

__all__ = ["PromptsOnce", "pays"]

logger = logging.getLogger(__name__)

_SHORT = 64
"""Tokens of rows for which support is looked at before training; longer ones are looked at as they come."""

_NOT_SO = 2**31
"""In place of a length: a batch that has to be run as it is, and those of other processes with it."""

_TAKEN = {"input_ids", "attention_mask", "labels"}


class PromptsOnce:
    """What runs the batches of a trainer with their prompts once, where the model supports it.

    Args:
        model: The causal language model inside the ``PeftModel``, with the completion head or without.
        wanted: Whether it is; else every batch is run as it is.
        largest: The largest of a number over the processes that run the model in step, each of them asking.
    """

    def __init__(self, model: PreTrainedModel, wanted: bool = True, largest: Callable[[int], int] = int):
        self._largest = largest
        self._sharing = Sharing(model) if wanted and has_completion_head(model) else None
        self._reported = False
        if wanted and self._sharing is None:
            self._report("the model's logits are not a projection of its last hidden states")

    def look(self) -> None:
        """Look now whether the model supports it, rather than at the first batch."""
        if self._sharing is not None and not self._sharing.supports(_SHORT):
            self._report(self._sharing.reason)

    def rows(self, ids: Tensor, mask: Tensor, worth: Callable[[SharedRows], bool] | None = None) -> SharedRows | None:
        """The batch with its prompts once; None where it has to be run as it is.

        Args:
            ids: (2B, T) token ids, the chosen rows first.
            mask: (2B, T) attention mask.
            worth: Whether rows are to be run so if they can be.
        """
        if self._sharing is None:
            return None
        rows = share_rows(ids, mask) if ids.shape[0] % 2 == 0 else None
        if rows is not None and worth is not None and not worth(rows):
            rows = None
        # Support is looked at by running the model, and the two ways go back through it differently often.
        longest = self._largest(_NOT_SO if rows is None else max(rows.ids.shape[1], ids.shape[1]))
        if rows is None or longest == _NOT_SO:
            return None
        if not self._sharing.supports(longest):
            self._report(self._sharing.reason)
            return None
        return rows

    def run(self, module: Any, rows: SharedRows, labels: Tensor) -> Any:
        """``module``, which holds the model, on shared rows: what the completion head answers of the rows as they were,
        for ``labels`` (2B, T)."""
        assert self._sharing is not None, "rows come from `rows`"
        inputs = self._sharing.inputs(rows)
        return module(**inputs, labels=labels, places=rows.places, use_cache=False, fused_lm_head=True)

    def around(self, module: Any) -> Callable[..., Any]:
        """``module`` for calls with whole batches and no gradient: each runs its prompts once where it can."""

        def call(**inputs: Any) -> Any:
            tensors = {name for name, value in inputs.items() if isinstance(value, Tensor)}
            if tensors == _TAKEN and inputs.get("fused_lm_head") and not inputs.get("output_router_logits"):
                rows = self.rows(inputs["input_ids"], inputs["attention_mask"])
                if rows is not None:
                    return self.run(module, rows, inputs["labels"])
            return module(**inputs)

        return call

    def _report(self, reason: str | None) -> None:
        if not self._reported:
            self._reported = True
            logger.info("A prompt is run once for each of its answers: %s.", reason)


def pays(rows: SharedRows, tokens: int, *, backwards: int, backwards_plain: int, checkpointing: bool) -> bool:
    """Whether shared rows take fewer tokens through the model, forward, back and, with checkpointing, again.

    Args:
        rows: What would be run.
        tokens: Of the batch as it is, padding included.
        backwards: Passes that the gradients take from shared rows.
        backwards_plain: And from the batch as it is.
    """
    each = 2 if checkpointing else 1
    return rows.ids.numel() * (1 + each * backwards) < tokens * (1 + each * backwards_plain)
