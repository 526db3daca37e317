"""The CoRSA trainer: Algorithm 1 of papers/corsa.md in TRL's `DPOTrainer`."""

from __future__ import annotations

import dataclasses
import logging
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from corsa_plugins.corsa import (
    CorsaStep,
    Linearization,
    NonFiniteGradientError,
    OneBackward,
    SummedBackward,
    TaskGradients,
    TokenWeights,
    TwoBackwards,
    corsa_step,
    margin,
    sft_loss,
    token_weights,
)
from corsa_plugins.corsa.kept import Kept
from corsa_plugins.corsa.objective import sequence_log_probs
from corsa_plugins.errors import SettingError
from corsa_plugins.model.limits import longest_text
from corsa_plugins.model.quantised import keep_layout
from corsa_plugins.model.sharing import SharedRows
from corsa_plugins.model.short_attention import short_attention
from corsa_plugins.model.targets import fitted
from corsa_plugins.outputs import disk_errors
from trl_ext._trl import REFERENCE, clear_device_cache
from trl_ext.attending import AttentiveTrainer
from trl_ext.checkpoints import begin_checkpoint, checkpoint_to_resume, finish_checkpoint
from trl_ext.checks import (
    check_adapter,
    check_backbone,
    check_base,
    check_in_memory,
    check_launch,
    check_lora_config,
    check_offloading,
    check_trainable,
    warn_of_repeated_rows,
)
from trl_ext.config import CoRSAConfig, paper_lora_config
from trl_ext.data import check_lengths, checked_preferences, warn_of_dropped_rows, with_lengths
from trl_ext.head import add_completion_head, remove_completion_head
from trl_ext.prompts import PromptsOnce, pays
from trl_ext.reference import with_reference
from trl_ext.reporting import check_reporting
from trl_ext.shares import WHOLE, Share, share_of_batch, shares_unevenly, without_filling
from trl_ext.step import (
    accumulate,
    average_over_processes,
    chosen_rows,
    completion_mask,
    is_noisy,
    labels,
    lora_parameters,
    model_inputs,
    sft_of_rows,
    with_the_same_noise,
)

__all__ = ["CoRSATrainer"]

logger = logging.getLogger(__name__)

