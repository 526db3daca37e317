"""How value vectors are looked for: the settings, with AlphaEdit's values as defaults."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from corsa_plugins.alphaedit.lookup.subjects import FactToken
from corsa_plugins.errors import SettingError

__all__ = ["RateUnit", "ValueSettings"]

RateUnit = Literal["absolute", "relative"]


@dataclass(frozen=True)
class ValueSettings:
    """The optimisation of v*, one vector per request, as ROME and MEMIT do it.

    Attributes:
        steps: Most evaluations of the loss. Nothing is updated after the last one, so that there are at most
            ``steps - 1`` updates, as in the published implementations.
        lr: Adam's learning rate. Adam moves each coordinate by about as much per step.
        lr_unit: ``"absolute"``: the rate itself, which suits one model. ``"relative"``: in units of a typical
            coordinate of the block's output there, norm / sqrt(hidden size), for each request; this carries over.
        loss_layer: Where the target is read: ``None`` or the last block for the model's own logits, an earlier block
            for the final norm and the head on what that block puts out. Never below the edited block.
        weight_decay: Factor of ||delta|| / ||h||^2 in the loss, h being the block's output there.
        clamp: Most norm of delta, in units of the norm of h; it is scaled back after each update.
        kl_factor: Factor of the KL divergence of what follows the subject in "{subject} is a" from what it was.
            0 leaves the prompt out.
        stop_loss: The optimisation of a request ends once its whole loss, evaluated before an update, is under it.
        batch_size: Requests optimised side by side. Each has its own delta, rate, limit and end; what they are
            batched with makes no difference beyond rounding.
        fact_token: Where the fact is looked up: ``"subject_last"``, ``"subject_first"``,
            ``"subject_first_after_last"`` or ``"last"``, always in the prompt, also with the target behind it.
        reuse_prefix: Run the blocks up to the edited one, and the tokens before the edited one, once per batch: what
            they put out never changes. Off, every pass runs the whole model on the whole texts, with the same result.
    """

    steps: int = 25
    lr: float = 0.1
    lr_unit: RateUnit = "absolute"
    loss_layer: int | None = None
    weight_decay: float = 0.5
    clamp: float = 0.75
    kl_factor: float = 0.0625
    stop_loss: float = 0.05
    batch_size: int = 16
    fact_token: FactToken = "subject_last"
    reuse_prefix: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            self._require(name, _is_int(getattr(self, name)) and getattr(self, name) >= 1, "an integer of at least 1")
        for name in ("lr", "clamp"):
            self._require(name, _is_number(getattr(self, name)) and getattr(self, name) > 0, "a number over 0")
        for name in ("weight_decay", "kl_factor", "stop_loss"):
            value = getattr(self, name)
            self._require(name, _is_number(value) and value >= 0, "a finite number, 0 or more")
        for name, kind in (("lr_unit", RateUnit), ("fact_token", FactToken)):
            self._require(name, getattr(self, name) in get_args(kind), f"one of {', '.join(get_args(kind))}")
        layer, wanted = self.loss_layer, "the number of a block, or None for the last"
        self._require("loss_layer", layer is None or (_is_int(layer) and layer >= 0), wanted)
        self._require("reuse_prefix", isinstance(self.reuse_prefix, bool), "true or false")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise SettingError(f"{name} is {getattr(self, name)!r}: it must be {wanted}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
