"""Scale and prune weight deltas: the merging stage of papers/model-merging-for-knowledge-editing.md.

    W = W_base + sum_i weight_i * Top_density_i(W_i - W_base)        (Eq. 6; Eq. 5 with density 1)

:func:`merge_deltas` serves R-SFT's second stage and the mergekit method alike.

Precision: deltas are formed, compared and added in float64 whatever the storage dtype, and the sum is rounded once, to
the dtype of the base. Storage dtypes are too coarse for it: in bfloat16 two different deltas often round to one, and
which of them is among the largest would be decided by the rounding.

Scratch memory: tensors are walked in chunks of 2^15 elements (2^22 on a GPU), a few float64 buffers each. Finding the
smallest kept magnitude adds a sample of 2^15 magnitudes, at most 2^20 candidates, and sometimes a histogram of 2^16
counts. In all that is under 64 MiB on a CPU and 512 MiB on a GPU beside the inputs and the result, however large the
tensor; pruning per row needs at least one row. A tensor that is not contiguous is copied.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError, SettingError

__all__ = [
    "DeltaError",
    "EditedTensor",
    "check_density",
    "check_weight",
    "kept_count",
    "merge_deltas",
    "prune_delta",
    "same_bits",
]

CHUNK = 2**15
"""Elements at a time on a CPU: a float64 buffer of them, 256 KiB, stays in the cache, and torch gives so few to one
thread; with more, threads wait for each other at every step, which on a busy machine takes ten times as long."""

GPU_CHUNK = 2**22
"""Elements at a time elsewhere: enough work for a kernel."""

SAMPLE = 2**15
"""How many magnitudes tell, at most, about where the edge is; of a tensor with no more elements, all are gathered."""

MAX_CANDIDATES = 2**20
"""How many magnitudes are gathered for a direct selection; more are narrowed down by histograms."""

DIGIT = 16
"""Bits per histogram; the magnitude of a float64 has 63."""

_LARGEST = 2**63 - 1
_INFINITY = 0x7FF << 52
"""As keys: the bits of magnitudes."""

_PART = 2**22
_CORES = min(4, os.cpu_count() or 1)
"""Memory is compared in parts of at least so many bytes, by at most so many threads."""

_C = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
_C.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class DeltaError(CorsaError, ValueError):
    """Tensors that have no delta: of different shapes, not of floating point, or holding NaN or infinity."""


@dataclass(frozen=True)
class EditedTensor:
    """One edited model's tensor and how much of its delta to keep.

    Attributes:
        tensor: The edited weights, of the base's shape and device and of any floating dtype.
        weight: What the delta is scaled by: ``1 - alpha`` of Eq. 5.
        density: Share of the delta's elements to keep, the largest in magnitude: ``p`` of Eq. 6.
        label: What errors call the model it comes from.
    """

    tensor: Tensor
    weight: float = 0.8
    density: float = 0.2
    label: str = "the edited model"


def check_weight(weight: float) -> float:
    """``weight``, if it is a finite number.

    Raises:
        SettingError: It is NaN or infinite.
    """
    if not math.isfinite(weight):
        raise SettingError(f"weight is {weight}: it must be a finite number, for instance 0.8")
    return weight


def check_density(density: float) -> float:
    """``density``, if it lies in [0, 1].

    Raises:
        SettingError: It does not, or is NaN.
    """
    if not 0 <= density <= 1:
        raise SettingError(f"density is {density}: it must lie between 0 (keep nothing) and 1 (keep all)")
    return density


def kept_count(n: int, density: float) -> int:
    """How many of ``n`` elements are kept: ``max(1, round(density * n))``, but none at density 0.

    ``round`` is Python's, half to even.

    Raises:
        SettingError: ``density`` is outside [0, 1].
    """
    if check_density(density) == 0 or n == 0:
        return 0
    return max(1, round(density * n))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; NaN equals NaN, and 0.0 is not -0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if not one.numel():
        return True
    if one.device.type == other.device.type == "cpu" and one.is_contiguous() and other.is_contiguous():
        return _same_memory(one.data_ptr(), other.data_ptr(), one.numel() * one.element_size())
    return torch.equal(_bits(one), _bits(other))


def _same_memory(one: int, other: int, size: int) -> bool:
    """By memcmp, twice as fast as torch.equal and done at the first difference; what is large, by parts side by side.

    A single core does not read as fast as memory gives, and where a file is mapped, it waits for pages.
    """
    parts = min(_CORES, size // _PART)
    if parts < 2:
        return not _C.memcmp(one, other, size)
    step = -(-size // parts)
    with ThreadPoolExecutor(parts) as pool:
        starts = range(0, size, step)
        return all(pool.map(lambda at: not _C.memcmp(one + at, other + at, min(step, size - at)), starts))


@torch.no_grad()
def merge_deltas(
    base: Tensor,
    edited: Sequence[EditedTensor],
    *,
    per_row: bool = False,
    prune_vectors: bool = True,
    name: str = "the tensor",
    base_label: str = "the base model",
) -> Tensor:
    """The base plus every edited tensor's delta, scaled and pruned (Eq. 6).

    Of equal magnitudes at the edge, those with the lowest index (in row-major order) are kept, so the result does not
    depend on the device. An element that no kept delta changes keeps its value. One edited tensor alone with weight 1
    gives exactly its own values where they are kept: ``b + (x - b)`` would lose an ``x`` that is tiny beside ``b``.

    Args:
        base: Of any shape and floating dtype.
        edited: Any number of edited tensors of the same shape.
        per_row: Keep the share of every row (the last dimension) instead of the whole tensor.
        prune_vectors: ``False`` keeps the whole delta of tensors of fewer than two dimensions (norms, biases), whatever
            the density.
        name: What errors call the tensor.
        base_label: What errors call the model that ``base`` comes from.

    Returns:
        A new tensor of the base's shape, dtype and device; ``base`` itself where nothing is added to it: no edited
        tensor differs from it, or all weights or densities are 0.

    Raises:
        DeltaError: Shapes or devices differ, a tensor is not of floating point, or one that enters the result holds NaN
            or infinity. The message names tensor and model.
        SettingError: A weight is not finite or a density is outside [0, 1].
    """
    entering = []
    unpruned = not prune_vectors and base.dim() < 2
    for item in edited:
        _check_pair(base, item, name, base_label)
        check_weight(item.weight)
        density = 1.0 if unpruned else check_density(item.density)
        if item.weight and density and not same_bits(item.tensor, base):
            entering.append((item, density))
    if not entering or not base.numel():
        return base

    flat_base = base.detach().reshape(-1)
    row = base.shape[-1] if per_row and base.dim() else None
    terms = []
    for item, density in entering:
        source = _Source(item.tensor.detach().reshape(-1), flat_base, row)
        terms.append((item, source, _selection(source, density, row)))
    for item, source, selection in terms:
        if not selection.finite:
            raise _not_finite(source, name, item.label, base_label)

    result = torch.empty_like(flat_base)
    first, values, largest = terms[0]
    alone = len(terms) == 1 and first.weight == 1
    buffer = values.buffer()
    for places in values.places():
        part = flat_base[places]
        if alone:
            kept = largest.prune(values.delta(places)) != 0
            result[places] = torch.where(kept, values.edited[places].to(base.dtype), part)
            continue
        total = buffer[: len(part)].copy_(part)
        for item, source, selection in terms:
            # not add_(..., alpha=weight): some devices fuse it, and half-way cases would then round differently
            total.add_(selection.prune(source.delta(places)).mul_(item.weight))
        result[places] = total
    return result.view(base.shape)


@torch.no_grad()
def prune_delta(delta: Tensor, density: float, *, per_row: bool = False) -> Tensor:
    """Top_p of Eq. 6: ``delta`` with all but the largest magnitudes set to zero.

    Args:
        delta: Of any shape and floating dtype.
        density: Share to keep; see :func:`kept_count`.
        per_row: Keep the share of every row (the last dimension) instead of the whole tensor.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        DeltaError: ``delta`` is not of floating point, or holds NaN or infinity.
        SettingError: ``density`` is outside [0, 1].
    """
    zero = torch.zeros_like(delta)
    item = EditedTensor(delta, weight=1.0, density=density, label="the delta")
    return merge_deltas(zero, [item], per_row=per_row, base_label="zero")


class _Source:
    """The float64 delta of two flat tensors of one length, a chunk at a time, in buffers that are used again."""

    def __init__(self, edited: Tensor, base: Tensor, row: int | None) -> None:
        self.edited, self.base = edited, base
        chunk = CHUNK if base.device.type == "cpu" else GPU_CHUNK
        self.step = max(1, chunk // row) * row if row else chunk
        self._delta, self._subtrahend = self.buffer(), self.buffer()

    def __len__(self) -> int:
        return len(self.base)

    def buffer(self) -> Tensor:
        return torch.empty(min(self.step, len(self.base)), dtype=torch.float64, device=self.base.device)

    def places(self) -> Iterator[slice]:
        for start in range(0, len(self.base), self.step):
            yield slice(start, min(start + self.step, len(self.base)))

    def delta(self, places: slice) -> Tensor:
        """Overwritten by the next call."""
        out, subtrahend = (buffer[: places.stop - places.start] for buffer in (self._delta, self._subtrahend))
        # subtracting a tensor of another dtype takes longer than converting it first
        return out.copy_(self.edited[places]).sub_(subtrahend.copy_(self.base[places]))

    def sample(self, count: int) -> Tensor:
        """The magnitudes' bits at ``count`` places spread evenly, in falling order."""
        n = len(self)
        # multiples of the golden section of n: no row, column or other period is met too often
        places = torch.arange(count, device=self.base.device) * round(n * (math.sqrt(5) - 1) / 2) % n
        magnitudes = (self.edited[places].double() - self.base[places].double()).abs_()
        return magnitudes.view(torch.int64).sort(descending=True).values

    def magnitude_bits(self) -> Iterator[Tensor]:
        """The magnitudes' bits: non-negative int64 that order as the magnitudes do."""
        for places in self.places():
            yield self.delta(places).abs_().view(torch.int64)


