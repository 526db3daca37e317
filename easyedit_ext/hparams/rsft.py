"""Hyper-parameters of R-SFT in EasyEdit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from corsa_plugins.settings import BlockNumber
from easyedit_ext.hparams.base import HyperParams, Template, hparams_errors

if TYPE_CHECKING:
    from corsa_plugins.rsft import RSFTSettings

__all__ = ["RSFTHyperParams"]

_OURS = (
    "epochs",
    "steps",
    "loss_threshold",
    "learning_rate",
    "optimizer",
    "weight_decay",
    "loss_reduction",
    "seed",
    "append_eos",
    "chat_template",
    "reuse_prefix",
    "prefix_cache_gib",
    "keep_weight",
    "keep_tolerance",
    "keep_batch_size",
    "weight",
    "density",
)
"""The fields that are settings of :class:`corsa_plugins.rsft.RSFTSettings`, under the same names."""


def _each_once(layers: list[int]) -> list[int]:
    if len(set(layers)) != len(layers):
        raise ValueError
    return layers


Layers = Annotated[
    list[BlockNumber],
    Field(min_length=1, description="a list of the numbers of blocks, counted from 0, each once"),
    AfterValidator(_each_once),
]


@dataclass(kw_only=True)
class RSFTHyperParams(HyperParams):
    """Robust supervised fine-tuning of one FFN; the paper's values are the defaults.

    The fields not described here are those of :class:`corsa_plugins.rsft.RSFTSettings`, under the same names.

    Attributes:
        layers: The blocks whose FFN trains, counted from 0; one in the paper.
        mlp_module_tmp: Name of the FFN with ``{}`` for the number of the block, for instance ``"model.layers.{}.mlp"``.
            ``None``: it is found from how the model is built.
        modules: Names of the modules that train instead of the FFN of ``layers``.
        chat_template: Put prompts through the tokenizer's chat template; ``None``: as ``use_chat_template`` says, by
            which EasyEdit's evaluation asks them.
    """

    METHOD: ClassVar[str] = "RSFT"
    PARTS: ClassVar[Mapping[str, str]] = {"ffn": "mlp_module_tmp"}
    REMEDY: ClassVar[str | None] = (
        ': name what trains by mlp_module_tmp, for instance mlp_module_tmp="model.layers.{}.mlp", or by modules'
    )
    FOREIGN: ClassVar[Mapping[str, str]] = {
        "lr": "learning_rate",
        "num_steps": "steps",
        "num_epochs": "epochs",
        "layer": "layers",
        "rewrite_module_tmp": "mlp_module_tmp",
        "tau": "loss_threshold",
    }

    layers: Layers = field(default_factory=lambda: [5])
    mlp_module_tmp: Template = None
    modules: list[str] | None = None
    epochs: int = 5
    steps: int = 6
    loss_threshold: float = 0.1
    learning_rate: float = 5e-4
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    loss_reduction: str = "mean"
    seed: int | None = None
    append_eos: bool = False
    chat_template: bool | None = None
    reuse_prefix: bool = True
    prefix_cache_gib: float = 1.0
    keep_weight: float = 0.0
    keep_tolerance: float = 0.05
    keep_batch_size: int = 8
    weight: float = 1.0
    density: float | Literal["auto"] = 1.0

    def check(self) -> None:
        super().check()
        self.settings(modules=["any"])

    def settings(self, modules: list[str]) -> RSFTSettings:
        """The settings for training ``modules``.

        Raises:
            HparamsError: A value out of its range; the message names it.
        """
        from corsa_plugins.rsft import RSFTSettings

        values: dict[str, Any] = {name: getattr(self, name) for name in _OURS}
        if self.chat_template is None:
            values["chat_template"] = self.use_chat_template or None
        with hparams_errors():
            return RSFTSettings(modules=modules, **values)
