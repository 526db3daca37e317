"""The training of LocFT-BF: epochs over all requests in shuffled batches, of one weight.

    loss of a batch = mean over its requests of the mean over the target's tokens of -log p(token)

Breadth first: every request is visited once before any is visited again, where fine-tuning as editors had it stayed
with one until it was learned. After the published code (``ICT-STAR/LocFT``); here the model keeps its vocabulary, which
padding enlarges there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.methods.locft.settings import LocFTSettings
from corsa_plugins.model.architecture import ArchitectureError, LinearMap, find_architecture
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.running import target_logits
from corsa_plugins.model.tokenization import JoinedIds
from corsa_plugins.rsft import NonFiniteLossError, RSFTSettings
from corsa_plugins.rsft.samples import Sample, make_samples
from corsa_plugins.rsft.selection import trainable_parameters
from corsa_plugins.rsft.updates import Updates
from corsa_plugins.rsft.weights import TrainedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LocFTReport", "locft", "weights_of"]


@dataclass(frozen=True)
class LocFTReport:
    """What a training did.

    Attributes:
        parameters: Names of what was trained.
        losses: Of each epoch, the mean over its requests of the losses before their steps.
        steps: How many were made.
        learned: Whether the last epoch's loss was under the threshold.
    """

    parameters: tuple[str, ...]
    losses: tuple[float, ...]
    steps: int
    learned: bool


def weights_of(model: PreTrainedModel, settings: LocFTSettings) -> dict[str, nn.Parameter]:
    """What trains, by name: matrices alone if the down projection does; of a mixture of experts without an FFN that
    every token takes, those of all routed experts of the block.

    Raises:
        SettingError: There is no such block, or its weights cannot be trained.
        ArchitectureError: The block has no FFN, and no routed experts, that can be told from its other parts.
    """
    architecture = find_architecture(model)
    layer = settings.layer_of(len(architecture.blocks))
    if settings.trains == "block":
        return trainable_parameters(model, RSFTSettings(modules=[architecture.block(layer).name]))
    try:
        return _matrices(model, architecture.ffn(layer).down)
    except ArchitectureError:
        mixture = architecture.mixture(layer)
        if mixture is None or not mixture.routed:
            raise
    if mixture.fused is None:
        return _matrices(model, *(expert.down for expert in mixture.listed))
    # beside them lie the up maps, and biases of two axes
    together = trainable_parameters(model, RSFTSettings(modules=[mixture.fused.name]))
    return {mixture.fused.down: together[mixture.fused.down]}


def _matrices(model: PreTrainedModel, *maps: LinearMap) -> dict[str, nn.Parameter]:
    found = trainable_parameters(model, RSFTSettings(modules=[linear.name for linear in maps]))
    return {name: parameter for name, parameter in found.items() if parameter.ndim > 1}


def locft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: LocFTSettings | None = None,
    *,
    seed: int = 0,
    progress: bool = False,
    on_epoch: Callable[[int, int], None] | None = None,
) -> LocFTReport:
    """Teach a model the ``target_new`` of each request.

    The model is changed in place, in evaluation mode, and nothing but the trained weights. Memory, beside the model:
    Adam's two moments, a copy in float32 where the weights are of lower precision, one gradient and the activations of
    a batch; in main memory a copy of what trains.

    Args:
        model: A causal language model, on any device.
        tokenizer: Its tokenizer.
        requests: At least one.
        settings: By default the published ones.
        seed: Of the order of each epoch: the permutations that ``torch.randperm`` draws one after the other.
        progress: Show a progress bar.
        on_epoch: Called with the number of finished epochs and of steps made, before the first epoch and after each.

    Raises:
        RequestError: No requests, or some that cannot be trained on.
        SettingError, ArchitectureError: What should train is not there, or cannot be.
        NonFiniteLossError: NaN or infinity.

        Whatever is raised, Ctrl-C too, the weights are as they were before, bit for bit.
    """
    settings = settings or LocFTSettings()
    form = RSFTSettings(append_eos=settings.append_eos, chat_template=settings.chat_template)
    samples = make_samples(model, tokenizer, requests, form)
    parameters = weights_of(model, settings)
    weights = TrainedWeights(parameters)
    training = _Training(model, samples, weights, settings, seed)
    try:
        with frozen(model, but=parameters.values()):
            losses = training.run(progress, on_epoch or (lambda epochs, steps: None))
    except BaseException:
        weights.restore()
        raise
    learned = bool(losses) and losses[-1] < settings.loss_threshold
    return LocFTReport(tuple(parameters), tuple(losses), training.updates.t, learned)


class _Training:
    def __init__(
        self,
        model: PreTrainedModel,
        samples: Sequence[Sample],
        weights: TrainedWeights,
        settings: LocFTSettings,
        seed: int,
    ) -> None:
        self.model, self.samples, self.settings = model, samples, settings
        self.random = torch.Generator().manual_seed(seed)
        adam = RSFTSettings(learning_rate=settings.learning_rate)
        self.updates = Updates(weights, adam, rate=lambda t: settings.learning_rate)

    def run(self, progress: bool, on_epoch: Callable[[int, int], None]) -> list[float]:
        """All epochs, or as many as it takes; their losses."""
        losses: list[float] = []
        on_epoch(0, 0)
        # disable=None: no bar where nobody watches, as in a log file
        for _ in tqdm(range(self.settings.epochs), desc="LocFT-BF", disable=None if progress else True, leave=False):
            losses.append(self._epoch())
            on_epoch(len(losses), self.updates.t)
            if losses[-1] < self.settings.loss_threshold:
                break
        return losses

    def _epoch(self) -> float:
        order = torch.randperm(len(self.samples), generator=self.random).tolist()
        total = 0.0
        for start in range(0, len(order), self.settings.batch_size):
            batch = [self.samples[index] for index in order[start : start + self.settings.batch_size]]
            with torch.enable_grad():
                loss = self._loss(batch)
                value = float(loss.detach())
                if not isfinite(value):
                    raise self._not_finite(f"the loss is {value}", batch)
                if value >= self.settings.loss_threshold:
                    try:
                        self.updates.step(loss)
                    except NonFiniteLossError as error:
                        raise self._not_finite(str(error), batch) from None
            total += value * len(batch)
        return total / len(order)

    def _loss(self, batch: Sequence[Sample]) -> Tensor:
        rows = [JoinedIds(list(sample.prompt_ids), list(sample.target_ids)) for sample in batch]
        logits = target_logits(self.model, rows)
        each = [
            F.cross_entropy(part, torch.tensor(row.target_ids, device=part.device))
            for part, row in zip(logits, rows, strict=True)
        ]
        return torch.stack(each).mean()

    def _not_finite(self, what: str, batch: Sequence[Sample]) -> NonFiniteLossError:
        named = ", ".join(sample.name for sample in batch[:3])
        more = f" and {len(batch) - 3} more" if len(batch) > 3 else ""
        return NonFiniteLossError(
            f"{named}{more}: {what}, after {self.updates.t} steps; lower learning_rate, or look for NaN in the model's "
            "weights"
        )