class _KeepAll:
    """Everything."""

    def __init__(self, source: _Source) -> None:
        self.finite = all(bool(source.delta(places).abs_().amax() < math.inf) for places in source.places())

    def prune(self, delta: Tensor) -> Tensor:
        return delta


class _KeepLargest:
    """The ``k`` largest of all: those above a threshold and the first few equal to it, so chunks must come in order."""

    def __init__(self, source: _Source, k: int) -> None:
        self.threshold, self.ties, self.finite = _threshold(source, k)

    def prune(self, delta: Tensor) -> Tensor:
        # hardshrink zeroes |x| <= bound in one vectorised pass; a masked fill takes ten times as long
        if not self.ties:
            return torch.nn.functional.hardshrink(delta, self.threshold)
        equal = delta.abs() == self.threshold
        found = int(equal.count_nonzero())
        if found <= self.ties:
            self.ties -= found
            return torch.nn.functional.hardshrink(delta, math.nextafter(self.threshold, 0))
        equal &= equal.cumsum(0) <= self.ties
        self.ties = 0
        return torch.nn.functional.hardshrink(delta, self.threshold) + delta * equal


class _KeepLargestPerRow:
    """The ``k`` largest of every row of length ``row``; chunks are whole rows."""

    def __init__(self, source: _Source, k: int, row: int) -> None:
        self.k, self.row = k, row
        self.finite = _KeepAll(source).finite

    def prune(self, delta: Tensor) -> Tensor:
        rows = delta.view(-1, self.row)
        magnitudes = rows.abs()
        threshold = magnitudes.kthvalue(self.row - self.k + 1, dim=1, keepdim=True).values
        keep = magnitudes > threshold
        equal = magnitudes == threshold
        keep |= equal & (equal.cumsum(1) <= self.k - keep.count_nonzero(1).unsqueeze(1))
        return rows.mul_(keep.to(rows.dtype)).view(-1)


