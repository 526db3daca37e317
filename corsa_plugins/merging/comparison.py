"""Whether two tensors are the same, bit for bit: most tensors of an edited model are the base's own."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["same_bits"]

PART = 2**22
THREADS = min(4, os.cpu_count() or 1)
"""Memory is compared in parts of at least so many bytes, by at most so many threads."""

_C = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
_C.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; NaN equals NaN, and 0.0 is not -0.0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if not first.numel():
        return True
    if first.device.type == second.device.type == "cpu" and first.is_contiguous() and second.is_contiguous():
        return _same_memory(first.data_ptr(), second.data_ptr(), first.numel() * first.element_size())
    return torch.equal(_bits(first), _bits(second))


def _same_memory(first: int, second: int, size: int) -> bool:
    """By memcmp; what is large, by parts side by side.

    By hand because torch.equal takes twice as long and reads both to their ends, where this stops at a difference. A
    single core does not read as fast as memory gives, and where a file is mapped, it waits for pages.
    """
    parts = min(THREADS, size // PART)
    if parts < 2:
        return not _C.memcmp(first, second, size)
    step = -(-size // parts)
    with ThreadPoolExecutor(parts) as pool:
        starts = range(0, size, step)
        return all(pool.map(lambda at: not _C.memcmp(first + at, second + at, min(step, size - at)), starts))


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    if flat.stride(0) != 1:  # a single element may have any stride, and then cannot be viewed
        flat = flat.clone(memory_format=torch.contiguous_format)
    size = flat.element_size()
    # eight bytes at a time: several times as fast as comparing half-precision numbers
    whole_words = (flat.numel() * size) % 8 == 0 and (flat.storage_offset() * size) % 8 == 0
    word = torch.int64 if whole_words else {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return flat.view(word)
