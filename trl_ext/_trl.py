"""What TRL, transformers, PEFT and accelerate keep to themselves and the trainer needs, under names of our own.

No other module of the extension uses a private name of theirs. The contract is checked when this module is imported: a
version without one of the names, or without a parameter that it is called with, is refused by one error that says what
is missing and which versions are known.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from corsa_plugins.errors import CorsaError

__all__ = [
    "CONTRACT",
    "KNOWN",
    "REFERENCE",
    "TRAINED",
    "BaseTunerLayer",
    "FusedCausalLMOutput",
    "HfDeepSpeedConfig",
    "Need",
    "PreferenceTrainer",
    "UnknownVersionError",
    "broken_contract",
    "carries_adapter",
    "clear_device_cache",
    "disable_input_gradients",
]

KNOWN = {"trl": "1.16", "transformers": "5.23", "peft": "0.21", "accelerate": "1.15"}
"""The versions the contract was read from, and the tests run with. Others pass if they keep it."""

TRAINED, REFERENCE = "default", "ref"
"""The names that `DPOTrainer` knows the adapter it trains by, and the frozen copy of it that is its reference."""

_TITLES = {"trl": "TRL", "peft": "PEFT"}


class UnknownVersionError(CorsaError):
    """An installed framework is not what the trainer was written for; the message says what is missing."""


@dataclass(frozen=True)
class Need:
    """A name that is relied on.

    Attributes:
        owner: ``"module:Class"``, or ``"module"``.
        name: Of the owner.
        parameters: That it is called with, or that a method of ours in its place is called with.
        instance: It is set on an object of the class, not on the class.
    """

    owner: str
    name: str
    parameters: tuple[str, ...] = ()
    instance: bool = False

    @property
    def distribution(self) -> str:
        """What is installed to have it."""
        return self.owner.partition(":")[0].partition(".")[0]

    def missing(self) -> str | None:
        """What is missing, for a message; ``None`` where the installed version has it all."""
        module, _, owner_name = self.owner.partition(":")
        shown = ".".join(part for part in (module, owner_name, self.name) if part)
        try:
            owner: Any = import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module or module == self.distribution:
                raise
            return shown
        if owner_name:
            owner = getattr(owner, owner_name, None)
        if owner is None:
            return shown
        if self.instance:
            return None if _mentions(owner, self.name) else shown
        value = getattr(owner, self.name, None)
        if value is None:
            return shown
        absent = sorted(set(self.parameters) - set(inspect.signature(value).parameters)) if self.parameters else []
        return f"{shown}({', '.join(absent)})" if absent else None


def _mentions(owner: type, name: str) -> bool:
    """Whether any method of the class or of its bases gets or sets an attribute of that name."""
    methods = (inspect.unwrap(value) for base in owner.__mro__ for value in vars(base).values() if callable(value))
    return any(name in method.__code__.co_names for method in methods if hasattr(method, "__code__"))


_DPO = "trl:DPOTrainer"

CONTRACT = (
    Need(_DPO, "_name"),
    Need(_DPO, "_tag_names"),
    Need(_DPO, "_paper"),
    Need(_DPO, "_prepare_dataset", ("dataset", "processing_class", "args", "dataset_name")),
    Need(_DPO, "_precompute_ref_logps", ("dataset", "name", "batch_size")),
    Need(_DPO, "compute_ref_log_probs", ("model", "inputs")),
    Need(_DPO, "_compute_loss", ("model", "inputs", "return_outputs")),
    Need(_DPO, "_prepare_inputs", ("inputs",)),
    Need(_DPO, "_save", ("output_dir", "state_dict")),
    Need(_DPO, "_save_checkpoint", ("model", "trial")),
    Need(_DPO, "_get_output_dir", ("trial",)),
    Need(_DPO, "save_model", ("output_dir", "_internal_call")),
    Need(_DPO, "_set_signature_columns_if_needed"),
    Need(_DPO, "_signature_columns", instance=True),
    Need(_DPO, "compute_loss_context_manager"),
    Need(_DPO, "_is_vision_dataset", instance=True),
    Need(_DPO, "_metrics", instance=True),
    Need(_DPO, "_total_train_tokens", instance=True),
    Need(_DPO, "precompute_ref_logps", instance=True),
    Need(_DPO, "ref_model", instance=True),
    Need(_DPO, "use_weighting", instance=True),
    Need(_DPO, "ld_alpha", instance=True),
    Need(_DPO, "maybe_activation_offload_context", instance=True),
    Need(_DPO, "current_gradient_accumulation_steps", instance=True),
    Need(_DPO, "neftune_noise_alpha", instance=True),
    Need(_DPO, "is_fsdp_enabled", instance=True),
    Need("transformers:Trainer", "create_accelerator_and_postprocess"),
    Need("transformers.trainer_utils", "rotate_checkpoints",
         ("output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime")),
    Need("accelerate:Accelerator", "prepare_model", ("model", "device_placement", "evaluation_mode")),
    Need("trl.trainer.utils", "add_fused_lm_head", ("model", "outputs")),
    Need("trl.trainer.utils", "FusedCausalLMOutput",
         ("loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")),
    Need("transformers:PreTrainedModel", "disable_input_require_grads"),
    Need("transformers:PreTrainedModel", "_require_grads_hook", instance=True),
    Need("peft:PeftModel", "save_pretrained", ("selected_adapters",)),
    Need("peft.tuners.tuners_utils", "BaseTunerLayer"),
    Need("peft.tuners.lora.layer:LoraLayer", "lora_variant", instance=True),  # read by corsa_plugins.corsa.gradients
    Need("accelerate.utils.memory", "clear_device_cache"),
    Need("accelerate.utils.deepspeed", "HfDeepSpeedConfig", ("config_file_or_dict",)),
)  # fmt: skip
"""Every name that is relied on and not promised by the documentation of its framework."""


def broken_contract(needs: Sequence[Need] = CONTRACT) -> str | None:
    """What the installed versions lack, and which versions to install; ``None`` where they lack nothing."""
    missing: dict[str, list[str]] = {}
    for need in needs:
        lack = need.missing()
        if lack is not None:
            missing.setdefault(need.distribution, []).append(lack)
    if not missing:
        return None
    lines = [
        f"{_TITLES.get(name, name)} {version(name)} has no {', no '.join(lacks)}; the version known to have it is "
        f"{KNOWN[name]}"
        for name, lacks in missing.items()
    ]
    known = " ".join(f"'{name}=={KNOWN[name]}.*'" for name in missing)
    return f"trl_ext cannot work with what is installed: {'. '.join(lines)}. Run: pip install {known}"


_broken = broken_contract()
if _broken is not None:
    raise UnknownVersionError(_broken)

# Behind the check, which says what is missing in more than the first of these.
from accelerate.utils.deepspeed import HfDeepSpeedConfig  # noqa: E402
from accelerate.utils.memory import clear_device_cache  # noqa: E402
from peft import PeftModel  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402
from transformers.trainer_utils import rotate_checkpoints  # noqa: E402
from trl import DPOTrainer  # noqa: E402
from trl.trainer.utils import FusedCausalLMOutput  # noqa: E402


class PreferenceTrainer(DPOTrainer):
    """`DPOTrainer`, its private parts under public names.

    A subclass says who it is where it is declared, ``class Mine(PreferenceTrainer, title=..., tags=..., paper=...)``,
    overrides :meth:`check_dataset`, :meth:`check_prepared`, :meth:`add_reference`, :meth:`evaluation_loss`,
    :meth:`before_checkpoint` and :meth:`after_checkpoint`, and calls the others.
    """

    # Of the base class, whose annotations are not read:
    args: Any
    model: PeftModel
    ref_model: PreTrainedModel | None
    precompute_ref_logps: bool
    train_dataset: Any
    eval_dataset: Any
    _metrics: dict[str, Any]
    _signature_columns: list[str] | None
    _total_train_tokens: float

    _limit: tuple[int | None, ...] = ()
    """How many checkpoints are to be kept, while one is written."""

    def __init_subclass__(
        cls,
        *,
        title: str | None = None,
        tags: Sequence[str] = (),
        paper: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if title is not None:  # else those of the base class: a user's own subclass
            cls._name, cls._tag_names, cls._paper = title, list(tags), dict(paper or {})

    # --- To override ---

    def check_dataset(self, dataset: Any, name: str) -> Any:
        """The data set as it goes to :class:`DPOTrainer`, once it is known to be usable.

        Args:
            dataset: As the user gave it.
            name: ``"train"``, ``"eval"``, or the name of one of several evaluation sets.
        """
        return dataset

    def check_prepared(self, dataset: Any, prepared: Any, name: str, max_length: int | None) -> None:
        """Look at what became of a data set: ``prepared`` is tokenised, without rows that fill ``max_length``."""

    def add_reference(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The data set with columns of log-probabilities under the reference, for each of the two answers."""
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def evaluation_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The loss of a batch outside training; with ``return_outputs`` a pair of it and the model's outputs."""
        return self.preference_loss(model, inputs, return_outputs)

    def before_checkpoint(self, folder: Path) -> None:
        """Do what is to be done before anything of a checkpoint is written to its folder."""

    def after_checkpoint(self, folder: Path) -> None:
        """Do what is to be done when all of it is written, by every process, before older ones are removed."""

    # --- To call ---

    @property
    def holds_images(self) -> bool:
        """Whether the data set does."""
        return self._is_vision_dataset

    def placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the trainer's device."""
        return self._prepare_inputs(inputs)

    def preference_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """TRL's loss, with its metrics recorded; the reference comes from the batch where the batch has it."""
        precomputed = self.precompute_ref_logps
        self.precompute_ref_logps = precomputed or "ref_chosen_logps" in inputs
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = precomputed

    def record(self, mode: str, name: str, value: float) -> None:
        """A number for the next log of ``mode``, ``"train"`` or ``"eval"``, which shows the mean under each name."""
        self._metrics[mode][name].append(value)

    def record_tokens(self, mask: Tensor) -> None:
        """Count the training tokens of a batch, of all processes, where TRL's loss has not been run on it."""
        self._total_train_tokens += self.accelerator.gather_for_metrics(mask.sum()).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    @contextmanager
    def muted(self, mute: bool = True) -> Iterator[None]:
        """Keep what is recorded inside out of the logs, and its tokens uncounted."""
        if not mute:
            yield
            return
        metrics, tokens = self._metrics, self._total_train_tokens
        self._metrics = {mode: type(values)(list) for mode, values in metrics.items()}
        try:
            yield
        finally:
            self._metrics, self._total_train_tokens = metrics, tokens

    @contextmanager
    def alone(self, alone: bool = True) -> Iterator[None]:
        """What is recorded inside is of this process: nothing is gathered. For batches that not every process has."""
        if not alone:
            yield
            return
        own: dict[str, Any] = self.accelerator.__dict__
        names = ("gather", "gather_for_metrics")
        before = {name: own[name] for name in names if name in own}
        own.update({name: _as_it_is for name in names})
        try:
            yield
        finally:
            for name in names:
                del own[name]
            own.update(before)

    # --- The private names ---

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        dataset = self.check_dataset(dataset, dataset_name)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        self.check_prepared(dataset, prepared, dataset_name, args.max_length)
        return prepared

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return self.add_reference(dataset, name, batch_size)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        return self.evaluation_loss(model, inputs, return_outputs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # The sampler that groups by length is given what is left of the data set, where TRL leaves no lengths.
        if self._signature_columns is not None and self.args.length_column_name not in self._signature_columns:
            self._signature_columns.append(self.args.length_column_name)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(self._get_output_dir(trial=trial))
        folder = output / f"checkpoint-{self.state.global_step}"
        self.before_checkpoint(folder)
        args, self._limit = self.args, (self.args.save_total_limit,)
        args.save_total_limit = None  # `Trainer` would remove older ones before this one is known to be whole
        try:
            super()._save_checkpoint(model, trial)
        finally:
            (args.save_total_limit,), self._limit = self._limit, ()
        self.after_checkpoint(folder)
        if args.should_save:
            rotate_checkpoints(
                output_dir=str(output),
                save_total_limit=args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # The trained adapter alone: a frozen copy that is the reference is a means of training, not a result.
        self.model.save_pretrained = functools.partial(self.model.save_pretrained, selected_adapters=[TRAINED])
        within = self.args.save_total_limit
        (self.args.save_total_limit,) = self._limit or (within,)  # the arguments are saved as they were given
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.save_total_limit = within
            del self.model.save_pretrained


def _as_it_is(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def carries_adapter(model: nn.Module) -> bool:
    """Whether any layer of the model is PEFT's, with or without a ``PeftModel`` around it."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def disable_input_gradients(model: PreTrainedModel) -> None:
    """Take back ``enable_input_require_grads``, which TRL calls for gradient checkpointing, and what it leaves."""
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()
        vars(model).pop("_require_grads_hooks", None)
