"""Hyper-parameters of LocFT-BF in EasyEdit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from corsa_plugins.settings import BlockNumber, InvalidSettingsError
from easyedit_ext.hparams.base import HyperParams, hparams_errors

if TYPE_CHECKING:
    from corsa_plugins.methods.locft.settings import LocFTSettings

__all__ = ["LocFTBFHyperParams"]

_FIELDS: Mapping[str, str] = {
    "trains": "trains",
    "epochs": "epochs",
    "batch_size": "step_size",
    "learning_rate": "learning_rate",
    "loss_threshold": "loss_threshold",
    "append_eos": "append_eos",
}
"""Settings of :class:`corsa_plugins.methods.locft.settings.LocFTSettings`, and the fields here that they come from."""

OneLayer = Annotated[
    Annotated[list[BlockNumber], Field(min_length=1, max_length=1)] | None,
    Field(description="a list of the number of one block, counted from 0, or left out for one as deep as usual"),
]


@dataclass(kw_only=True)
class LocFTBFHyperParams(HyperParams):
    """Fine-tuning, breadth first, of one down projection; the published values are the defaults.

    ``batch_size`` is EasyEdit's: the requests that ``batch_edit`` hands over together. Breadth first means many: with
    one there is nothing to visit in turn.

    Attributes:
        layers: The one block that trains, counted from 0; ``None``: the one as deep as LLaMA3-8B's, the 22nd of 32.
        trains: ``"down"``: the weight of the FFN's down projection. ``"block"``: all of the block.
        epochs: Most passes over all requests.
        step_size: Requests of a step; ``batch_size`` of :class:`corsa_plugins.methods.locft.settings.LocFTSettings`.
        learning_rate: Of Adam, constant.
        loss_threshold: In nats per token: a batch with a smaller loss makes no step, and an epoch with a smaller mean
            is the last.
        append_eos: Train the end-of-sequence token behind each answer too.
        chat_template: Put prompts through the tokenizer's chat template; ``None``: as ``use_chat_template`` says, by
            which EasyEdit's evaluation asks them.
        seed: Of the order of the requests.
    """

    METHOD: ClassVar[str] = "LocFTBF"
    FOREIGN: ClassVar[Mapping[str, str]] = {
        "layer": "layers",
        "lr": "learning_rate",
        "num_steps": "epochs",
        "num_epochs": "epochs",
        "train_batch_size": "step_size",
    }

    layers: OneLayer = None
    trains: str = "down"
    epochs: int = 25
    step_size: int = 100
    learning_rate: float = 5e-4
    loss_threshold: float = 1e-2
    append_eos: bool = True
    chat_template: bool | None = None
    seed: int = 0

    def check(self) -> None:
        super().check()
        self.settings()

    def settings(self) -> LocFTSettings:
        """The settings of the training.

        Raises:
            HparamsError: A value out of its range; the message names the field.
        """
        from corsa_plugins.methods.locft.settings import LocFTSettings

        values: dict[str, Any] = {own: getattr(self, field) for own, field in _FIELDS.items()}
        values["layer"] = self.layers[0] if self.layers else None
        values["chat_template"] = self.use_chat_template or None if self.chat_template is None else self.chat_template
        with hparams_errors():
            try:
                return LocFTSettings.from_dict(values)
            except InvalidSettingsError as error:
                raise error.renamed(_FIELDS) from error
