"""Conflicts of requests with what a model should keep, with earlier edits, and with each other (Eq. 3 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.columns import unit_columns
from corsa_plugins.alphaedit.solver.conflict import pairwise_conflict, sample_conflict, subspace_conflict
from corsa_plugins.alphaedit.solver.nullspace import NullSpace
from corsa_plugins.alphaedit.state import EditState

__all__ = [
    "Conflicts",
    "LayerConflicts",
    "RequestConflicts",
    "experts_of",
    "layer_conflicts",
    "request_conflicts",
]


@dataclass(frozen=True)
class LayerConflicts:
    """Conflicts of N requests at one layer.

    Attributes:
        layer: The block.
        preserved: (N,) s(k, K0) of Eq. 3 over the sample of preserved keys; ``None`` without one.
        subspace: (N,) the share of the key outside the null space (Eq. 6).
        prior: (N, M) |cos| with the key of each edit in force; M may be 0.
        prior_names: The M edits in force.
        batch: (N, N) |cos| with each other, 0 on the diagonal.
        experts: For each request the routed experts that its key is of, the one with the longest part first; empty
            where a layer has no several.
    """

    layer: int
    preserved: Tensor | None
    subspace: Tensor
    prior: Tensor
    prior_names: tuple[str, ...]
    batch: Tensor
    experts: tuple[tuple[int, ...], ...] = ()


def layer_conflicts(
    layer: int, keys: Tensor, space: NullSpace, sample: Tensor | None, prior: Tensor, prior_names: Sequence[str]
) -> LayerConflicts:
    """All conflicts of keys (d, N) with a sample of preserved keys (d, S), prior keys (d, M), and each other."""
    cosines = unit_columns(keys, "keys").T @ unit_columns(prior.to(keys.device), "prior keys", rows=keys.shape[0])
    return LayerConflicts(
        layer=layer,
        preserved=None if sample is None else sample_conflict(keys, sample).cpu(),
        subspace=subspace_conflict(space.coordinates(keys), space.n_null).cpu(),
        prior=cosines.abs().clamp(max=1).cpu(),
        prior_names=tuple(prior_names),
        batch=pairwise_conflict(keys).cpu(),
    )


def experts_of(keys: Tensor, count: int) -> tuple[tuple[int, ...], ...]:
    """Of each column of keys (d, N) the experts, of ``count`` side by side, whose part is not zero, the longest first;
    empty if there is but one."""
    if count == 1:
        return ()
    lengths = keys.unflatten(0, (count, -1)).norm(dim=1).T.cpu()
    return tuple(
        tuple(expert for expert in column.argsort(descending=True, stable=True).tolist() if column[expert] > 0)
        for column in lengths
    )


@dataclass(frozen=True)
class RequestConflicts:
    """The highest conflicts of one request over the edited layers; ``None`` where there is nothing to conflict with."""

    preserved_conflict: float | None
    subspace_conflict: float
    prior_conflict: float | None
    prior_conflict_with: str | None
    batch_conflict: float | None
    batch_conflict_with: str | None


@dataclass(frozen=True)
class Conflicts:
    """Conflicts of a list of requests at every edited layer.

    Attributes:
        names: Of the requests.
        layers: In ascending order.
    """

    names: tuple[str, ...]
    layers: tuple[LayerConflicts, ...]

    def of(self, index: int) -> RequestConflicts:
        """The figures of one request."""
        preserved = [float(layer.preserved[index]) for layer in self.layers if layer.preserved is not None]
        prior = _highest([(layer.prior[index], layer.prior_names) for layer in self.layers])
        others = [name for i, name in enumerate(self.names) if i != index]
        keep = torch.arange(len(self.names)) != index
        batch = _highest([(layer.batch[index][keep], others) for layer in self.layers])
        return RequestConflicts(
            preserved_conflict=max(preserved) if preserved else None,
            subspace_conflict=max(float(layer.subspace[index]) for layer in self.layers),
            prior_conflict=prior[0],
            prior_conflict_with=prior[1],
            batch_conflict=batch[0],
            batch_conflict_with=batch[1],
        )

    def experts(self, index: int) -> dict[int, tuple[int, ...]]:
        """By layer, the routed experts that the key of one request is of, where there are several."""
        return {layer.layer: layer.experts[index] for layer in self.layers if layer.experts}

    def means(self) -> dict[str, float | None]:
        """Means over the requests, as the paper gives them for a data set (Table 1)."""
        requests = [self.of(index) for index in range(len(self.names))]
        return {
            name: _mean([getattr(request, name) for request in requests])
            for name in ("preserved_conflict", "subspace_conflict", "prior_conflict", "batch_conflict")
        }


def request_conflicts(
    names: Sequence[str],
    keys: Mapping[int, Tensor],
    null_space: Callable[[int], NullSpace],
    sample: Callable[[int], Tensor | None],
    state: EditState,
    experts: Mapping[int, int] | None = None,
) -> Conflicts:
    """The conflicts of requests with K0, with the edits in force, and with each other.

    Args:
        names: Of the requests.
        keys: K1 (d_in, N) by layer.
        null_space: Of a layer.
        sample: Of the preserved keys of a layer, if kept; asked for one layer after the other.
        state: The edits in force.
        experts: How many maps lie side by side in a layer; by default one.
    """
    layers = []
    for layer, new in keys.items():
        prior = state.prior_keys(layer, new.shape[0])
        found = layer_conflicts(layer, new, null_space(layer), sample(layer), prior, state.prior_names(layer))
        layers.append(replace(found, experts=experts_of(new, (experts or {}).get(layer, 1))))
    return Conflicts(tuple(names), tuple(layers))


def _highest(rows: Sequence[tuple[Tensor, Sequence[str]]]) -> tuple[float | None, str | None]:
    highest = [(float(row.max()), names[int(row.argmax())]) for row, names in rows if len(row)]
    return max(highest) if highest else (None, None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