_Selection = _KeepAll | _KeepLargest | _KeepLargestPerRow


def _selection(source: _Source, density: float, row: int | None) -> _Selection:
    n = row or len(source)
    k = kept_count(n, density)
    if k >= n:
        return _KeepAll(source)
    return _KeepLargestPerRow(source, k, row) if row else _KeepLargest(source, k)


def _threshold(source: _Source, k: int) -> tuple[float, int, bool]:
    """The magnitude above which all are kept, how many equal to it are kept too, and whether all are finite.

    No tensor is sorted. One pass does nearly always: a sample tells between which two magnitudes the ``k``-th largest
    must be, the pass counts those above and gathers those between, and of these it is selected directly. Where the
    sample was wrong, or too many lie between, histograms find it whatever the tensor holds.
    """
    edge = _edge_by_sample(source, k) or _edge_by_histograms(source, k)
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


def _edge_by_sample(source: _Source, k: int) -> _Edge | None:
    """``None`` where the sample was wrong, or where there are too many candidates."""
    low, high = _bracket(source, k)
    largest = above = between = 0
    candidates = []
    for keys in source.magnitude_bits():
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


def _bracket(source: _Source, k: int) -> tuple[int, int]:
    """Two keys between which the ``k``-th largest lies, if the sample is like the whole to four standard deviations."""
    n = len(source)
    if n <= SAMPLE:
        return 0, _LARGEST
    count = max(1, min(SAMPLE, n // 128))
    share = k / n
    spread = 4 * math.sqrt(count * share * (1 - share)) + 1
    first, last = math.floor(count * share - spread), math.ceil(count * share + spread)
    sample = source.sample(count)
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


def _edge_by_histograms(source: _Source, k: int) -> _Edge:
    """Radix selection from the highest bits down.

    A histogram of the next 16 bits of the magnitudes that share the bits found so far tells the bin of the ``k``-th
    largest; as soon as few magnitudes are left in it, they are gathered and selected from directly. Equal magnitudes,
    of which a model stored in bfloat16 has very many, cost no more than different ones.
    """
    found, wanted, equal, finite = 0, k, 0, True
    for shift in (48, 32, 16, 0):
        counts = torch.zeros(2**DIGIT, dtype=torch.int64, device=source.base.device)
        one = counts.new_ones(1)
        for keys in source.magnitude_bits():
            digits = keys >> shift
            if shift < 48:
                digits = digits[digits >> DIGIT == found] & (2**DIGIT - 1)
            counts.scatter_add_(0, digits, one.expand(len(digits)))  # bincount would make new counts for every chunk
        if shift == 48:
            finite = not counts[_INFINITY >> 48 :].any()
        from_top = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, wanted))
        digit = 2**DIGIT - 1 - place
        wanted -= int(from_top[place - 1]) if place else 0
        found = found << DIGIT | digit
        equal = int(counts[digit])
        if shift and equal <= MAX_CANDIDATES:
            low = found << shift
            parts = [_between(keys, low, low | (1 << shift) - 1) for keys in source.magnitude_bits()]
            return _edge_among(torch.cat(parts), wanted, finite)
    return _Edge(found, equal, wanted, finite)


