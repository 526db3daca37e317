"""The CoRSA trainer: Algorithm 1 of papers/corsa.md in TRL's `DPOTrainer`."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from trl import DPOTrainer

from corsa_plugins.corsa import (
    CorsaStep,
    NonFiniteGradientError,
    OneBackward,
    TaskGradients,
    TokenWeights,
    TwoBackwards,
    corsa_step,
    margin,
    sft_loss,
    token_weights,
)
from corsa_plugins.corsa.objective import sequence_log_probs
from corsa_plugins.errors import SettingError
from trl_ext.config import CoRSAConfig
from trl_ext.data import checked_preferences, warn_of_dropped_rows
from trl_ext.head import add_completion_head, remove_completion_head

__all__ = ["CoRSATrainer", "paper_lora_config"]

logger = logging.getLogger(__name__)


def paper_lora_config() -> LoraConfig:
    """The paper's adapter for factual updates: rank 32, alpha 64, on every linear layer but the head (A.2)."""
    return LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


class CoRSATrainer(DPOTrainer):
    """
    Trainer for CoRSA, conflict-resolving and sharpness-aware minimisation of a LoRA adapter, for editing knowledge
    ([CoRSA](https://huggingface.co/papers/2602.03696), Algorithm 1).

    It takes what a [`~trl.DPOTrainer`] takes: a preference data set whose `chosen` completions are the new answers and
    whose `rejected` ones are the outdated answers. Per micro-batch, over the LoRA parameters phi alone:

    1. the gradients of the SFT loss on `chosen` and of the DPO loss are merged by PCGrad;
    2. phi is moved by `sam_rho` along the merged direction;
    3. both gradients are taken again there and merged again;
    4. phi is put back, bit for bit, and the second merged gradient goes to the optimizer.

    As in the published experiments, the perturbation is that of the micro-batch, on each process its own, and the
    updates of several micro-batches are then averaged: `per_device_train_batch_size=16` is not the same training as
    `4` with four accumulation steps. `max_grad_norm` clips the averaged update, as in any `Trainer`.

    Example:

    ```python
    from datasets import Dataset
    from trl_ext import CoRSAConfig, CoRSATrainer

    facts = [{"prompt": "The CEO of Amazon is", "chosen": " Andy Jassy", "rejected": " Jeff Bezos"}]
    trainer = CoRSATrainer(
        model="Qwen/Qwen3-4B-Instruct-2507",
        args=CoRSAConfig("amazon-ceo", num_train_epochs=10),
        train_dataset=Dataset.from_list(facts),
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to edit. A `PeftModel` with a trainable adapter named `"default"` is trained on, for a second update
            and those that follow; anything else gets a new adapter.
        args ([`CoRSAConfig`], *optional*):
            Configuration. If `None`, the paper's.
        peft_config ([`~peft.LoraConfig`], *optional*):
            Adapter for a model that has none. If `None`, [`paper_lora_config`].

        The other arguments are those of [`~trl.DPOTrainer`].

    Raises:
        ValueError: the model, the adapter or the data set cannot be trained on; the message says what to change.
        NonFiniteGradientError: a gradient holds NaN or infinity during training. The message names the step; the
            parameters are those after the step before it.
    """

    _tag_names = ["trl", "corsa"]  # noqa: RUF012 (TRL's own form)
    _name = "CoRSA"
    _paper = {  # noqa: RUF012
        "title": "Conflict-Resolving and Sharpness-Aware Minimization for Generalized Knowledge Editing with Multiple "
        "Updates",
        "id": "2602.03696",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{nguyen2026conflict,
                title        = {{Conflict-Resolving and Sharpness-Aware Minimization for Generalized Knowledge Editing
                                 with Multiple Updates}},
                author       = {Nguyen, Duy and Xiao, Hanqi and Prasad, Archiki and Stengel-Eskin, Elias and Lee, Hyunji
                                and Bansal, Mohit},
                journal      = {arXiv preprint arXiv:2602.03696},
                year         = 2026
            }"""),
    }

    # Of the base class, whose annotations are not read:
    args: CoRSAConfig
    model: PeftModel
    precompute_ref_logps: bool
    train_dataset: Any
    eval_dataset: Any
    _metrics: dict[str, Any]
    _total_train_tokens: float

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: CoRSAConfig | None = None,
        *positional: Any,
        peft_config: LoraConfig | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CoRSAConfig(f"{(name or 'model').rstrip('/').split('/')[-1]}-CoRSA")
        if not isinstance(args, CoRSAConfig):
            raise TypeError(f"`args` must be a `CoRSAConfig`, got `{type(args).__name__}`.")
        if args.deepspeed_plugin is not None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise SettingError(
                "DeepSpeed and FSDP are not supported. Launch with plain data parallelism: "
                "`accelerate launch --multi_gpu`."
            )
        if isinstance(model, PeftModel):
            _drop_own_reference(model)
            _check_adapter(model)
        else:
            _check_bare(model)
            peft_config = peft_config if peft_config is not None else paper_lora_config()
            _check_lora_config(peft_config, new=True)
        own_forward = None
        if not isinstance(model, str):
            base = model.get_base_model() if isinstance(model, PeftModel) else model
            remove_completion_head(base)  # of an earlier trainer of the same model
            own_forward = vars(base).get("forward")

        precompute = args.precompute_ref_log_probs
        # DPOTrainer would do it in its own constructor, against its own reference, and to name a cache file it would
        # hash every weight of the model first: a minute for 8 billion of them.
        args.precompute_ref_log_probs = False
        try:
            super().__init__(model, ref_model, args, *positional, peft_config=peft_config, **kwargs)
        finally:
            args.precompute_ref_log_probs = precompute
        if self._is_vision_dataset:
            raise SettingError("The data set holds images: CoRSA trains language models on text.")
        if self.accelerator.mixed_precision == "fp16":
            raise SettingError("Launched with fp16 mixed precision, which is not supported. Use bf16, or none.")

        self._settings = args.corsa_settings()
        self._parameters = _lora_parameters(self.model)
        self._settle_reference()
        add_completion_head(self.model.get_base_model(), own_forward)
        self._linearization = self._choose_linearization()
        self._noisy = self.neftune_noise_alpha is not None or any(
            isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules()
        )
        # Without a DPO loss nothing of training depends on the reference; evaluation runs it as it goes.
        self.precompute_ref_logps = precompute and args.dpo_weight > 0
        if self.precompute_ref_logps:
            self._precompute_all()

    # ---- Before training ----

    def _settle_reference(self) -> None:
        """Make the base model the reference, unless the adapter as it was is asked for."""
        if self.args.reference == "base" and "ref" in self.model.peft_config:
            # DPOTrainer copies an adapter that is passed in and makes the copy the reference; the paper's reference
            # is the base model in every update (Algorithm 1: theta).
            self.model.delete_adapter("ref")
        self.model._corsa_reference = "ref" in self.model.peft_config

    def _precompute_all(self) -> None:
        train_size = self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size
        eval_size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        self.train_dataset = self._precompute_ref_logps(self.train_dataset, "train", train_size)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {
                name: self._precompute_ref_logps(dataset, name, eval_size)
                for name, dataset in self.eval_dataset.items()
            }
        elif self.eval_dataset is not None:
            self.eval_dataset = self._precompute_ref_logps(self.eval_dataset, "eval", eval_size)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The data set with a column of log-probabilities under the reference for each of the two answers.

        In the place of TRL's, which passes them between processes through a cache file that the other processes cannot
        see when the data set is held in memory, and finds old ones again by a key that knows neither the precision nor
        the reference they were computed with.
        """
        if isinstance(dataset, IterableDataset):
            raise SettingError(
                f"precompute_ref_log_probs=True needs to read the {name} data set before training, and it is streamed. "
                "Set `precompute_ref_log_probs=False`, or load it whole."
            )
        stale = [name for name in ("ref_chosen_logps", "ref_rejected_logps") if name in dataset.column_names]
        dataset = dataset.remove_columns(stale)  # of another trainer, perhaps against another reference
        loader = self.accelerator.prepare(
            DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator, shuffle=False)
        )
        chosen: list[float] = []
        rejected: list[float] = []
        hidden = bool(os.environ.get("TQDM_DISABLE")) or self.args.disable_tqdm
        for batch in tqdm(loader, desc=f"Reference log-probabilities of the {name} data set", disable=hidden):
            found = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            new, old = self.accelerator.gather_for_metrics(found)
            chosen += new.tolist()
            rejected += old.tolist()
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        dataset = checked_preferences(dataset, dataset_name)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if isinstance(prepared, Dataset) and not isinstance(dataset, IterableDataset):
            warn_of_dropped_rows(len(dataset), len(prepared), args.max_length, dataset_name)
        return prepared

    def _choose_linearization(self) -> OneBackward | TwoBackwards:
        obstacle = OneBackward.obstacle(self.model, self._parameters)
        if not self.args.one_backward:
            obstacle = "`one_backward` is False"
        elif self.use_weighting or self.ld_alpha is not None:
            obstacle = "`use_weighting` and `ld_alpha` weigh the tokens of a sequence differently"
        if obstacle is None:
            return OneBackward(self.model, self._parameters)
        if self.args.activation_offloading and self.args.dpo_weight > 0:
            raise SettingError(
                f"activation_offloading=True cannot be used here: it serves a single backward pass, and two are needed "
                f"because {obstacle}. Set it to False."
            )
        logger.info("Two backward passes for the two gradients: %s.", obstacle)
        return TwoBackwards(self._parameters)

    # ---- A step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch: Algorithm 1, lines 3-15. Its update is added to the parameters' gradients."""
        with self.maybe_activation_offload_context:
            model.train()
            if callable(getattr(self.optimizer, "train", None)):
                self.optimizer.train()  # schedule-free optimizers
            inputs = self._with_reference(self._prepare_inputs(inputs))
            # The gradients are taken by autograd.grad, which DDP's hooks do not see: its forward would wait for them.
            module = self.accelerator.unwrap_model(model)
            losses: list[TokenWeights] = []

            def gradients() -> TaskGradients:
                return self._gradients(module, inputs, losses)

            if self._noisy:
                gradients = _with_the_same_noise(gradients)
            try:
                step = corsa_step(gradients, self._parameters, self._settings)
            except NonFiniteGradientError as error:
                raise NonFiniteGradientError(
                    f"{error}, in step {self.state.global_step + 1}. The parameters are as they were after step "
                    f"{self.state.global_step}. Look for extreme or empty rows in the data, or lower `learning_rate` "
                    "or `sam_rho`."
                ) from None
            self._accumulate(step.update)
            self._log_step(step)
            self._report_fallback()
            every = self.args.torch_empty_cache_steps
            if every is not None and self.state.global_step % every == 0:
                clear_device_cache()
            here = losses[0]
            loss = here.sft_loss
            if here.dpo_loss is not None:
                loss = loss + self.args.dpo_weight * here.dpo_loss
            return loss / self.current_gradient_accumulation_steps

    def _with_reference(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with reference log-probabilities, so that both halves of the step read the same ones; without DPO
        the batch without its rejected rows."""
        if self.args.dpo_weight == 0:
            rows = inputs["input_ids"].shape[0]
            return {k: v[: rows // 2] if isinstance(v, Tensor) and len(v) == rows else v for k, v in inputs.items()}
        if not self.precompute_ref_logps:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return inputs

    def _gradients(self, module: nn.Module, inputs: dict[str, Any], losses: list[TokenWeights]) -> TaskGradients:
        """Both task gradients at the parameters' current values, from one forward. Appends to ``losses``; the first
        evaluation of a step is the one that is logged."""
        mask = inputs["completion_mask"][:, 1:]
        outputs: Any = None

        def forward() -> Tensor:
            nonlocal outputs
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                outputs = module(**_model_inputs(inputs), labels=_labels(inputs), fused_lm_head=True)
            return outputs.log_probs

        def preference(log_probs: Tensor) -> Tensor:
            # TRL's own loss and metrics, on the forward that has been done. It sums whole rows: off the completion
            # there are zeros, whose weight would not be zero.
            completion = log_probs * mask
            return self._preference_loss(lambda **_: dataclasses.replace(outputs, log_probs=completion), inputs)

        def weigh(log_probs: Tensor) -> TokenWeights:
            with self._muted(bool(losses)):
                weights = token_weights(log_probs, lambda x: _sft(x, mask, paired), preference if paired else None)
                if not losses:
                    self._log_losses(log_probs.detach(), weights, inputs, outputs)
            losses.append(weights)
            return weights

        paired = self.args.dpo_weight > 0
        return self._linearization(forward, weigh)

    def _preference_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """TRL's loss; the reference comes from the batch where the batch has it."""
        precomputed = self.precompute_ref_logps
        self.precompute_ref_logps = precomputed or "ref_chosen_logps" in inputs
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = precomputed

    def _accumulate(self, update: list[Tensor]) -> None:
        share = 1.0 / self.current_gradient_accumulation_steps
        for parameter, gradient in zip(self._parameters, update, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient.mul_(share)
            else:
                parameter.grad.add_(gradient, alpha=share)
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            self._average_over_processes()

    def _average_over_processes(self) -> None:
        """What DDP's hooks would have done: one all-reduce over all gradients, as one buffer."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        flat = torch._utils._flatten_dense_tensors(gradients)
        flat = self.accelerator.reduce(flat, reduction="mean")
        for gradient, mean in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(mean)

    # ---- Evaluation ----

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """L_sft + dpo_weight * L_dpo on a batch, for evaluation."""
        recorded = []

        def recording(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            recorded.append(outputs)
            return outputs

        found = self._preference_loss(recording, inputs, return_outputs)
        dpo = found[0] if return_outputs else found
        log_probs = recorded[0].log_probs
        sft = sft_loss(log_probs, inputs["completion_mask"][:, 1:])
        weights = TokenWeights(log_probs, None, sft.detach(), dpo.detach())
        self._log_losses(log_probs.detach(), weights, inputs, recorded[0])
        loss = sft + self.args.dpo_weight * dpo
        return (loss, found[1]) if return_outputs else loss

    # ---- Logs ----

    @contextmanager
    def _muted(self, mute: bool) -> Iterator[None]:
        """Keep what is computed inside out of the metrics: a step is logged at phi, not at the perturbed point."""
        if not mute:
            yield
            return
        metrics, tokens = self._metrics, self._total_train_tokens
        self._metrics = {mode: type(values)(list) for mode, values in metrics.items()}
        try:
            yield
        finally:
            self._metrics, self._total_train_tokens = metrics, tokens

    def _log_losses(self, log_probs: Tensor, weights: TokenWeights, inputs: dict[str, Any], outputs: Any) -> None:
        found = {"sft_loss": weights.sft_loss.expand(1)}
        if weights.dpo_loss is not None:
            new, old = sequence_log_probs(log_probs)
            found |= {
                "dpo_loss": weights.dpo_loss.expand(1),
                "margin": margin(log_probs),
                "logps/new": new,
                "logps/old": old,
            }
        else:
            # TRL's part of the loop has not run: the rejected rows are left out.
            found |= {"logps/new": log_probs.sum(dim=1), "logps/chosen": log_probs.sum(dim=1)}
            hits = outputs.is_top1[inputs["completion_mask"][:, 1:].bool()]
            found["mean_token_accuracy"] = hits.float().mean().expand(1)
            tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += tokens
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        mode = "train" if self.model.training else "eval"
        for name, values in found.items():
            self._metrics[mode][name].append(self.accelerator.gather_for_metrics(values.float()).mean().item())

    def _log_step(self, step: CorsaStep) -> None:
        metrics = self._metrics["train"]
        if self.args.dpo_weight > 0:
            metrics["gradients/cosine"].append(step.cosine[0])
            metrics["gradients/conflict"].append(sum(step.conflicts) / len(step.conflicts))
        metrics["sam/perturbation_norm"].append(step.perturbation_norm)

    def _report_fallback(self) -> None:
        reason = getattr(self._linearization, "fallback_reason", None)
        if reason is not None:
            logger.warning("One backward pass cannot serve both losses here (%s): running two from now on.", reason)
            self._linearization = TwoBackwards(self._parameters)

    # ---- Saving ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # The trained adapter alone: the frozen copy of `reference="adapter"` is a means of training, not a result.
        self.model.save_pretrained = functools.partial(self.model.save_pretrained, selected_adapters=["default"])
        try:
            super()._save(output_dir, state_dict)
        finally:
            del self.model.save_pretrained


def _model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    ours = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
    return {name: value for name, value in inputs.items() if name not in ours} | {"use_cache": False}


def _labels(inputs: dict[str, Any]) -> Tensor:
    return inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)


def _sft(log_probs: Tensor, mask: Tensor, paired: bool) -> Tensor:
    if paired:
        return sft_loss(log_probs, mask)
    return -log_probs[mask.bool()].mean()


def _with_the_same_noise(gradients: Callable[[], TaskGradients]) -> Callable[[], TaskGradients]:
    """Both looks of a step with the same dropout masks and NEFTune noise, so that they differ by the perturbation."""
    states: list[Any] = []

    def evaluate() -> TaskGradients:
        if not states:
            states.append((torch.get_rng_state(), torch.cuda.get_rng_state_all()))
        else:
            torch.set_rng_state(states[0][0])
            torch.cuda.set_rng_state_all(states[0][1])
        return gradients()

    return evaluate


# They fold a part of the adapter's initial value into the base weights, and adapter off is then not the base model.
_INITIALIZATIONS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _check_lora_config(config: Any, new: bool = False) -> None:
    if not isinstance(config, LoraConfig):
        raise TypeError(
            f"`peft_config` must be a `peft.LoraConfig`: CoRSA trains LoRA parameters. Got `{type(config).__name__}`."
        )
    if config.modules_to_save:
        raise SettingError(
            f"`modules_to_save={list(config.modules_to_save)}` makes base weights trainable, and CoRSA trains LoRA "
            "parameters alone. Remove it from your `LoraConfig`."
        )
    if config.bias != "none":
        raise SettingError(
            f"`bias={config.bias!r}` makes base biases trainable, and CoRSA trains LoRA parameters alone. Set it to "
            "'none' in your `LoraConfig`."
        )
    start = config.init_lora_weights
    if new and isinstance(start, str) and start.startswith(_INITIALIZATIONS_THAT_CHANGE_THE_BASE):
        raise SettingError(
            f"`init_lora_weights={start!r}` changes the base weights, and CoRSA's reference is the base model as it "
            "was. Use True, 'gaussian', 'orthogonal' or 'eva' in your `LoraConfig`."
        )


def _drop_own_reference(model: PeftModel) -> None:
    """The copy that an earlier trainer of this model made for `reference="adapter"`: this one makes its own."""
    if getattr(model, "_corsa_reference", False):
        model.delete_adapter("ref")
        model._corsa_reference = False


def _check_bare(model: str | PreTrainedModel) -> None:
    if not isinstance(model, str) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise SettingError(
            "The model carries an adapter that was put on it without a `PeftModel`, and a new one would replace it. "
            "To train on it, load it with `PeftModel.from_pretrained(base, path, is_trainable=True)`."
        )


def _check_adapter(model: PeftModel) -> None:
    if "ref" in model.peft_config:
        raise SettingError(
            "The model has an adapter named 'ref', the name TRL gives to its reference. Remove it with "
            "`model.delete_adapter('ref')`, or load it under another name."
        )
    if "default" not in model.peft_config or model.active_adapters != ["default"]:
        raise SettingError(
            f"The model's adapters are {sorted(model.peft_config)}, active {model.active_adapters}: the one to train "
            "must be named 'default' and be the active one. Load it with "
            "`PeftModel.from_pretrained(model, path, is_trainable=True)`."
        )
    _check_lora_config(model.peft_config["default"])
    _lora_parameters(model)


def _lora_parameters(model: PeftModel) -> list[nn.Parameter]:
    """The trainable parameters, in float32 or finer.

    Raises:
        ValueError: base weights are trainable, or nothing is.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise SettingError(
            "Nothing to train: every parameter of the model is frozen. Adapters load frozen unless asked otherwise: "
            "use `PeftModel.from_pretrained(model, path, is_trainable=True)`."
        )
    others = [name for name in trainable if "lora_" not in name]
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise SettingError(
            f"Base weights are trainable ({shown}), and CoRSA trains LoRA parameters alone. Freeze them "
            "(`parameter.requires_grad_(False)`), or pass the base model with a `peft_config`."
        )
    for parameter in trainable.values():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            # A perturbation of norm 0.05 over millions of parameters is below half a bfloat16 step in each of them:
            # adding it would change nothing. DPOTrainer rounds the adapters of quantized models to bfloat16.
            parameter.data = parameter.data.float()
    return list(trainable.values())