_PAPER = {
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


class CoRSATrainer(AttentiveTrainer, title="CoRSA", tags=("trl", "corsa"), paper=_PAPER):
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
        kept (`list[Kept]`, *optional*):
            Prompts whose answers are to stay as they are, with `keep_weight`; `corsa_plugins.corsa.kept.make_kept`
            makes them of edit requests.

        The other arguments are those of [`~trl.DPOTrainer`].

    Raises:
        ValueError: the model, the adapter or the data set cannot be trained on; the message says what to change.
        NonFiniteGradientError: a gradient holds NaN or infinity during training. The message names the step; the
            parameters are those after the step before it.
    """

    args: CoRSAConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: CoRSAConfig | None = None,
        *positional: Any,
        peft_config: LoraConfig | None = None,
        kept: Sequence[Kept] = (),
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = CoRSAConfig(f"{(name or 'model').rstrip('/').split('/')[-1]}-CoRSA")
        if not isinstance(args, CoRSAConfig):
            raise TypeError(f"`args` must be a `CoRSAConfig`, got `{type(args).__name__}`.")
        check_launch(args)
        check_reporting(args)
        check_in_memory(model)
        if isinstance(model, PeftModel):
            _drop_own_reference(model)
            check_adapter(model)
        else:
            check_base(model)
            peft_config = peft_config if peft_config is not None else paper_lora_config()
            check_lora_config(peft_config, new=True)
            peft_config = fitted(peft_config, model, args.model_init_kwargs or {})
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
        if self.holds_images:
            raise SettingError("The data set holds images: CoRSA trains language models on text.")
        if self.accelerator.mixed_precision == "fp16":
            raise SettingError("Launched with fp16 mixed precision, which is not supported. Use bf16, or none.")

        self._settings = args.corsa_settings()
        keep_layout(self.model)
        check_trainable(self.model)
        check_backbone(self.model.get_base_model())
        self._check_rows()
        self.shard_base(ref_model)
        self._parameters = lora_parameters(self.model)
        self._settle_reference()
        add_completion_head(self.model.get_base_model(), own_forward)
        self._prompts = PromptsOnce(self.model.get_base_model(), args.share_prompts, self.largest)
        self._linearization = self._choose_linearization()
        self._linearization_once: Linearization = self.two_backwards() if args.pcgrad else self._linearization
        if args.dpo_weight > 0:
            self._prompts.look()
        self._noisy = is_noisy(self.model, self.neftune_noise_alpha)
        # Without a DPO loss nothing of training depends on the reference; evaluation runs it as it goes.
        self.precompute_ref_logps = precompute and args.dpo_weight > 0
        if self.precompute_ref_logps:
            self._add_references()
        self.train_dataset = with_lengths(self.train_dataset, args)
        self.attend(kept)

    # --- Before training ---

    def check_dataset(self, dataset: Any, name: str) -> Any:
        """The data set, once every row is known to have both answers."""
        return checked_preferences(dataset, name)

    def check_prepared(self, dataset: Any, prepared: Any, name: str, max_length: int | None) -> None:
        """Warn of the rows that were left out."""
        if isinstance(prepared, Dataset) and not isinstance(dataset, IterableDataset):
            warn_of_dropped_rows(len(dataset), len(prepared), max_length, name)

    def _check_rows(self) -> None:
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, dataset in {"train": self.train_dataset, **evaluated}.items():
            check_lengths(dataset, longest_text(self.model), self.args.max_length, name)
        if isinstance(self.train_dataset, Dataset) and shares_unevenly(self.accelerator):
            warn_of_repeated_rows(self.args, len(self.train_dataset))

    def _settle_reference(self) -> None:
        """Make the base model the reference, unless the adapter as it was is asked for."""
        if self.args.reference == "base" and REFERENCE in self.model.peft_config:
            # DPOTrainer copies an adapter that is passed in and makes the copy the reference; the paper's reference
            # is the base model in every update (Algorithm 1: theta).
            self.model.delete_adapter(REFERENCE)
        self.model._corsa_reference = REFERENCE in self.model.peft_config

    def _add_references(self) -> None:
        train_size = self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size
        eval_size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        self.train_dataset = self.add_reference(self.train_dataset, "train", train_size)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {
                name: self.add_reference(dataset, name, eval_size) for name, dataset in self.eval_dataset.items()
            }
        elif self.eval_dataset is not None:
            self.eval_dataset = self.add_reference(self.eval_dataset, "eval", eval_size)

    def add_reference(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The data set with a column of log-probabilities under the reference for each of the two answers."""
        return with_reference(
            dataset,
            name,
            self._reference_log_probs,
            accelerator=self.accelerator,
            args=self.args,
            batch_size=batch_size,
            collator=self.data_collator,
        )

    def _reference_log_probs(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(B,) summed log-probabilities of the chosen and of the rejected answers under the reference."""
        if self.ref_model is not None:  # it has no completion head
            return self.compute_ref_log_probs(self.ref_model, inputs)
        return self.compute_ref_log_probs(self._prompts.around(self.model), inputs)

    def _choose_linearization(self) -> Linearization:
        if not self.args.pcgrad:
            return SummedBackward(self._parameters, self.args.dpo_weight)
        obstacle = OneBackward.obstacle(self.model, self._parameters)
        if not self.args.one_backward:
            obstacle = "`one_backward` is False"
        elif self.use_weighting or self.ld_alpha is not None:
            obstacle = "`use_weighting` and `ld_alpha` weigh the tokens of a sequence differently"
        if obstacle is None:
            return OneBackward(self.model, self._parameters, self.in_any_process, self.two_backwards())
        check_offloading(self.args, obstacle)
        logger.info("Two backward passes for the two gradients: %s.", obstacle)
        return self.two_backwards()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As [`~transformers.Trainer.train`]; a checkpoint that the training could not go on from as if it had never
        stopped is refused, and `True` is the newest one in `output_dir` that is whole, or the beginning where none was
        ever finished.

        Raises:
            SettingError: the checkpoint is not there, lacks a part or is damaged.
            OutputError: the disk is full, or cannot be written to.
        """
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args)
        if self.args.find_learning_rate and self.rates is None:
            self._find_rate()
        disk = disk_errors(self.args.output_dir or ".", "make room and go on from the newest whole checkpoint, if any")
        with disk, self._warning_of_no_change():
            try:
                return super().train(checkpoint, *args, **kwargs)
            except UnpicklingError as error:  # of what is no tensors, PyTorch runs nothing
                raise SettingError(
                    f"resume_from_checkpoint={checkpoint}: a file of it holds more than tensors and numbers, which "
                    "could run, and is not read: name a checkpoint of your own"
                ) from error

    def before_checkpoint(self, folder: Path) -> None:
        """The checkpoint says that it is unfinished until all of it is written."""
        if self.args.should_save:
            begin_checkpoint(folder)

    def after_checkpoint(self, folder: Path) -> None:
        """It is whole."""
        finish_checkpoint(folder)

    # --- A step ---

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch: Algorithm 1, lines 3-15. Its update is added to the parameters' gradients."""
        with self.maybe_activation_offload_context:
            model.train()
            if callable(getattr(self.optimizer, "train", None)):
                self.optimizer.train()  # schedule-free optimizers
            # The gradients are taken by autograd.grad, which DDP's hooks do not see: its forward would wait for them.
            module = self.accelerator.unwrap_model(model)
            known = isinstance(self.train_dataset, Dataset) and not self.args.dataloader_drop_last
            last = self._share(
                self.args.train_batch_size, len(self.train_dataset) if known else None
            )  # of the step's rounds of batches, of which this is one
            share = last if self.accelerator.sync_gradients else WHOLE
            weight = last.factor(self.current_gradient_accumulation_steps, self.accelerator.num_processes)
            weight /= self.current_gradient_accumulation_steps
            with self.alone(share.rows is not None):
                loss = self._add_update(module, self.placed(inputs), share, weight)
            if self._keeper is not None and self.accelerator.sync_gradients:
                self._hold(module, self._keeper)
            if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
                average_over_processes(self._parameters, self.accelerator)
            self._report_fallback()
            every = self.args.torch_empty_cache_steps
            if every is not None and self.state.global_step % every == 0:
                clear_device_cache()
            return loss

    def _share(self, batch_size: int, rows: int | None = None) -> Share:
        return WHOLE if shares_unevenly(self.accelerator) else share_of_batch(self.accelerator, batch_size, rows)

    def _add_update(self, module: nn.Module, inputs: dict[str, Any], share: Share, weight: float) -> Tensor:
        """Add ``weight`` times the update of the rows of a micro-batch that are due to the parameters' gradients; so
        many times their loss."""
        idle = share.rows == 0  # another process has the last rows
        if idle and self.sharding is None:
            accumulate(self._parameters, [torch.zeros_like(p) for p in self._parameters], weight)
            return torch.zeros((), device=self.args.device)
        if idle:  # and needs this one's part of the layers
            with self.muted():
                return self._add_update(module, inputs, WHOLE, 0.0)
        inputs = self._with_reference(inputs if share.rows is None else without_filling(inputs, share.rows))
        losses: list[TokenWeights] = []
        rows = self._shared_rows(inputs)

        def gradients() -> TaskGradients:
            return self._gradients(module, inputs, rows, losses)

        if self._noisy:
            gradients = with_the_same_noise(gradients)
        try:
            settings = self._settings.at(self.state.global_step, self.state.max_steps)
            step = corsa_step(gradients, self._parameters, settings)
        except NonFiniteGradientError as error:
            raise NonFiniteGradientError(
                f"{error}, in step {self.state.global_step + 1}. The parameters are as they were after step "
                f"{self.state.global_step}. Look for extreme or empty rows in the data, or lower `learning_rate` "
                "or `sam_rho`."
            ) from None
        accumulate(self._parameters, step.update, weight)
        self._log_step(step)
        loss = losses[0].sft_loss
        if losses[0].dpo_loss is not None:
            loss = loss + self.args.dpo_weight * losses[0].dpo_loss
        return loss * weight

    def _with_reference(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with reference log-probabilities, so that both halves of the step read the same ones; without DPO
        the batch without its rejected rows."""
        if self.args.dpo_weight == 0:
            return chosen_rows(inputs)
        if not self.precompute_ref_logps:
            chosen, rejected = self._reference_log_probs(inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return inputs

    def _shared_rows(self, inputs: dict[str, Any]) -> SharedRows | None:
        """The batch with every prompt once, where that is exact and cheaper; None: as it is."""
        ids, backwards = inputs["input_ids"], 2 if self.args.pcgrad else 1
        if self.args.dpo_weight == 0 or self._noisy or (self.args.activation_offloading and backwards == 2):
            return None  # one answer each; noise would be one draw where it is two; offloading serves one backward
        if model_inputs(inputs).keys() != {"input_ids", "attention_mask", "use_cache"}:
            return None  # of a collator of the user's own
        plain = 2 if isinstance(self._linearization, TwoBackwards) else 1
        return self._prompts.rows(
            ids,
            inputs["attention_mask"],
            lambda rows: pays(
                rows,
                ids.numel(),
                backwards=backwards,
                backwards_plain=plain,
                checkpointing=self.args.gradient_checkpointing,
            ),
        )

    def _gradients(
        self, module: nn.Module, inputs: dict[str, Any], rows: SharedRows | None, losses: list[TokenWeights]
    ) -> TaskGradients:
        """Both task gradients at the parameters' current values, from one forward, of ``rows`` where the batch has its
        prompts once. Appends to ``losses``; the first evaluation of a step is the one that is logged."""
        mask = completion_mask(inputs)
        outputs: Any = None

        def forward() -> Tensor:
            nonlocal outputs
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                if rows is not None:
                    outputs = self._prompts.run(module, rows, labels(inputs))
                else:
                    outputs = module(**model_inputs(inputs), labels=labels(inputs), fused_lm_head=True)
            return outputs.log_probs

        def preference(log_probs: Tensor) -> Tensor:
            # TRL's own loss and metrics, on the forward that has been done. It sums whole rows: off the completion
            # there are zeros, whose weight would not be zero.
            completion = log_probs * mask
            return self.preference_loss(lambda **_: dataclasses.replace(outputs, log_probs=completion), inputs)

        def weigh(log_probs: Tensor) -> TokenWeights:
            # Both looks of a step agree on which facts push.
            still = self._still(log_probs.detach() * mask, paired, first=not losses)
            # A step is logged at phi, not at the perturbed point.
            with self.muted(bool(losses)):
                weights = token_weights(
                    log_probs,
                    lambda x: sft_of_rows(still(x), mask, paired),
                    (lambda x: preference(still(x))) if paired else None,
                )
                if not losses:
                    self._log_losses(log_probs.detach(), weights, inputs, outputs)
            losses.append(weights)
            return weights

        paired = self.args.dpo_weight > 0
        length = inputs["input_ids"].shape[1] if rows is None else rows.ids.shape[1]
        with ExitStack() as stack:
            with self.accelerator.autocast():  # in whose precision attention is run
                stack.enter_context(short_attention(module, length))
            return (self._linearization if rows is None else self._linearization_once)(forward, weigh)

    # --- Evaluation ---

    def evaluation_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """L_sft + dpo_weight * L_dpo on a batch."""
        share = WHOLE if return_outputs else self._share(self.args.eval_batch_size)
        idle = share.rows == 0  # the trainer does not count it
        if idle and self.sharding is None:
            return torch.zeros((), device=self.args.device)
        with self.alone(share.rows is not None), self.muted(idle):
            inputs = inputs if share.rows is None or idle else without_filling(inputs, share.rows)
            loss = self._evaluation_loss(model, inputs, return_outputs)
        return torch.zeros_like(loss) if idle else loss

    def _evaluation_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        recorded = []
        once = self._prompts.around(self.accelerator.unwrap_model(model))
        if "ref_chosen_logps" not in inputs:
            chosen, rejected = self._reference_log_probs(inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

        def recording(**kwargs: Any) -> Any:
            outputs = once(**kwargs)
            recorded.append(outputs)
            return outputs

        result = self.preference_loss(recording, inputs, return_outputs)
        dpo = result[0] if return_outputs else result
        log_probs = recorded[0].log_probs
        sft = sft_loss(log_probs, completion_mask(inputs))
        weights = TokenWeights(log_probs, None, sft.detach(), dpo.detach())
        self._log_losses(log_probs.detach(), weights, inputs, recorded[0])
        loss = sft + self.args.dpo_weight * dpo
        return (loss, result[1]) if return_outputs else loss

    # --- Logs ---

    def _log_losses(self, log_probs: Tensor, weights: TokenWeights, inputs: dict[str, Any], outputs: Any) -> None:
        logged = {"sft_loss": weights.sft_loss.expand(1)}
        if weights.dpo_loss is not None:
            new, old = sequence_log_probs(log_probs)
            logged |= {
                "dpo_loss": weights.dpo_loss.expand(1),
                "margin": margin(log_probs),
                "logps/new": new,
                "logps/old": old,
            }
        else:
            # TRL's part of the loop has not run: the rejected rows are left out.
            logged |= {"logps/new": log_probs.sum(dim=1), "logps/chosen": log_probs.sum(dim=1)}
            hits = outputs.is_top1[completion_mask(inputs).bool()]
            logged["mean_token_accuracy"] = hits.float().mean().expand(1)
            self.record_tokens(inputs["attention_mask"])
        mode = "train" if self.model.training else "eval"
        for name, values in logged.items():
            self.record(mode, name, self.accelerator.gather_for_metrics(values.float()).mean().item())

    def _log_step(self, step: CorsaStep) -> None:
        if self.args.dpo_weight > 0 and self.args.pcgrad:
            self.record("train", "gradients/cosine", step.cosine[0])
            self.record("train", "gradients/conflict", sum(step.conflicts) / len(step.conflicts))
        self.record("train", "sam/perturbation_norm", step.perturbation_norm)

    def _report_fallback(self) -> None:
        reason = getattr(self._linearization, "fallback_reason", None)
        if reason is not None:
            logger.warning("One backward pass cannot serve both losses here (%s): running two from now on.", reason)
            self._linearization = self.two_backwards()


def _drop_own_reference(model: PeftModel) -> None:
    """The copy that an earlier trainer of this model made for `reference="adapter"`: this one makes its own."""
    if getattr(model, "_corsa_reference", False):
        model.delete_adapter(REFERENCE)
        model._corsa_reference = False
