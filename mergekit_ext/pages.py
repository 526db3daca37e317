"""Model files are mapped into memory; their pages are best mapped in one go."""

from __future__ import annotations

import ctypes
import sys

import torch

__all__ = ["map_pages"]

_POPULATE_READ = 22
"""``MADV_POPULATE_READ`` of Linux 5.14 and later; earlier ones answer that they do not know it."""

_PAGE = 2**12


def map_pages(tensor: torch.Tensor) -> None:
    """Have the pages of a CPU tensor mapped by one call, where the system can do that; its values are what they were.

    A tensor that lies in a mapped file is otherwise mapped as it is touched, a few pages at a time, which takes up to
    six times as long. And the kernel writes pages that are not mapped yet to a file in far smaller pieces.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    size = tensor.numel() * tensor.element_size()
    start = tensor.data_ptr() & -_PAGE
    if size:
        # advice that is not taken does no harm, so the answer is of no interest
        _C.madvise(start, tensor.data_ptr() + size - start, _POPULATE_READ)


if sys.platform == "linux":
    _C = ctypes.CDLL(None)
    _C.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
