"""Updates on the testbed, one after the other on one adapter, and the variants of CoRSA that are compared there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from corsa_plugins.bench.protocols.plan import folder_name
from corsa_plugins.data.preferences import to_preference_rows
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.testbed import LoraDefaults
from trl_ext.config import CoRSAConfig
from trl_ext.trainer import CoRSATrainer

__all__ = [
    "ABLATION",
    "CORSA",
    "LORA_SFT",
    "TESTBED_SETTINGS",
    "Method",
    "quiet",
    "train_update",
]

_DEFAULTS = LoraDefaults()

#: The testbed's own settings, for every method alike. The adapter is `paper_lora_config`, the trainer's default.
TESTBED_SETTINGS: Mapping[str, Any] = {
    "learning_rate": _DEFAULTS.learning_rate,
    "num_train_epochs": _DEFAULTS.epochs,
    "per_device_train_batch_size": _DEFAULTS.batch_size,
    "gradient_accumulation_steps": _DEFAULTS.accumulation,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
}


@dataclass(frozen=True)
class Method:
    """A way to train an adapter: a name, and what it changes in `CoRSAConfig`."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name as a folder is named."""
        return folder_name(self.name)


LORA_SFT = Method("LoRA SFT", {"dpo_weight": 0.0, "sam_rho": 0.0})
CORSA = Method("CoRSA")

#: The paper's ablation (Table 9), built up and taken apart.
ABLATION = (
    LORA_SFT,
    Method("+ DPO", {"sam_rho": 0.0, "pcgrad": False}),
    Method("+ DPO + SAM", {"pcgrad": False}),
    Method("+ DPO + SAM + PCGrad (CoRSA)"),
    Method("CoRSA without SAM", {"sam_rho": 0.0}),
    Method("CoRSA without DPO", {"dpo_weight": 0.0}),
)


def train_update(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    method: Method,
    output_dir: Path,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] = TESTBED_SETTINGS,
) -> CoRSATrainer:
    """One update: train an adapter on the requests, or the adapter that ``model`` has already.

    Args:
        model: the base model, for a first update; for later ones the ``PeftModel`` of the one before.
        output_dir: gets the adapter.
        seed: of the adapter's initial values and the order of the data.

    Returns:
        The trainer; its ``model`` is the edited one, and its ``state.log_history`` what was logged.
    """
    config: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 10}
    config |= {**settings, **method.settings, "output_dir": str(output_dir), "seed": seed}
    with quiet():
        trainer = CoRSATrainer(
            model=model,
            args=CoRSAConfig(**config),
            train_dataset=Dataset.from_list(to_preference_rows(requests)),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model()
    return trainer


@contextmanager
def quiet() -> Iterator[None]:
    """Without the frameworks' bars and notices, which are about a single training among many."""
    verbosity = transformers.logging.get_verbosity()
    bars = datasets.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            datasets.utils.logging.enable_progress_bar()
