"""The sums of a collection in progress: K0 K0^T by layer, and a sample of the keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from corsa_plugins.alphaedit.statistics.packing import Position
from corsa_plugins.alphaedit.statistics.reservoir import Reservoir
from corsa_plugins.model.processes import Processes
from corsa_plugins.model.routed import RoutedKeys

__all__ = ["KeySums"]

CHUNK = 4096
"""Tokens per product: what bounds the error of float32 products."""

BLOCK = 512
"""Rows of a product at a time: of a width of 4096 all but a sixteenth of the lower half is left out."""


class KeySums:
    """Sums of k k^T, and a sample of the keys, over the tokens so far.

    Of routed experts side by side there is a sum for each expert, of the keys weighted by the gates, and no products of
    one expert's with another's.

    Args:
        widths: d of each layer, of all experts together where it has several.
        sample_size: Keys to keep of each layer.
        seed: Of the sample.
        experts: How many each layer has, where that is more than one.

    Attributes:
        count: Number of tokens.
        position: Where in the text they end.
        whole: Whether all layers are at the same token; not while some are being added to.
    """

    def __init__(
        self, widths: Mapping[int, int], sample_size: int, seed: int, experts: Mapping[int, int] | None = None
    ) -> None:
        self.count = 0
        self.position = Position()
        self.whole = True
        self._reservoir = Reservoir(sample_size, seed)
        self._sums: dict[int, Tensor] = {}
        self._widths = dict(widths)
        self._experts = {layer: count for layer, count in (experts or {}).items() if count > 1}
        self._taken = {layer: torch.zeros(count, dtype=torch.float64) for layer, count in self._experts.items()}
        self._samples = {layer: torch.zeros(sample_size, width) for layer, width in widths.items()}

    def add(self, keys: Mapping[int, Tensor | RoutedKeys], position: Position) -> None:
        """Add the keys (n, d) of the same ``n`` tokens in every layer, which end at ``position``."""
        n = len(next(iter(keys.values())))
        self.whole = False
        chosen = self._reservoir.take(n)
        slots, sampled = list(chosen), torch.tensor(list(chosen.values()), dtype=torch.long)
        for layer, batch in keys.items():
            if isinstance(batch, RoutedKeys):
                for expert, tokens, own in batch.parts:
                    self._taken[layer][expert] += len(tokens)
                    self._add_products(layer, own, expert)
                kept = batch.chosen(sampled).dense() if slots else None
            else:
                self._add_products(layer, batch)
                kept = batch[sampled.to(batch.device)] if slots else None
            if kept is not None:
                self._samples[layer][slots] = kept.to("cpu", torch.float32)
        self.count += n
        self.position = position
        self.whole = True

    def pass_over(self, n: int, position: Position) -> None:
        """Leave out ``n`` tokens, which end at ``position``: another process adds their keys."""
        slots = list(self._reservoir.take(n))
        for kept in self._samples.values():
            kept[slots] = 0.0  # a key of this process's that was there is there no more
        self.count += n
        self.position = position

    def gather(self, processes: Processes) -> None:
        """Have the sums over what all processes have added; every other one passed it over."""
        for layer in self._widths:
            if layer not in self._sums:  # there were fewer batches than processes
                self._sums[layer] = self._zeros(layer)
            self._sums[layer] = processes.sum(self._sums[layer])
            if layer in self._taken:
                self._taken[layer] = processes.sum(self._taken[layer])
            if self._samples[layer].numel():
                self._samples[layer] = processes.sum(self._samples[layer])

    def _zeros(self, layer: int, device: torch.device | None = None) -> Tensor:
        count = self._experts.get(layer)
        width = self._widths[layer] // (count or 1)
        return torch.zeros(*([count] if count else []), width, width, dtype=torch.float64, device=device)

    def _add_products(self, layer: int, keys: Tensor, expert: int | None = None) -> None:
        if keys.device.type == "mps":  # it has no float64
            keys = keys.cpu()
        if layer not in self._sums:
            self._sums[layer] = self._zeros(layer, keys.device)
        total = self._sums[layer] = self._sums[layer].to(keys.device)
        with _full_precision():
            for chunk in keys.split(CHUNK):
                _add_product(total if expert is None else total[expert], chunk)

    def moment(self, layer: int) -> Tensor:
        """E[k k^T], (d, d) float64, symmetric to the last bit; of experts (E, width, width), each over all tokens, of
        which those that do not take it count as keys of zero. The sum is let go of."""
        upper = self._sums.pop(layer).div_(self.count).triu_()
        return upper + upper.triu(1).mT

    def taken(self, layer: int) -> tuple[int, ...]:
        """How many of the tokens take each expert; of a layer without several, none."""
        return tuple(int(count) for count in self._taken.get(layer, ()))

    def sample(self, layer: int) -> Tensor | None:
        """The kept keys, (d, S)."""
        kept = self._samples[layer][: self.count]
        return kept.mT.contiguous() if len(kept) else None

    def tensors(self) -> dict[str, Tensor]:
        """What a file needs."""
        sums = {f"sum.{layer}": total for layer, total in self._sums.items()}
        taken = {f"taken.{layer}": counts for layer, counts in self._taken.items()}
        return {**sums, **taken, **{f"sample.{layer}": kept for layer, kept in self._samples.items() if kept.numel()}}

    def restore(self, tensors: Mapping[str, Tensor], count: int, position: Position) -> None:
        """The inverse of :meth:`tensors`."""
        for layer in self._widths:
            self._sums[layer] = tensors[f"sum.{layer}"]
            if layer in self._taken:
                self._taken[layer] = tensors[f"taken.{layer}"]
            if self._samples[layer].numel():
                self._samples[layer] = tensors[f"sample.{layer}"]
        self._reservoir.take(count)
        self.count, self.position = count, position


def _add_product(total: Tensor, keys: Tensor) -> None:
    """Add k^T k to ``total`` (d, d) where the row is not below the column, by blocks: the rest is its mirror image."""
    # Products of two half-precision numbers are exact in float32, so that there only their sum is rounded.
    half = keys.dtype in (torch.float16, torch.bfloat16)
    wide = keys.device.type == "cpu" and not half
    on_tensor_cores = half and keys.device.type == "cuda"
    exact = torch.float64 if wide else torch.promote_types(keys.dtype, torch.float32)
    ready = keys if on_tensor_cores else keys.to(exact)
    for start in range(0, len(total), BLOCK):
        rows = slice(start, start + BLOCK)
        left, right = ready[:, rows].mT, ready[:, start:]
        # tensor cores take the keys as they are, and add up in float32
        product = torch.mm(left, right, out_dtype=torch.float32) if on_tensor_cores else left @ right
        total[rows, start:] += product


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 matrices in float32: TF32 would round the keys to 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
