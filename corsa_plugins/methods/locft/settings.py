"""What LocFT-BF trains, and how long, with the published values as defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from corsa_plugins.settings import BlockNumber, Count, NonNegative, Positive, Settings

__all__ = ["LocFTSettings"]

_DEPTH = 22 / 32
"""Where the paper trains LLaMA3-8B-Instruct, as a share of the depth."""


@dataclass(frozen=True)
class LocFTSettings(Settings):
    """What trains, and how long.

    Attributes:
        layer: The block, counted from 0. ``None``: the one as deep as LLaMA3-8B's, the 22nd of 32 (:meth:`layer_of`);
            where a family takes facts best differs (Qwen2.5-7B: 6 of 28), so try a few.
        trains: ``"down"``: the weight of the FFN's down projection; of a mixture of experts that of the shared expert,
            or, where there is none, those of all routed ones, of which a step reaches the experts that its tokens take.
            ``"block"``: all of the block, as published for Mistral-7B.
        epochs: Most passes over all requests.
        batch_size: Requests of a step.
        learning_rate: Of Adam, constant; without weight decay.
        loss_threshold: In nats per token. A batch with a smaller loss makes no step, and the training ends behind an
            epoch with a smaller mean loss.
        append_eos: Train the end-of-sequence token behind each answer too.
        chat_template: Put prompts through the tokenizer's chat template. ``None``: in the form that they are asked in,
            where something asks (:func:`corsa_plugins.methods.spec.in_form`), else as they are.
    """

    layer: Annotated[
        BlockNumber | None, Field(description="the number of a block, counted from 0, or None for one as deep as usual")
    ] = None
    trains: Literal["down", "block"] = "down"
    epochs: Count = 25
    batch_size: Count = 100
    learning_rate: Positive = 5e-4
    loss_threshold: NonNegative = 1e-2
    append_eos: bool = True
    chat_template: bool | None = None

    def layer_of(self, n_blocks: int) -> int:
        """The block that trains, of a model with ``n_blocks``."""
        return min(round(_DEPTH * n_blocks), n_blocks - 1) if self.layer is None else self.layer
