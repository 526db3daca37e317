"""How much new keys conflict with preserved ones, with earlier edits, and with each other (AlphaEdit+ paper, 2.2).

The conflict of two keys is the absolute cosine of the angle between them. A key of zeros has no direction: its conflict
with any other is 0. Everything is computed in float64, and zero keys, unlike NaN and infinity, are no error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.columns import check_columns, unit_columns
from corsa_plugins.errors import SettingError

__all__ = ["pairwise_conflict", "prior_weights", "sample_conflict", "subspace_conflict"]

CHUNK = 1024
"""Columns of a large matrix that are normalised and multiplied at a time, in float64."""


@torch.no_grad()
def sample_conflict(keys: Tensor, sample: Tensor) -> Tensor:
    """s(k, K) of Eq. 3: the largest absolute cosine between each key and any key of a sample.

    Args:
        keys: (d, N), one column for each request.
        sample: (d, S), preserved or prior keys, of any floating dtype and on any device. It is walked in chunks of
            columns, so nothing of its size is allocated. With no columns, nothing conflicts.

    Returns:
        (N,) in [0, 1], float64, on the device of ``keys``.

    Raises:
        ColumnsError: The shapes do not match, or there is NaN or infinity.
    """
    units = unit_columns(keys, "keys")
    check_columns(sample, "sample", keys.shape[0])
    largest = units.new_zeros(keys.shape[1])
    for chunk in sample.split(CHUNK, dim=1):
        if chunk.shape[1]:
            cosines = unit_columns(chunk.to(keys.device), "sample").T @ units
            largest = torch.maximum(largest, cosines.abs().amax(dim=0))
    return largest.clamp(0, 1)


@torch.no_grad()
def subspace_conflict(coordinates: Tensor, n_null: int) -> Tensor:
    """s of Eq. 6, the conflict with all preserved knowledge: ||k_parallel|| / ||k||, which is sqrt(1 - ||P k||^2) for a
    key of norm 1.

    It is taken from the part outside the null space itself: one minus a square close to one would leave nothing but
    rounding of a small conflict.

    Args:
        coordinates: (d, N), U^T K for the eigenvectors U of the second moment in ascending order of their eigenvalues.
        n_null: How many of them span the null space.

    Returns:
        (N,) in [0, 1], float64.

    Raises:
        ColumnsError: ``coordinates`` is no matrix of finite numbers.
        SettingError: ``n_null`` is not between 0 and d.
    """
    check_columns(coordinates, "coordinates")
    if not 0 <= n_null <= coordinates.shape[0]:
        raise SettingError(f"n_null is {n_null}: it must lie between 0 and {coordinates.shape[0]}, the size of a key")
    return unit_columns(coordinates, "coordinates")[n_null:].norm(dim=0).clamp(0, 1)


@torch.no_grad()
def pairwise_conflict(keys: Tensor) -> Tensor:
    """Eq. 3 between the requests of one batch.

    Args:
        keys: (d, N).

    Returns:
        (N, N) absolute cosines in [0, 1], float64, symmetric, the diagonal 0: a request does not conflict with itself.

    Raises:
        ColumnsError: ``keys`` is no matrix of finite numbers.
    """
    units = unit_columns(keys, "keys")
    return (units.T @ units).abs().clamp(0, 1).fill_diagonal_(0)


@torch.no_grad()
def prior_weights(prior: Tensor, new: Tensor) -> Tensor:
    """The diagonal of Lambda_p (Eq. 7): 1 - max_i |cos(k_p, k_i)| for each earlier edit, over the new keys.

    An earlier edit whose key is also a new one gets weight 0: it is being overwritten. Cosines do not depend on the
    basis, so coordinates serve as well as keys.

    Args:
        prior: (d, M), the keys of earlier edits.
        new: (d, N), the keys of the new ones.

    Returns:
        (M,) in [0, 1], float64, on the device of ``prior``.

    Raises:
        ColumnsError: The shapes do not match, or there is NaN or infinity.
    """
    return 1 - sample_conflict(prior, new)
