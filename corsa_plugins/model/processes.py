"""Several processes that share work, each with the whole model: as torchrun or ``accelerate launch`` starts them.

Work is dealt to them in the pieces that one process would do one after the other, so that results are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["ALONE", "Processes", "device_of_process", "started_together"]


@dataclass(frozen=True)
class Processes:
    """This process among those that share work; what it asks of the others, all have to ask.

    Attributes:
        index: Its number, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and shows."""
        return self.index == 0

    def of_each(self, value: Any) -> list[Any]:
        """The values of all processes, plain data, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def of_first(self, value: Any) -> Any:
        """The value of the first process, plain data, whatever this one's is."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all processes, on the tensor's device."""
        if self.count == 1:
            return tensor
        total = tensor.cpu()  # gloo's place
        dist.all_reduce(total)
        return total.to(tensor.device)


ALONE = Processes()
"""No others."""


@contextmanager
def started_together() -> Iterator[Processes]:
    """Within the block, the processes that a launcher has started together with this one; none without a launcher."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    # They may wait for the first one for long; one that dies ends the others through their launcher.
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def device_of_process(processes: Processes) -> str | None:
    """The GPU that is this process's, where it is not alone and there are any; ``None`` leaves it open."""
    if processes.count == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
