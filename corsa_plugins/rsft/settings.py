"""The settings of R-SFT, with the paper's values as defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from corsa_plugins.settings import BlockNumber, Count, NonNegative, Positive, Settings

__all__ = ["AUTO_DENSITIES", "LossReduction", "OnInterrupt", "Optimizer", "RSFTSettings"]

Optimizer = Literal["adamw", "sgd"]
LossReduction = Literal["mean", "sum"]
OnInterrupt = Literal["restore", "keep"]

AUTO_DENSITIES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""What ``density="auto"`` tries, in this order."""


_DEPTH = 5 / 32
"""Where the paper trains LLaMA3-8B, as a share of the depth."""


@dataclass(frozen=True)
class RSFTSettings(Settings):
    """What to train, how long, and what to leave behind.

    Attributes:
        epochs: E, passes over the samples.
        steps: K, the most consecutive steps on one sample within an epoch.
        loss_threshold: tau, in the unit of ``loss_reduction``. A sample whose loss, evaluated before a step, is under
            it is left for the next epoch. 0 never stops early.
        learning_rate: eta of SGD; the peak of AdamW's.
        optimizer: ``"adamw"``: AdamW, the rate falling as a cosine of the number of updates made, from the peak
            to zero after ``epochs * samples * steps`` of them; samples that stop early make fewer, and the run
            then ends above zero. ``"sgd"``: plain gradient descent at a constant rate, as Algorithm 1 writes it.
        weight_decay: Of AdamW, decoupled.
        loss_reduction: ``"mean"``: nats per token of the answer, what supervised fine-tuning minimises and the paper's
            runs, made in an ordinary trainer, compared with tau. ``"sum"``: -log P(answer | prompt) as Eq. 1 writes it,
            which asks more of long answers. Equal for answers of one token.
        layer: The block whose FFN trains, counted from 0; ignored with ``modules``. ``None``: the one as deep as the
            paper's, the fifth of 32 blocks (:meth:`layer_of`).
        modules: Names of the modules that train instead, all of their parameters, as in ``model.named_modules()``.
        seed: ``None``: samples in the order given, every epoch (Algorithm 1, line 4). A number: a new order each
            epoch, drawn from this seed alone.
        append_eos: Train the end-of-sequence token behind each answer too.
        chat_template: Put prompts through the tokenizer's chat template. ``None``: in the form that they are asked in,
            where something asks (:func:`corsa_plugins.methods.spec.in_form`), else as they are.
        reuse_prefix: Run the blocks below the lowest one that trains once per sample: they are frozen, so what they
            put out never changes. Off, every pass runs the whole model, with the same result.
        prefix_cache_gib: Most memory, on the model's device, for these outputs, in GiB of 2^30 bytes; one takes
            tokens * hidden size numbers (240 KiB for 30 tokens of an 8B model in bfloat16). Samples without room in it
            run through the frozen blocks once per visit, that is, per epoch, instead of once.
        head_on_answers: Run the vocabulary head at the positions that predict the answer only, with the same result.
        keep_weight: Beside Algorithm 1: what the divergence of kept prompts from what the model said to them before is
            weighted by in every step (:mod:`corsa_plugins.corsa.keeping`). The prompts are the requests' about other
            subjects, and text of the model's own (:mod:`corsa_plugins.corsa.kept`). 0, the paper's, holds nothing.
        keep_tolerance: Divergence past which that weight grows, in nats per token.
        keep_batch_size: Kept prompts a step.
        weight: Second stage (Eq. 6), after the last epoch: what the change of each trained parameter is scaled by, the
            paper's 1 - alpha. 1 leaves it whole.
        density: And the share of its elements that stays, the largest in magnitude; the rest goes back. 1 keeps all.
            See :func:`corsa_plugins.merging.deltas.merge_deltas`; the usual values are 0.8 and 0.2. ``"auto"``: the
            smallest of :data:`AUTO_DENSITIES` at which as many requests are said as before the second stage, judged
            by the edit prompts alone; the one at which most are said if none keeps them all.
        on_interrupt: What an interrupted run leaves: ``"restore"``, the weights from before it, bit for bit;
            ``"keep"``, those after the last finished epoch, bit for bit.
    """

    epochs: Count = 5
    steps: Count = 6
    loss_threshold: NonNegative = 0.1
    learning_rate: Positive = 5e-4
    optimizer: Optimizer = "adamw"
    weight_decay: NonNegative = 0.0
    loss_reduction: LossReduction = "mean"
    layer: Annotated[
        BlockNumber | None, Field(description="the number of a block, counted from 0, or None for one as deep as usual")
    ] = None
    modules: Annotated[Sequence[str], Field(min_length=1, description="a list of names of modules")] | None = None
    seed: Annotated[int | None, Field(description="an integer, or None for the order given")] = None
    append_eos: bool = False
    chat_template: bool | None = None
    reuse_prefix: bool = True
    prefix_cache_gib: NonNegative = 1.0
    head_on_answers: bool = True
    keep_weight: NonNegative = 0.0
    keep_tolerance: Positive = 0.05
    keep_batch_size: Count = 8
    weight: float = 1.0
    density: Annotated[
        Annotated[float, Field(ge=0, le=1)] | Literal["auto"],
        Field(description="a number between 0 (keep nothing) and 1 (keep all), or auto"),
    ] = 1.0
    on_interrupt: OnInterrupt = "restore"

    def layer_of(self, n_blocks: int) -> int:
        """The block whose FFN trains, of a model with ``n_blocks``: 5 of 30 to 35, 2 of GPT-2's 12, 1 of four."""
        return round(_DEPTH * n_blocks) if self.layer is None else self.layer

    @property
    def merges(self) -> bool:
        """Whether there is a second stage."""
        return (self.weight, self.density) != (1, 1)
