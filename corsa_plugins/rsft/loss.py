"""L_n, the loss of one sample (papers/model-merging-for-knowledge-editing.md, Eq. 1), without work that repeats.

The blocks below the trained one are frozen: what the last of them puts out for a sample is kept, and on the next pass
they all hand that out instead of computing. The model's own forward still runs around them, so masks, rotary angles,
soft caps and scales are its own affair, for every family.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsa_plugins.model.architecture import accepts_logits_to_keep
from corsa_plugins.model.batching import input_device, map_by_length
from corsa_plugins.model.borrowing import hooked, replaced
from corsa_plugins.model.running import hidden_states, target_logits, with_hidden_states
from corsa_plugins.model.short_attention import longest_row, short_attention
from corsa_plugins.model.tokenization import JoinedIds
from corsa_plugins.rsft.samples import Sample
from corsa_plugins.rsft.settings import LossReduction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AnswerLoss", "Prefix"]

logger = logging.getLogger(__name__)

_BATCH = 64
"""Samples that are judged side by side."""


class Prefix:
    """The outputs of frozen blocks, by sample.

    Args:
        blocks: The blocks from the first to the last that is frozen; their parameters must not require gradients.
        budget: Most bytes to keep over all samples. Samples are visited in turn, so the first ones are kept and never
            give way to later ones: with a pass over all of them in between, the least recent would never be there.
    """

    def __init__(self, blocks: Sequence[nn.Module], budget: int) -> None:
        self.blocks = list(blocks)
        self.budget = budget
        self.n_bytes = 0
        self._kept: dict[int, Any] = {}
        self._latest: tuple[int, Any] = (-1, None)  # of the sample at hand, whatever the budget

    def __contains__(self, index: int) -> bool:
        return self._get(index) is not None

    @contextmanager
    def serve(self, index: int) -> Iterator[None]:
        """Within the block, the model skips its frozen blocks if sample ``index`` has been here before."""
        output = self._get(index)
        if output is None:
            serving = hooked(self.blocks[-1], lambda module, args, output: self._keep(index, output))
        else:
            serving = replaced(self.blocks, lambda *args, **kwargs: output)
        with serving:
            yield

    def _get(self, index: int) -> Any:
        return self._latest[1] if self._latest[0] == index else self._kept.get(index)

    def _keep(self, index: int, output: Any) -> None:
        hidden = hidden_states(output)
        if not isinstance(hidden, Tensor):
            return
        hidden = hidden.detach()
        output = with_hidden_states(output, hidden)
        self._latest = (index, output)
        size = hidden.numel() * hidden.element_size()
        if self.n_bytes + size <= self.budget:
            self._kept[index] = output
            self.n_bytes += size


class AnswerLoss:
    """L_n as a function of a sample, at the model's present weights.

    Args:
        model: In evaluation mode: with dropout, a loss before the step would say nothing about the step.
        reduction: ``"mean"`` or ``"sum"`` over the answer's tokens.
        prefix: ``None`` runs the whole model every time.
        head_on_answers: Run the head where it predicts the answer only, if the model's forward can.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reduction: LossReduction = "mean",
        prefix: Prefix | None = None,
        head_on_answers: bool = True,
    ) -> None:
        self.model: Any = model
        self.reduction = reduction
        self.prefix = prefix if prefix is not None and prefix.blocks else None
        self.keeps = head_on_answers and accepts_logits_to_keep(model)
        self.device = input_device(model)

    def __call__(self, sample: Sample) -> Tensor:
        """L_n in nats, a scalar with its graph, in float32 or the model's precision where that is higher."""
        return self._of(self._logits(sample), sample)

    def beside(self, sample: Sample, rows: Sequence[JoinedIds]) -> tuple[Tensor, list[Tensor]]:
        """L_n, and the logits that predict the answers of other rows, by one pass over all blocks.

        A pass of a few rows takes about as long as one of a single row: most of it is reading the weights.
        """
        together = [_joined(sample), *rows]
        with short_attention(self.model, longest_row(together)):
            own, *others = target_logits(self.model, together)
        return self._of(own, sample), others

    @torch.no_grad()
    def judge(self, sample: Sample) -> tuple[float, bool]:
        """L_n, and whether the answer is said, in one pass."""
        logits = self._logits(sample)
        return float(self._of(logits, sample)), sample.is_said(logits)

    @torch.no_grad()
    def said(self, samples: Sequence[Sample]) -> tuple[bool, ...]:
        """Whether each answer is said, by batched passes over all samples and blocks."""
        rows = [(sample, _joined(sample)) for sample in samples]
        lengths = [len(ids.prompt_ids) + len(ids.target_ids) for _, ids in rows]

        def judged(batch: list[tuple[Sample, JoinedIds]]) -> list[bool]:
            logits = target_logits(self.model, [ids for _, ids in batch])
            return [sample.is_said(part) for (sample, _), part in zip(batch, logits, strict=True)]

        return tuple(map_by_length(judged, rows, lengths, _BATCH))

    def _of(self, logits: Tensor, sample: Sample) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, torch.tensor(sample.target_ids, device=logits.device), reduction=self.reduction)

    def _logits(self, sample: Sample) -> Tensor:
        """Logits (answer tokens, vocabulary) that predict the answer."""
        if self.prefix is None:
            return self._run(sample)
        with self.prefix.serve(sample.index):
            return self._run(sample)

    def _run(self, sample: Sample) -> Tensor:
        n_targets = len(sample.target_ids)
        # The answer's last token is predicted, never read.
        ids = torch.tensor([sample.prompt_ids + sample.target_ids[:-1]], device=self.device)
        keep = {"logits_to_keep": n_targets} if self.keeps else {}
        with short_attention(self.model, ids.shape[1]):
            output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **keep)
        return output.logits[0, -n_targets:]

    @torch.no_grad()
    def check_reuse(self, samples: Sequence[Sample]) -> None:
        """Drop the prefix, with a warning, if with it the model is not itself.

        Two samples are run, and then both again from what was kept of them. They differ if the block above writes into
        what it is given, or if something flows past the blocks: it would then be the other sample's.
        """
        if self.prefix is None:
            return
        first, last = samples[0], samples[-1]
        before = {sample.index: self(sample) for sample in (first, last)}
        for sample in (last, first):
            if sample.index not in self.prefix:  # no room
                continue
            after = self(sample)
            # The same arithmetic on the same numbers: equal, or nearly so on devices that do not add in a fixed order.
            if not torch.allclose(before[sample.index], after, rtol=1e-4, atol=1e-6, equal_nan=True):
                logger.warning(
                    "%s: the loss of %s is %.6g instead of %.6g when frozen blocks are not run again; every pass will "
                    "run all of them",
                    type(self.model).__name__,
                    sample.name,
                    float(after),
                    float(before[sample.index]),
                )
                self.prefix = None
                return


def _joined(sample: Sample) -> JoinedIds:
    return JoinedIds(list(sample.prompt_ids), list(sample.target_ids))
