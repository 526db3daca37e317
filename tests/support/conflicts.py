"""Conflicts at a layer that can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from corsa_plugins.alphaedit.conflicts import LayerConflicts, layer_conflicts
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule

# The preserved keys vary along the last axis only: the first three span the null space.
SPACE = NullSpace.from_moment(torch.diag(torch.tensor([1e-4, 2e-4, 3e-4, 1.0])), NullSpaceRule("threshold", 0.01))
KEYS = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
SAMPLE = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-5.0, 1.0]])
HALF = 0.5**0.5


def by_hand(prior: Tensor | None = None, sample: Tensor | None = SAMPLE) -> LayerConflicts:
    prior = torch.tensor([[-2.0], [0.0], [0.0], [0.0]]) if prior is None else prior
    names = tuple(f"earlier {i}" for i in range(prior.shape[1]))
    return layer_conflicts(4, KEYS, SPACE, sample, prior, names)
