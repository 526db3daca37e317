"""Algorithm 1 of papers/model-merging-for-knowledge-editing.md."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from corsa_plugins.corsa.keeper import MOST_CHANGED, Keeper, kept_sentence
from corsa_plugins.corsa.kept import make_kept
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.refetching import refetched
from corsa_plugins.rsft.density import least_density
from corsa_plugins.rsft.loss import AnswerLoss, Prefix
from corsa_plugins.rsft.report import RSFTReport, SampleReport
from corsa_plugins.rsft.samples import Sample, make_samples
from corsa_plugins.rsft.selection import frozen_below, trainable_parameters
from corsa_plugins.rsft.settings import RSFTSettings
from corsa_plugins.rsft.updates import NonFiniteLossError, Updates, learning_rate
from corsa_plugins.rsft.weights import TrainedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["rsft"]

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 10
_ADVICE = "lower learning_rate, or look for NaN in the model's weights"


def rsft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Iterable[EditRequest],
    settings: RSFTSettings | None = None,
    *,
    progress: bool = False,
    on_epoch: Callable[[int, int], None] | None = None,
) -> RSFTReport:
    """Teach a model the ``target_new`` of each request, by robust supervised fine-tuning of one FFN.

    The model is changed in place, and nothing but the trained weights: modes, ``requires_grad`` and ``grad`` are as
    before. It runs in evaluation mode throughout, without dropout.

    Memory, beside the model: two moments of what trains (AdamW) on its device, a float32 copy where it is of lower
    precision, one gradient, one sample's activations, and ``prefix_cache_gib``; in main memory a copy of what trains,
    or two to keep finished epochs.

    >>> report = rsft(model, tokenizer, read_requests("facts.jsonl"), RSFTSettings(layer=5))  # doctest: +SKIP
    >>> [sample.name for sample in report.never_reached]  # doctest: +SKIP

    Args:
        model: A causal language model of transformers, on any device.
        tokenizer: Its tokenizer.
        requests: The facts to teach, in the order to teach them in.
        settings: By default the paper's.
        progress: Show a progress bar, with the number of samples under tau at their last check.
        on_epoch: Called with the number of finished epochs and of steps made: before the first epoch, after each and,
            where there is a second stage, once more after it. The model is then as it is at that point, in evaluation
            mode, and may be asked anything.

    Returns:
        Steps, losses and verdict for each sample; the final losses are of one more pass over them. With
        ``on_interrupt="keep"`` also after Ctrl-C, for the epochs finished by then.

    Raises:
        RequestError: No requests, or some that cannot be trained on. Nothing has been changed.
        SettingError, ArchitectureError: What should train is not there, or cannot be. Nothing has been changed.
        NonFiniteLossError: NaN or infinity, naming the request.
        KeyboardInterrupt: Ctrl-C, with ``on_interrupt="restore"``.

        Whatever is raised during training, the weights are left as ``on_interrupt`` says; a note on the error tells.
    """
    settings = settings or RSFTSettings()
    requests = list(requests)
    samples = make_samples(model, tokenizer, requests, settings)
    parameters = trainable_parameters(model, settings)
    weights = TrainedWeights(parameters)
    prefix = None
    if settings.reuse_prefix:
        prefix = Prefix(frozen_below(model, parameters.values()), int(settings.prefix_cache_gib * 2**30))
    loss = AnswerLoss(model, settings.loss_reduction, prefix, settings.head_on_answers)
    keeper = _keeper(model, tokenizer, requests, settings) if settings.keep_weight else None
    run = _Run(samples, weights, loss, settings, on_epoch or (lambda epochs, steps: None), keeper)
    with frozen(model, but=parameters.values()), refetched(model), run.undo_on_error():
        interrupted = run.train(progress)
        run.merge()
        report = run.report(interrupted)
    if report.interrupted:
        logger.warning("interrupted: the model has the weights after %d finished epochs", report.epochs)
    for sample in report.never_reached[:_MAX_WARNINGS]:
        logger.warning("%s never got under %g: its loss is %.4g", sample.name, report.loss_threshold, sample.final_loss)
    if len(report.never_reached) > _MAX_WARNINGS:
        logger.warning("... nor did %d more samples; see the report", len(report.never_reached) - _MAX_WARNINGS)
    if report.said < len(report.samples):
        logger.warning("%s", report.effect)
    if len(report.kept_changed) > MOST_CHANGED * report.kept_watched:
        logger.warning("%s", kept_sentence(report.kept_changed, report.kept_watched))
    return report


def _keeper(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: RSFTSettings,
) -> Keeper:
    seed = settings.seed or 0
    kept = make_kept(model, tokenizer, requests, chat_template=bool(settings.chat_template), seed=seed)
    return Keeper(model, kept, size=settings.keep_batch_size, seed=seed)


class _Finished(NamedTuple):
    """The finished epochs, in one object: an interruption sees all of an epoch or nothing."""

    epochs: tuple[list[tuple[float, ...]], ...]  # for each, the losses checked of each sample
    weights: list[Tensor] | None  # after them, where a failure goes back to; None for the originals


class _Run:
    """One run of Algorithm 1 and what is known of its finished epochs."""

    def __init__(
        self,
        samples: Sequence[Sample],
        weights: TrainedWeights,
        loss: AnswerLoss,
        settings: RSFTSettings,
        on_epoch: Callable[[int, int], None],
        keeper: Keeper | None,
    ) -> None:
        self.samples = samples
        self.weights = weights
        self.loss = loss
        self.settings = settings
        self.on_epoch = on_epoch
        self.keeper = keeper
        self.hold = {"weight": settings.keep_weight, "tolerance": settings.keep_tolerance}
        total = settings.epochs * len(samples) * settings.steps
        self.updates = Updates(weights, settings, lambda t: learning_rate(settings, t, total))
        self.finished = _Finished((), None)
        self.said_in_training: tuple[bool, ...] = ()  # before the second stage, where there is one
        self.density = 1.0
        self.tried: tuple[tuple[float, int], ...] = ()
        self.random = torch.Generator().manual_seed(settings.seed) if settings.seed is not None else None

    def train(self, progress: bool) -> bool:
        """Lines 3 to 15; whether Ctrl-C ended it and what was finished is kept."""
        interrupted = False
        # disable=None: no bar where nobody watches, as in a log file
        total = self.settings.epochs * len(self.samples)
        with tqdm(total=total, desc="R-SFT", disable=None if progress else True, leave=False) as bar:
            try:
                self.loss.check_reuse(self.samples)
                self._tell()
                for _ in range(self.settings.epochs):
                    changed = self._epoch(bar)
                    self._tell()
                    if not changed:
                        break
            except KeyboardInterrupt:
                if self.settings.on_interrupt == "restore":
                    raise
                self._go_back()
                interrupted = True
        return interrupted

    def merge(self) -> None:
        """Eq. 6, if it is asked for."""
        if not self.settings.merges:
            return
        self.said_in_training = self.loss.said(self.samples)
        if self.settings.density == "auto":
            self._merge_at_least_density()
        else:
            self.density = self.settings.density
            self.weights.merge(self.settings.weight, self.density)
        self._tell()

    def _merge_at_least_density(self) -> None:
        """Eq. 6 at the smallest density that undoes nothing, else at the first of those that undo least."""
        trained = self.weights.snapshot()

        def said(density: float) -> int:
            self.weights.merge(self.settings.weight, density, trained)
            return sum(self.loss.said(self.samples))

        self.density, self.tried = least_density(said, sum(self.said_in_training))
        if self.density != self.tried[-1][0]:
            self.weights.merge(self.settings.weight, self.density, trained)

    def _tell(self) -> None:
        self.on_epoch(len(self.finished.epochs), self.updates.t)

    def _epoch(self, bar: tqdm) -> bool:
        """Lines 4 to 14; whether any step was taken."""
        before = self.updates.t
        tau = self.settings.loss_threshold
        checks: list[tuple[float, ...]] = [()] * len(self.samples)
        last = [losses[-1] for losses in self.finished.epochs[-1]] if self.finished.epochs else []
        under = {index for index, loss in enumerate(last) if loss < tau}
        for index in self._order():
            checks[index] = self._visit(self.samples[index], learned=index in under)
            (under.add if checks[index][-1] < tau else under.discard)(index)
            bar.set_postfix_str(f"{len(under)} of {len(self.samples)} samples under {tau:g}", refresh=False)
            bar.update()
        weights = None
        if self.settings.on_interrupt == "keep":
            # No loss has looked at the last step yet: an epoch that ends in NaN is none to go back to.
            self._finite(float(self.loss(self.samples[index])), self.samples[index])
            weights = self.weights.snapshot()
        self.finished = _Finished((*self.finished.epochs, checks), weights)
        return self.updates.t > before

    def _order(self) -> list[int]:
        if self.random is None:
            return list(range(len(self.samples)))
        return torch.randperm(len(self.samples), generator=self.random).tolist()

    def _visit(self, sample: Sample, learned: bool) -> tuple[float, ...]:
        """Lines 5 to 13: the losses checked, the last of them under tau if the sample stopped early.

        A sample that was ``learned`` will most likely be left as it is: what should stay is not run with its first
        check, but behind it if there is a step to make.
        """
        checks: list[float] = []
        for _ in range(self.settings.steps):
            with torch.enable_grad():
                loss, penalty = self._checked(sample, alone=learned and not checks)
            checks.append(self._finite(float(loss.detach()), sample))
            if checks[-1] < self.settings.loss_threshold:
                break
            try:
                with torch.enable_grad():
                    loss = loss + (self._penalty() if penalty is None else penalty)
                self.updates.step(loss)
            except NonFiniteLossError as error:
                raise self._named(str(error), sample) from None
        return tuple(checks)

    def _checked(self, sample: Sample, alone: bool) -> tuple[Tensor, Tensor | None]:
        """The loss and, unless it is wanted alone, the penalty of what should stay, of the same pass."""
        if self.keeper is None or alone:
            return self.loss(sample), None
        loss, logits = self.loss.beside(sample, self.keeper.rows(self.updates.t))
        return loss, self.keeper.penalty_of(logits, self.updates.t, **self.hold)

    def _penalty(self) -> Tensor | float:
        if self.keeper is None:
            return 0.0
        return self.keeper.penalty(self.loss.model, self.updates.t, **self.hold)

    def _finite(self, loss: float, sample: Sample) -> float:
        if not isfinite(loss):
            raise self._named(f"the loss is {loss}", sample)
        return loss

    def _named(self, what: str, sample: Sample) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"{sample.name}: {what}, after {len(self.finished.epochs)} epochs and {self.updates.t} steps; {_ADVICE}"
        )

    def report(self, interrupted: bool) -> RSFTReport:
        """The record of the finished epochs, with every sample's loss at the weights as they are now."""
        tau = self.settings.loss_threshold
        merged = self.loss.said(self.samples) if self.settings.merges else ()
        samples = []
        for sample in self.samples:
            loss, said = self.loss.judge(sample)
            final = self._finite(loss, sample)
            losses = tuple(epoch[sample.index] for epoch in self.finished.epochs)
            steps = tuple(sum(loss >= tau for loss in checks) for checks in losses)
            reached = final < tau or any(loss < tau for checks in losses for loss in checks)
            now, before = (merged[sample.index], self.said_in_training[sample.index]) if merged else (said, said)
            samples.append(SampleReport(sample.index, sample.name, steps, losses, final, reached, now, before))
        return RSFTReport(
            samples=tuple(samples),
            parameters=tuple(self.weights.parameters),
            loss_threshold=tau,
            epochs=len(self.finished.epochs),
            interrupted=interrupted,
            changed=self.weights.changed(),
            weight=self.settings.weight,
            density=self.density,
            tried=self.tried,
            kept_changed=tuple(self.keeper.changed(self.loss.model)) if self.keeper else (),
            kept_watched=len(self.keeper.watched) if self.keeper else 0,
        )

    @contextmanager
    def undo_on_error(self) -> Iterator[None]:
        """Whatever the block raises, the weights are left as ``on_interrupt`` says."""
        try:
            yield
        except BaseException as error:
            error.add_note(f"R-SFT: the model's weights are {self._go_back()}")
            raise

    def _go_back(self) -> str:
        """To the weights after the finished epochs if they are kept, else to the originals; which of them it was."""
        if self.finished.weights is None:
            self.weights.restore()
            return "as they were before, bit for bit"
        self.weights.load(self.finished.weights)
        return f"those after {len(self.finished.epochs)} finished epochs"
