"""Model files are mapped into memory; their pages are best mapped in one go."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["map_pages"]

_POPULATE_READ = 22
"""``MADV_POPULATE_READ`` of Linux 5.14 and later; earlier ones answer that they do not know it."""

_PAGE = 2**12
_LARGE = 2**20  # bytes; of less, the pages are mapped while a thread would start


def map_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Have the pages of CPU tensors mapped by one call each, where the system can do that; their values stay.

    A tensor that lies in a mapped file is otherwise mapped as it is touched, a few pages at a time, which takes up to
    six times as long. And the kernel writes pages that are not mapped yet to a file in far smaller pieces.
    """
    large = [tensor for tensor in tensors if tensor.numel() * tensor.element_size() >= _LARGE]
    if sys.platform == "linux" and large:
        with ThreadPoolExecutor(len(large)) as pool:
            list(pool.map(_map, large))


def _map(tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start = tensor.data_ptr() & -_PAGE
    # advice that is not taken does no harm, so the answer is of no interest
    _C.madvise(start, tensor.data_ptr() + tensor.numel() * tensor.element_size() - start, _POPULATE_READ)


if sys.platform == "linux":
    _C = ctypes.CDLL(None)
    _C.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
