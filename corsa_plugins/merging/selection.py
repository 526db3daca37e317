"""Top_p of Eq. 6: which elements of a delta are kept, exactly, in memory that does not grow with it.

Finding the smallest kept magnitude takes a sample of 2^15 magnitudes, at most 2^20 candidates, and sometimes a
histogram of 2^16 counts; pruning per row needs at least one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from corsa_plugins.merging.memory import DeltaChunks
from corsa_plugins.merging.ranges import check_density

__all__ = ["Selection", "kept_count", "select"]

SAMPLE = 2**15
"""How many magnitudes tell, at most, about where the edge is; of a tensor with no more elements, all are gathered."""

MAX_CANDIDATES = 2**20
"""How many magnitudes are gathered for a direct selection; more are narrowed down by histograms."""

DIGIT = 16
"""Bits per histogram; the magnitude of a float64 has 63."""

_LARGEST = 2**63 - 1
_INFINITY = 0x7FF << 52
"""As keys: the bits of magnitudes."""


def kept_count(n: int, density: float) -> int:
    """How many of ``n`` elements are kept: ``max(1, round(density * n))``, but none at density 0.

    ``round`` is Python's, half to even.

    Raises:
        SettingError: ``density`` is outside [0, 1].
    """
    if check_density(density) == 0 or n == 0:
        return 0
    return max(1, round(density * n))


class Selection(Protocol):
    """What is kept of a delta.

    Attributes:
        finite: Whether all of the delta is.
    """

    finite: bool

    def prune(self, delta: Tensor) -> Tensor:
        """A chunk with all but what is kept set to zero; chunks must come in order, each once. May change ``delta``."""


class KeepAll:
    """Everything."""

    def __init__(self, chunks: DeltaChunks) -> None:
        self.finite = all(bool(chunks.delta(part).abs_().amax() < math.inf) for part in chunks.parts())

    def prune(self, delta: Tensor) -> Tensor:
        return delta


class KeepLargest:
    """The ``k`` largest of all: those above a threshold and the first few equal to it, so chunks must come in order."""

    def __init__(self, chunks: DeltaChunks, k: int) -> None:
        self.threshold, self.ties, self.finite = _threshold(chunks, k)

    def prune(self, delta: Tensor) -> Tensor:
        # hardshrink zeroes |x| <= bound in one vectorised pass; a masked fill takes ten times as long
        if not self.ties:
            return torch.nn.functional.hardshrink(delta, self.threshold)
        equal = delta.abs() == self.threshold
        here = int(equal.count_nonzero())
        if here <= self.ties:
            self.ties -= here
            return torch.nn.functional.hardshrink(delta, math.nextafter(self.threshold, 0))
        equal &= equal.cumsum(0) <= self.ties
        self.ties = 0
        return torch.nn.functional.hardshrink(delta, self.threshold) + delta * equal


class KeepLargestPerRow:
    """The ``k`` largest of every row of length ``row``; chunks are whole rows."""

    def __init__(self, chunks: DeltaChunks, k: int, row: int) -> None:
        self.k, self.row = k, row
        self.finite = KeepAll(chunks).finite

    def prune(self, delta: Tensor) -> Tensor:
        rows = delta.view(-1, self.row)
        magnitudes = rows.abs()
        threshold = magnitudes.kthvalue(self.row - self.k + 1, dim=1, keepdim=True).values
        keep = magnitudes > threshold
        equal = magnitudes == threshold
        keep |= equal & (equal.cumsum(1) <= self.k - keep.count_nonzero(1).unsqueeze(1))
        return rows.mul_(keep.to(rows.dtype)).view(-1)


def select(chunks: DeltaChunks, density: float, row: int | None) -> Selection:
    """The largest share ``density`` of a delta, or of each of its rows of length ``row``.

    Raises:
        SettingError: ``density`` is outside [0, 1].
    """
    n = row or len(chunks)
    k = kept_count(n, density)
    if k >= n:
        return KeepAll(chunks)
    return KeepLargestPerRow(chunks, k, row) if row else KeepLargest(chunks, k)


def _threshold(chunks: DeltaChunks, k: int) -> tuple[float, int, bool]:
    """The magnitude above which all are kept, how many equal to it are kept too, and whether all are finite.

    No tensor is sorted. One pass does nearly always: a sample tells between which two magnitudes the ``k``-th largest
    must be, the pass counts those above and gathers those between, and of these it is selected directly. Where the
    sample was wrong, or too many lie between, histograms find it whatever the tensor holds.
    """
    edge = _edge_by_sample(chunks, k) or _edge_by_histograms(chunks, k)
    threshold = torch.tensor(edge.key, dtype=torch.int64).view(torch.float64).item()
    if not threshold:
        return 0.0, 0, edge.finite  # fewer than k elements differ at all
    if edge.equal == edge.wanted:
        return math.nextafter(threshold, 0), 0, edge.finite
    return threshold, edge.wanted, edge.finite


@dataclass(frozen=True)
class _Edge:
    """The ``k``-th largest magnitude: its bits, how many are equal to it and how many of these are wanted."""

    key: int
    equal: int
    wanted: int
    finite: bool


def _edge_among(candidates: Tensor, wanted: int, finite: bool) -> _Edge:
    """That of the ``wanted``-th largest candidate."""
    key = int(candidates.kthvalue(len(candidates) - wanted + 1).values)
    above, equal = int((candidates > key).count_nonzero()), int((candidates == key).count_nonzero())
    return _Edge(key, equal, wanted - above, finite)


def _edge_by_sample(chunks: DeltaChunks, k: int) -> _Edge | None:
    """``None`` where the sample was wrong, or where there are too many candidates."""
    low, high = _bracket(chunks, k)
    largest = above = between = 0
    candidates = []
    for keys in chunks.magnitude_bits():
        largest = max(largest, int(keys.amax()))
        above += _count_above(keys, high)
        if low == high:
            between += int((keys == low).count_nonzero())
            continue
        candidates.append(_between(keys, low, high))
        between += len(candidates[-1])
        if above >= k or between > MAX_CANDIDATES:
            return None
    finite = largest < _INFINITY
    if not above < k <= above + between:
        return None
    if low == high:
        return _Edge(low, between, k - above, finite)
    return _edge_among(torch.cat(candidates), k - above, finite)


def _bracket(chunks: DeltaChunks, k: int) -> tuple[int, int]:
    """Two keys between which the ``k``-th largest lies, if the sample is like the whole to four standard deviations."""
    n = len(chunks)
    if n <= SAMPLE:
        return 0, _LARGEST
    count = max(1, min(SAMPLE, n // 128))
    share = k / n
    spread = 4 * math.sqrt(count * share * (1 - share)) + 1
    first, last = math.floor(count * share - spread), math.ceil(count * share + spread)
    sample = chunks.sample(count)
    return int(sample[last]) if last < count else 0, int(sample[first]) if first >= 0 else _LARGEST


def _count_above(keys: Tensor, bound: int) -> int:
    if bound == _LARGEST:
        return 0
    if keys.device.type == "cpu":
        return int(np.count_nonzero(keys.numpy() > bound))
    return int((keys > bound).count_nonzero())


def _between(keys: Tensor, low: int, high: int) -> Tensor:
    if keys.device.type == "cpu":
        values = keys.numpy()  # NumPy compares and picks out five times as fast as torch does on a CPU
        return torch.from_numpy(values[(values >= low) & (values <= high)])
    return keys[(keys >= low) & (keys <= high)]


def _edge_by_histograms(chunks: DeltaChunks, k: int) -> _Edge:
    """Radix selection from the highest bits down.

    A histogram of the next 16 bits of the magnitudes that share the bits found so far tells the bin of the ``k``-th
    largest; as soon as few magnitudes are left in it, they are gathered and selected from directly. Equal magnitudes,
    of which a model stored in bfloat16 has very many, cost no more than different ones.
    """
    prefix, wanted, equal, finite = 0, k, 0, True
    for shift in (48, 32, 16, 0):
        counts = torch.zeros(2**DIGIT, dtype=torch.int64, device=chunks.base.device)
        unit = counts.new_ones(1)
        for keys in chunks.magnitude_bits():
            digits = keys >> shift
            if shift < 48:
                digits = digits[digits >> DIGIT == prefix] & (2**DIGIT - 1)
            counts.scatter_add_(0, digits, unit.expand(len(digits)))  # bincount would make new counts for every chunk
        if shift == 48:
            finite = not counts[_INFINITY >> 48 :].any()
        from_top = counts.flip(0).cumsum(0)
        rank = int(torch.searchsorted(from_top, wanted))
        digit = 2**DIGIT - 1 - rank
        wanted -= int(from_top[rank - 1]) if rank else 0
        prefix = prefix << DIGIT | digit
        equal = int(counts[digit])
        if shift and equal <= MAX_CANDIDATES:
            low = prefix << shift
            parts = [_between(keys, low, low | (1 << shift) - 1) for keys in chunks.magnitude_bits()]
            return _edge_among(torch.cat(parts), wanted, finite)
    return _Edge(prefix, equal, wanted, finite)
