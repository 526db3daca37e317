"""The best change of a smaller rank in the norm of keys, in float64 NumPy: root, decomposition, inverse root."""

import numpy as np


def root(C):
    """C^(1/2) and C^(-1/2) of a positive definite C."""
    values, vectors = np.linalg.eigh(C)
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T


def best(delta, C, rank):
    """The truncated singular value decomposition of Delta C^(1/2), mapped back by C^(-1/2)."""
    half, inverse = root(C)
    U, S, V = np.linalg.svd(delta @ half, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank] @ inverse


def gap(delta, C, rank):
    """How far apart the last singular value that is kept and the first that is not are, in units of the largest."""
    half, _ = root(C)
    S = np.linalg.svd(delta @ half, compute_uv=False)
    return 1.0 if rank >= len(S) else (S[rank - 1] - S[rank]) / S[0]


def moment(preserved, edits, floor=1e-6):
    """C: the mean of both kinds of key, and a millionth of its mean eigenvalue in every direction."""
    C = np.zeros((len(edits), len(edits)))
    if preserved is not None:
        C += preserved
    if edits.shape[1]:
        for key in edits.T:
            C += np.outer(key, key) / edits.shape[1]
    return C + floor * np.trace(C) / len(C) * np.eye(len(C))


def loss(delta, reduced, C):
    """Norm of (Delta - Delta_r) C^(1/2), relative to that of Delta C^(1/2)."""
    half, _ = root(C)
    return np.linalg.norm((delta - reduced) @ half) / np.linalg.norm(delta @ half)
