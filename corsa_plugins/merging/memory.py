"""Memory that does not grow with a tensor: its delta a chunk at a time, and the pages of a mapped model file.

Scratch memory: tensors are walked in chunks of 2^15 elements (2^22 on a GPU), a few float64 buffers each. A tensor that
is not contiguous is copied by whoever flattens it.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["DeltaChunks", "map_pages"]

CHUNK = 2**15
"""Elements at a time on a CPU: a float64 buffer of them, 256 KiB, stays in the cache, and torch gives so few to one
thread; with more, threads wait for each other at every step, which on a busy machine takes ten times as long."""

GPU_CHUNK = 2**22
"""Elements at a time elsewhere: enough work for a kernel."""

_POPULATE_READ = 22
"""``MADV_POPULATE_READ`` of Linux 5.14 and later; earlier ones answer that they do not know it."""

_PAGE = 2**12
_LARGE = 2**20  # bytes; of less, the pages are mapped while a thread would start


class DeltaChunks:
    """The float64 delta of two flat tensors of one length, a chunk at a time, in buffers that are used again.

    With ``row``, the length of a row, chunks are whole rows.
    """

    def __init__(self, edited: Tensor, base: Tensor, row: int | None) -> None:
        self.edited, self.base = edited, base
        chunk = CHUNK if base.device.type == "cpu" else GPU_CHUNK
        self.step = max(1, chunk // row) * row if row else chunk
        self._delta, self._subtrahend = self.buffer(), self.buffer()

    def __len__(self) -> int:
        return len(self.base)

    def buffer(self) -> Tensor:
        """Float64, for one chunk."""
        return torch.empty(min(self.step, len(self.base)), dtype=torch.float64, device=self.base.device)

    def parts(self) -> Iterator[slice]:
        """Where each chunk is, in order."""
        for start in range(0, len(self.base), self.step):
            yield slice(start, min(start + self.step, len(self.base)))

    def delta(self, part: slice) -> Tensor:
        """Edited minus base there; overwritten by the next call."""
        out, subtrahend = (buffer[: part.stop - part.start] for buffer in (self._delta, self._subtrahend))
        # subtracting a tensor of another dtype takes longer than converting it first
        return out.copy_(self.edited[part]).sub_(subtrahend.copy_(self.base[part]))

    def sample(self, count: int) -> Tensor:
        """The magnitudes' bits at ``count`` places spread evenly, in falling order."""
        n = len(self)
        # multiples of the golden section of n: no row, column or other period is met too often
        places = torch.arange(count, device=self.base.device) * round(n * (math.sqrt(5) - 1) / 2) % n
        magnitudes = (self.edited[places].double() - self.base[places].double()).abs_()
        return magnitudes.view(torch.int64).sort(descending=True).values

    def magnitude_bits(self) -> Iterator[Tensor]:
        """The magnitudes' bits: non-negative int64 that order as the magnitudes do."""
        for part in self.parts():
            yield self.delta(part).abs_().view(torch.int64)


def map_pages(tensors: Iterable[Tensor]) -> None:
    """Have the pages of CPU tensors mapped by one call each, where the system can do that; their values stay.

    A tensor that lies in a mapped file is otherwise mapped as it is touched, a few pages at a time, which takes up to
    six times as long. And the kernel writes pages that are not mapped yet to a file in far smaller pieces. By hand
    because the mapping is the safetensors library's, and what Python's ``mmap`` advises is only mappings of its own.
    """
    large = [tensor for tensor in tensors if tensor.numel() * tensor.element_size() >= _LARGE]
    if sys.platform == "linux" and large:
        with ThreadPoolExecutor(len(large)) as pool:
            list(pool.map(_map, large))


def _map(tensor: Tensor) -> None:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start = tensor.data_ptr() & -_PAGE
    # advice that is not taken does no harm, so the answer is of no interest
    _C.madvise(start, tensor.data_ptr() + tensor.numel() * tensor.element_size() - start, _POPULATE_READ)


if sys.platform == "linux":
    _C = ctypes.CDLL(None)
    _C.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