def _check_pair(base: Tensor, item: EditedTensor, name: str, base_label: str) -> None:
    for tensor, label in ((base, base_label), (item.tensor, item.label)):
        if not tensor.is_floating_point():
            raise DeltaError(f"{name} of {label} is of {tensor.dtype}: only floating-point tensors have a delta")
    if item.tensor.shape != base.shape:
        raise DeltaError(
            f"{name} has shape {tuple(item.tensor.shape)} in {item.label} and {tuple(base.shape)} in {base_label}: "
            "only models of one architecture and vocabulary can be merged"
        )
    if item.tensor.device != base.device:
        raise DeltaError(f"{name} is on {item.tensor.device} in {item.label} and on {base.device} in {base_label}")
    if base.device.type == "mps":
        raise DeltaError(f"{name} is on {base.device}, which has no float64: merge on the CPU")


def _not_finite(source: _Source, name: str, label: str, base_label: str) -> DeltaError:
    for tensor, owner in ((source.base, base_label), (source.edited, label)):
        for places in source.places():
            wrong = (~torch.isfinite(tensor[places])).nonzero()
            if len(wrong):
                index = places.start + int(wrong[0])
                return DeltaError(
                    f"{name} of {owner} holds {tensor[index].item()} at flat index {index}: a damaged model "
                    "cannot be merged; look at how it was trained or saved"
                )
    return DeltaError(f"{name}: the difference of {label} and {base_label} overflows float64")


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    if flat.stride(0) != 1:  # a single element may have any stride, and then cannot be viewed
        flat = flat.clone(memory_format=torch.contiguous_format)
    size = flat.element_size()
    # eight bytes at a time: several times as fast as comparing half-precision numbers
    whole_words = (flat.numel() * size) % 8 == 0 and (flat.storage_offset() * size) % 8 == 0
    word = torch.int64 if whole_words else {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return flat.view(word)
