"""Updates on the testbed, one after the other on one adapter, as the demo and the benchmarks run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from corsa_plugins.preferences import to_preference_rows
from corsa_plugins.requests import EditRequest
from trl_ext.config import CoRSAConfig
from trl_ext.trainer import CoRSATrainer

__all__ = ["ABLATION", "CORSA", "LORA_SFT", "TESTBED_SETTINGS", "Method", "train_update"]

# The paper's adapter and batch (A.2). The learning rate and the number of epochs are the testbed's: with them LoRA SFT
# has just learnt 95 % of its edits. Every method gets the same ones.
TESTBED_SETTINGS: Mapping[str, Any] = {
    "learning_rate": 5e-4,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
}


@dataclass(frozen=True)
class Method:
    """A way to train an adapter: a name, and what it changes in `CoRSAConfig`."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


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
    on_step: Callable[[float], None] | None = None,
    settings: Mapping[str, Any] = TESTBED_SETTINGS,
) -> CoRSATrainer:
    """One update: train an adapter on the requests, or the adapter that ``model`` has already.

    Args:
        model: the base model, for a first update; for later ones the ``PeftModel`` of the one before.
        output_dir: gets the adapter.
        seed: of the adapter's initial values and the order of the data.
        on_step: called after each optimiser step with the share of the training that is done, in [0, 1].

    Returns:
        The trainer; its ``model`` is the edited one, and its ``state.log_history`` what was logged.
    """
    config: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 10}
    config |= {**settings, **method.settings, "output_dir": str(output_dir), "seed": seed}
    with _quiet():
        trainer = CoRSATrainer(
            model=model,
            args=CoRSAConfig(**config),
            train_dataset=Dataset.from_list(to_preference_rows(requests)),
            processing_class=tokenizer,
            callbacks=[_Progress(on_step)] if on_step is not None else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model()
    return trainer


class _Progress(TrainerCallback):
    def __init__(self, on_step: Callable[[float], None]):
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step / state.max_steps)


@contextmanager
def _quiet() -> Iterator[None]:
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
