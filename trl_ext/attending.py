"""What a training does beside Algorithm 1: a learning rate by trying, facts that are learned, prompts that stay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from datasets import IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from corsa_plugins.corsa import CorsaSettings
from corsa_plugins.corsa.keeper import Keeper
from corsa_plugins.corsa.kept import Kept
from corsa_plugins.corsa.rates import RateTest, rates_tried
from corsa_plugins.errors import SettingError
from corsa_plugins.model.borrowing import eval_mode, modes_kept, random_state_kept
from corsa_plugins.model.identity import tensors_digest
from trl_ext.lockstep import LockstepTrainer
from trl_ext.step import accumulate, chosen_rows, completion_mask, labels, model_inputs, sft_of_rows
from trl_ext.stopping import Standing, StopWhenLearned

__all__ = ["AttentiveTrainer"]

logger = logging.getLogger(__name__)

_TRIED = 16
"""How many facts learning rates are tried on."""


class AttentiveTrainer(LockstepTrainer):
    """A trainer that looks at what its training does: :class:`trl_ext.trainer.CoRSATrainer` without Algorithm 1.

    A subclass sets ``_settings`` and ``_parameters``, calls :meth:`attend` at the end of its constructor,
    :meth:`_find_rate` before training, :meth:`_still` at each look of a step and :meth:`_hold` at each optimizer step.
    """

    _settings: CorsaSettings
    _parameters: list[nn.Parameter]

    def attend(self, kept: Sequence[Kept]) -> None:
        """Set up what the settings ask for."""
        self._stop = self._stop_when_learned()
        self._keeper = self._keeper_of(kept)
        self.rates: RateTest | None = None

    def _stop_when_learned(self) -> StopWhenLearned | None:
        """The callback that ends training when all facts are learned, where a level says when they are."""
        level = self._settings.level
        if level is None:
            return None
        if isinstance(self.train_dataset, IterableDataset):
            raise SettingError(
                f"learned_at={level.probability:g} needs to read the training data set after every epoch, and it is "
                "streamed. Set `learned_at=0`, or load it whole."
            )
        stop = StopWhenLearned(self.standing, level, self._name_of)
        self.add_callback(stop)
        return stop

    def _keeper_of(self, kept: Sequence[Kept]) -> Keeper | None:
        """What holds the kept prompts, where they are to be held."""
        if self.args.keep_weight == 0:
            return None
        if not kept:
            raise SettingError(
                f"keep_weight={self.args.keep_weight:g} without prompts to keep: give `kept`, such as "
                "`corsa_plugins.corsa.kept.make_kept(model, tokenizer, requests)`, or set `keep_weight=0`."
            )
        seed = self.args.seed + self.accelerator.process_index
        return Keeper(self.model, kept, size=self.args.keep_batch_size, seed=seed, precision=self.accelerator.autocast)

    def _find_rate(self) -> None:
        """Set the learning rate to one found by trying, on the first facts of the data set, the same on every process;
        parameters, modes and generators are afterwards what they were."""
        if isinstance(self.train_dataset, IterableDataset):
            raise SettingError("find_learning_rate needs a data set that can be read before training: load it whole.")
        first = self.train_dataset.select(range(min(len(self.train_dataset), _TRIED)))
        inputs = chosen_rows(self.placed(self.data_collator(list(first))))
        module, mask = self.accelerator.unwrap_model(self.model), completion_mask(inputs)

        def loss() -> Tensor:
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                outputs = module(**model_inputs(inputs), labels=labels(inputs), fused_lm_head=True)
            return sft_of_rows(outputs.log_probs, mask, paired=False)

        with random_state_kept(), modes_kept(module):
            module.eval()  # dropout would tell the rates apart by its noise
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.rates = rates_tried(self._parameters, loss, betas=betas)
        self.args.learning_rate = self.rates.chosen
        if self.is_world_process_zero():
            logger.warning("By trial, %s.", self.rates.text)

    @contextmanager
    def _warning_of_no_change(self) -> Iterator[None]:
        """Around a training, which is to change the adapter."""
        first = self.is_world_process_zero()  # they are the same on every process
        before = self._bits() if first else ""
        yield
        if first and self._bits() == before:
            logger.warning(
                "The training changed nothing: after step %d every value of the adapter is what it was before. Take "
                "more steps, if all of them were warm-up (`warmup_steps`), or raise `learning_rate`; with `learned_at` "
                "this is also what comes of facts that the model knows already.",
                self.state.global_step,
            )

    def _bits(self) -> str:
        return tensors_digest({str(number): parameter for number, parameter in enumerate(self._parameters)})

    def kept_changed(self) -> tuple[list[str], int]:
        """The watched prompts that the model answers otherwise than before, and how many are watched."""
        if self._keeper is None:
            return [], 0
        with random_state_kept():
            return self._keeper.changed(self.accelerator.unwrap_model(self.model)), len(self._keeper.watched)

    @property
    def learned(self) -> Standing | None:
        """Which facts were learned, at the last look of a training with `learned_at`; ``None`` without one."""
        return None if self._stop is None else self._stop.standing

    def standing(self) -> Standing:
        """Ask for every fact of the training data set. Every process must call it; nothing is different afterwards.

        Raises:
            SettingError: `learned_at` is 0: there is no level at which a fact counts as learned.
        """
        level, paired = self._settings.level, self.args.dpo_weight > 0
        if level is None:
            raise SettingError("learned_at is 0: say at which probability of its new answer a fact counts as learned")
        module = self.accelerator.unwrap_model(self.model)
        once = self._prompts.around(module)
        log_probs: list[float] = []
        learned: list[bool] = []
        with random_state_kept(), eval_mode(module):  # a loader draws a seed
            loader = self.accelerator.prepare(
                DataLoader(self.train_dataset, self.args.per_device_eval_batch_size, collate_fn=self.data_collator)
            )
            for batch in loader:
                inputs = self.placed(batch) if paired else chosen_rows(self.placed(batch))
                with self.compute_loss_context_manager(), self.accelerator.autocast():
                    outputs = once(**model_inputs(inputs), labels=labels(inputs), fused_lm_head=True)
                completion = outputs.log_probs * completion_mask(inputs)
                reached = level.reached(completion, paired)
                summed, reached = self.accelerator.gather_for_metrics((completion.sum(1)[: len(reached)], reached))
                log_probs += summed.tolist()
                learned += reached.tolist()
        return Standing(self.state.global_step, tuple(log_probs), tuple(learned))

    def _name_of(self, index: int) -> str:
        prompt = self.processing_class.decode(self.train_dataset[index]["prompt_ids"], skip_special_tokens=True)
        return repr(" ".join(prompt.split())[-80:])

    def _hold(self, module: nn.Module, keeper: Keeper) -> None:
        """Add the pull of the kept prompts, at phi, to the update of an optimizer step."""
        settings = {"weight": self.args.keep_weight, "tolerance": self.args.keep_tolerance}
        pull, divergence = keeper.gradient(module, self._parameters, self.state.global_step, **settings)
        accumulate(self._parameters, pull, 1.0)
        self.record("train", "kept/divergence", divergence)

    def _still(self, completion: Tensor, paired: bool, first: bool) -> Callable[[Tensor], Tensor]:
        """What takes the learned facts of a batch out of the gradient, at both looks those of the first."""
        level = self._settings.level
        if level is None:
            return lambda log_probs: log_probs
        if first:
            self._reached = level.reached(completion, paired)
            self.record("train", "learned", self.accelerator.gather_for_metrics(self._reached.float()).mean().item())
        reached = self._reached
        return lambda log_probs: level.still(log_probs, reached)
