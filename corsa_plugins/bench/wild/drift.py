"""How far the hidden states of prompts that no edit is about move (papers/alphaedit-plus.md, 4.3 and Figure 5).

The paper draws hidden states before and after editing by t-SNE. Here is what can be compared: by block, how far the
state behind a prompt's last token moves in units of its length, and how much it turns; and of the last block a plane,
the two directions in which the states from before differ most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsa_plugins.errors import SettingError
from corsa_plugins.model.batching import input_device, map_by_length, pad
from corsa_plugins.model.borrowing import eval_mode
from corsa_plugins.model.tokenization import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HeldOut", "hidden_states"]

MOST_PROMPTS = 1000
"""As in the paper."""


def hidden_states(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int = 64,
    chat_template: bool = False,
) -> Tensor:
    """The states behind the last token of each prompt: behind every block, float32 on the CPU.

    Args:
        model: A causal language model, or a ``PeftModel`` with its adapter active.
        tokenizer: Its tokenizer.
        prompts: At least one.
        batch_size: Prompts per forward pass.
        chat_template: Ask through the tokenizer's chat template.

    Returns:
        Of shape (prompts, blocks, width).
    """
    if not prompts:
        raise SettingError("no prompts to take hidden states of: give untouched facts")
    rows = [encode_prompt(tokenizer, prompt, chat_template) for prompt in prompts]
    device = input_device(model)

    def states(batch: list[list[int]]) -> list[Tensor]:
        ids, mask = pad(batch, tokenizer.pad_token_id or 0, side="right")
        out = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
        )
        ends = mask.sum(dim=1) - 1
        rows = torch.arange(len(batch))
        blocks = [state[rows.to(state.device), ends.to(state.device)].float().cpu() for state in out.hidden_states[1:]]
        return list(torch.stack(blocks, dim=1))

    with eval_mode(model):
        return torch.stack(map_by_length(states, rows, [len(row) for row in rows], batch_size))


class HeldOut:
    """Prompts that no edit is about, with their hidden states before any edit.

    Args:
        model: Before any edit.
        tokenizer: Its tokenizer.
        prompts: At least one; the first 1,000 are looked at.
        batch_size, chat_template: As for :func:`hidden_states`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        *,
        batch_size: int = 64,
        chat_template: bool = False,
    ) -> None:
        self.prompts = tuple(prompts[:MOST_PROMPTS])
        self.tokenizer = tokenizer
        self.asking: dict[str, Any] = {"batch_size": batch_size, "chat_template": chat_template}
        self.before = hidden_states(model, tokenizer, self.prompts, **self.asking)

    def drift(self, model: Any) -> dict[str, Any]:
        """How far they have moved, as plain data for JSON.

        Returns:
            ``"blocks"``: by block, from 1, the mean over prompts of ``"moved"``, ``|h' - h| / |h|``, and of
            ``"cosine"``, that of ``h'`` and ``h``; ``"plane"``: of the last block, ``"before"`` and ``"after"``, a
            point for each of up to 200 prompts; ``"prompts"``: how many there were.
        """
        after = hidden_states(model, self.tokenizer, self.prompts, **self.asking)
        before = self.before
        moved = (after - before).norm(dim=2) / before.norm(dim=2).clamp_min(torch.finfo(torch.float32).tiny)
        cosine = torch.nn.functional.cosine_similarity(after, before, dim=2)
        blocks = [
            {"block": block + 1, "moved": float(moved[:, block].mean()), "cosine": float(cosine[:, block].mean())}
            for block in range(before.shape[1])
        ]
        return {"prompts": len(self.prompts), "blocks": blocks, "plane": _plane(before[:, -1], after[:, -1])}


def _plane(before: Tensor, after: Tensor, most: int = 200) -> dict[str, list[list[float]]]:
    """Both in the two principal directions of ``before``, in units of its spread in the first."""
    centre = before.mean(dim=0)
    _, spread, directions = torch.linalg.svd(before - centre, full_matrices=False)
    unit = float(spread[0]) / max(len(before) - 1, 1) ** 0.5 or 1.0
    axes = directions[:2].T / unit
    return {
        name: [[round(float(value), 4) for value in point] for point in (states[:most] - centre) @ axes]
        for name, states in (("before", before), ("after", after))
    }
