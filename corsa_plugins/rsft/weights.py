"""The weights that train: in a precision fit for it, and with a way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from corsa_plugins.merging.deltas import EditedTensor, merge_deltas

__all__ = ["TrainedWeights"]


class TrainedWeights:
    """Parameters of a model and what the optimiser works on.

    float32 and float64 parameters train in place. bfloat16 and float16 ones train in a float32 copy, which is rounded
    to the model after every step: a bfloat16 weight of 0.02 moves in steps of 1e-4, so updates of a few 1e-4, and all
    of those at the end of the schedule, would round away or double. The model always computes in its own precision.

    Args:
        parameters: By name.

    Attributes:
        originals: Copies of the parameters as they were, in main memory.
        masters: What the optimiser changes, in the order of ``parameters``; the parameter's own memory where that
            is precise enough. Their ``grad`` is theirs alone: the parameters' own is left as it is.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.originals = {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}
        # to() gives back the very tensor where there is nothing to convert
        self.masters = [p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in self.parameters.values()]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for parameter, master in zip(self.parameters.values(), self.masters, strict=True):
            if master.dtype != parameter.dtype:
                parameter.copy_(master)

    def snapshot(self) -> list[Tensor]:
        """Copies of the masters, in main memory."""
        return [master.to("cpu", copy=True) for master in self.masters]

    @torch.no_grad()
    def load(self, snapshot: Sequence[Tensor]) -> None:
        """Back to a snapshot, masters and model, bit for bit."""
        for master, kept in zip(self.masters, snapshot, strict=True):
            master.copy_(kept)
        self.publish()

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the originals, bit for bit."""
        for parameter, original in zip(self.parameters.values(), self.originals.values(), strict=True):
            parameter.copy_(original)
        for parameter, master in zip(self.parameters.values(), self.masters, strict=True):
            master.copy_(parameter)

    @torch.no_grad()
    def merge(self, weight: float, density: float, trained: Sequence[Tensor] | None = None) -> None:
        """theta_base + weight * Top_density(theta_sft - theta_base) (Eq. 6), in the model.

        Where a master is more precise than the parameter, it is the master's change that is ranked and scaled. Masters
        that are the parameter's own memory hold the merge afterwards.

        Args:
            weight, density: Of Eq. 6.
            trained: theta_sft, a :meth:`snapshot`; by default the masters.
        """
        for (name, parameter), master in zip(self.parameters.items(), trained or self.masters, strict=True):
            base = self.originals[name].to(parameter.device)
            edited = EditedTensor(master.to(parameter.device), weight, density, "R-SFT")
            parameter.copy_(merge_deltas(base, [edited], name=name))

    def changed(self) -> float:
        """The share of the parameters' elements that are not as they were."""
        differing = sum(
            int((parameter.detach() != self.originals[name].to(parameter.device)).sum())
            for name, parameter in self.parameters.items()
        )
        return differing / max(1, sum(parameter.numel() for parameter in self.parameters.values()))
