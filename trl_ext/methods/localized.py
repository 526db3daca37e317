"""A LoRA adapter that reads at its requests' subjects alone (:mod:`corsa_plugins.adapters.localized`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from corsa_plugins.adapters import early_layers, read_directions
from corsa_plugins.corsa.kept import Kept
from corsa_plugins.data.requests import EditRequest
from trl_ext._trl import TRAINED
from trl_ext.methods.adapter import lora_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["localized_adapter"]


# Seven parameters: a model's, what is edited and where, what is kept, and what the adapter holds already.
def localized_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    layers: Sequence[int] | None = None,
    kept: Sequence[Kept] = (),
    earlier: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    chat_template: bool = False,
) -> PeftModel:
    """The model with an adapter for the requests, to be trained by :class:`trl_ext.trainer.CoRSATrainer` or any other.

    It has one rank for each request, and changes nothing yet: B is zero. A is given and frozen, so that a training
    moves what is said of these subjects and little else. A learning rate is a share of a typical coordinate of the
    model's own: 0.05 is a beginning, a hundred times what suits an adapter that reads everywhere.

    >>> model = localized_adapter(model, tokenizer, requests, kept=kept)  # doctest: +SKIP
    >>> CoRSATrainer(model, CoRSAConfig("out", learning_rate=0.05), ...).train()  # doctest: +SKIP

    Args:
        model: Without an adapter; it gets PEFT's layers.
        tokenizer: Its tokenizer.
        requests: With subjects.
        layers: Blocks, counted from 0; by default the first five that facts are likely to be edited in.
        kept: Prompts that are to stay as they are: what most of their keys share is not read.
        earlier: (s B, A) by name of an adapter of this kind that was trained before, as
            :func:`trl_ext.methods.adapter.lora_factors` gives them: the new one goes on with it.
        chat_template: Whether prompts are trained through the tokenizer's chat template.

    Raises:
        RequestError: Requests without a subject.
        SettingError: No such layer.
        ArchitectureError: A block has no FFN that can be told, as one of experts.
    """
    preserved = [[*each.ids.prompt_ids, *each.ids.target_ids] for each in kept]
    reads = read_directions(
        model,
        tokenizer,
        requests,
        early_layers(model) if layers is None else layers,
        preserved=preserved,
        chat_template=chat_template,
    )
    before = {_bare(name): factors for name, factors in (earlier or {}).items()}
    rank = len(requests) + max((factors[1].shape[0] for factors in before.values()), default=0)
    # alpha = r: the scale is 1, and B A is the change.
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(reads), task_type="CAUSAL_LM")
    adapted: PeftModel = get_peft_model(model, config, adapter_name=TRAINED)
    with torch.no_grad():
        for name, layer in lora_layers(adapted).items():
            a, b = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight
            a.data, b.data = a.data.float(), torch.zeros_like(b, dtype=torch.float32)
            rows = [reads[_bare(name)]]
            if _bare(name) in before:
                old_b, old_a = before[_bare(name)]
                b[:, : old_b.shape[1]] = old_b.to(b)
                rows.insert(0, old_a)
            a.copy_(torch.cat([row.to(a) for row in rows]))
            a.requires_grad_(False)
    return adapted


def _bare(name: str) -> str:
    """A module's name without what PEFT puts around the model."""
    return name.removeprefix("base_model.model.")
