"""How value vectors are looked for: the settings, with AlphaEdit's values as defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from corsa_plugins.alphaedit.lookup.subjects import FactToken
from corsa_plugins.settings import BlockNumber, Count, NonNegative, NonNegativeInt, Positive, Settings

__all__ = ["RateUnit", "ValueSettings"]

RateUnit = Literal["absolute", "relative"]


@dataclass(frozen=True)
class ValueSettings(Settings):
    """The optimisation of v*, one vector per request, as ROME and MEMIT do it.

    Attributes:
        steps: Most evaluations of the loss. Nothing is updated after the last one, so that there are at most
            ``steps - 1`` updates, as in the published implementations.
        lr: Adam's learning rate. Adam moves each coordinate by about as much per step.
        lr_unit: ``"absolute"``: the rate itself, which suits one model. ``"relative"``: in units of a typical
            coordinate of the block's output there, norm / sqrt(hidden size), for each request; this carries over.
        at: Whose output v* is. ``"block"``: of the block, as in MEMIT and AlphaEdit, wherever it adds what its FFN puts
            out. ``"ffn"``: of the FFN's down map itself, as in ROME; h is that output then, and the clamp and the
            weight decay go by its norm.
        loss_layer: Where the target is read: ``None`` or the last block for the model's own logits, an earlier block
            for the final norm and the head on what that block puts out. Never below the edited block.
        weight_decay: Factor of ||delta|| / ||h||^2 in the loss, h being the block's output there.
        clamp: Most norm of delta, in units of the norm of h; it is scaled back after each update.
        kl_factor: Factor of the KL divergence of what follows the subject in "{subject} is a" from what it was.
            0 leaves the prompt out.
        stop_loss: The optimisation of a request ends once its whole loss, evaluated before an update, is under it.
        stop_most_probable: The optimisation of a request ends too at this evaluation, counted from 1, of those at which
            every token of its target is the most probable one in every context: most-probable early stopping of ENCORE
            (Gupta et al. 2025), where it goes on for a few steps more. 0: no regard to that.
        batch_size: Requests optimised side by side; ``None``: as many as ``memory`` holds. Each has its own delta,
            rate, limit and end; what they are batched with makes no difference beyond rounding.
        memory: GiB that a batch may hold of activations for the way back, where ``batch_size`` is ``None``. ``None``:
            on a GPU half of what is free; elsewhere what one request holds when all of it is run, as the published
            loop does, and 128 MiB at least.
        fact_token: Where the fact is looked up: ``"subject_last"``, ``"subject_first"``,
            ``"subject_first_after_last"`` or ``"last"``, always in the prompt, also with the target behind it.
        chat_template: Put prompts, contexts and all, through the tokenizer's chat template, wherever this edit reads
            them: for keys, values, answers and validation. ``None``: in the form that they are asked in, where
            something asks (:func:`corsa_plugins.methods.spec.in_form`), else as they are.
        reuse_prefix: Run the blocks up to the edited one, and the tokens before the edited one, once per batch: what
            they put out never changes. Off, every pass runs the whole model on the whole texts, with the same result.
    """

    steps: Count = 25
    lr: Positive = 0.1
    lr_unit: RateUnit = "absolute"
    at: Literal["block", "ffn"] = "block"
    loss_layer: Annotated[BlockNumber | None, Field(description="the number of a block, or None for the last")] = None
    weight_decay: NonNegative = 0.5
    clamp: Positive = 0.75
    kl_factor: NonNegative = 0.0625
    stop_loss: NonNegative = 0.05
    stop_most_probable: NonNegativeInt = 0
    batch_size: Annotated[Count | None, Field(description="an integer of at least 1, or None")] = None
    memory: Annotated[Positive | None, Field(description="a number of GiB above 0, or None")] = None
    fact_token: FactToken = "subject_last"
    chat_template: bool | None = None
    reuse_prefix: bool = True
