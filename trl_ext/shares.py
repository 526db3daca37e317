"""Rows that processes cannot share evenly: each counts once, as in one process.

accelerate deals batches of B rows round robin and fills the last round up with rows from the beginning of the data, so
that every process has a batch. What was filled up stands behind the rows that are due, and is left out here. A
micro-batch of which nothing is left has no update, and the mean is taken over those that have one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

__all__ = ["WHOLE", "Share", "share_of_batch", "shares_unevenly", "without_filling"]


@dataclass(frozen=True)
class Share:
    """A process's share of the round of batches that is being worked on.

    Attributes:
        rows: How many pairs of its batch are due; ``None`` where all are.
        batches: How many processes have any.
    """

    rows: int | None = None
    batches: int = 0

    def factor(self, micro_batches: int, processes: int) -> float:
        """What updates of the optimizer step that this round ends are to be multiplied by, so that their mean over
        micro-batches and processes is that over the micro-batches with rows.

        Args:
            micro_batches: Of the step, on each process, this one included.
            processes: In all.
        """
        together = micro_batches * processes
        return together / (together - processes + self.batches) if self.batches else 1.0


WHOLE = Share()


def share_of_batch(accelerator: Accelerator, batch_size: int, rows: int | None = None) -> Share:
    """The share of this process in the round that the data loader has come to.

    Args:
        accelerator: Its data loader is asked whether this is the last round.
        batch_size: Of one process.
        rows: Of the data. By default the data loader is asked, which does not know it where it goes on from within.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader:
        return WHOLE
    left = state.remainder if rows is None else rows % (batch_size * accelerator.num_processes)
    if left <= 0:
        return WHOLE
    due = min(max(left - accelerator.process_index * batch_size, 0), batch_size)
    return Share(due, -(-left // batch_size))


def shares_unevenly(accelerator: Accelerator) -> bool:
    """Whether accelerate deals otherwise than said above, and rows that are taken twice cannot be told."""
    return bool(accelerator.split_batches or accelerator.dispatch_batches)


def without_filling(inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    """The first ``rows`` pairs of a batch: of 2B rows, the chosen first, and of the B numbers beside them."""
    size = len(inputs["input_ids"]) // 2

    def kept(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        if len(value) == 2 * size:
            return value.unflatten(0, (2, size))[:, :rows].flatten(0, 1)
        return value[:rows] if len(value) == size else value

    return {name: kept(value) for name, value in inputs.items()}
