"""Eq. 4-6 of papers/model-merging-for-knowledge-editing.md in float64 NumPy: a full sort, one tensor at a time.

Nothing is shared with the product.
"""

import numpy as np
import torch


def as_float64(tensor):
    return tensor.detach().cpu().to(torch.float64).numpy()


def top(delta, density):
    """Top_p of Eq. 6: the k largest magnitudes; of equal ones the first in row-major order."""
    n = delta.size
    k = 0 if density == 0 or n == 0 else max(1, round(density * n))
    order = np.argsort(-np.abs(delta.reshape(-1)), kind="stable")
    mask = np.zeros(n, dtype=bool)
    mask[order[:k]] = True
    return np.where(mask.reshape(delta.shape), delta, 0.0)


def top_per_row(delta, density):
    if not delta.size:
        return delta
    rows = delta.reshape(-1, delta.shape[-1]) if delta.ndim else delta.reshape(1, 1)
    return np.stack([top(row, density) for row in rows]).reshape(delta.shape)


def merge(base, edited, weights, densities, per_row=False, prune_vectors=True):
    """W_base + sum_i weight_i * Top_density_i(W_i - W_base), a float64 array."""
    b = as_float64(base)
    result = b.copy()
    for tensor, weight, density in zip(edited, weights, densities, strict=True):
        delta = as_float64(tensor) - b
        if not prune_vectors and b.ndim < 2:
            density = 1.0
        result += weight * (top_per_row if per_row else top)(delta, density)
    return result


def rounded(values, dtype):
    """The float64 array in a storage dtype, rounded once."""
    return torch.from_numpy(np.asarray(values)).to(dtype)


def merge_checkpoints(base, edited, settings):
    """Whole checkpoints: dicts of tensors.

    ``settings(name)`` gives the weights and densities, one per edited model.
    """
    merged = {}
    for name, tensor in base.items():
        weights, densities = settings(name)
        merged[name] = rounded(merge(tensor, [state[name] for state in edited], weights, densities), tensor.dtype)
    return merged
