"""The locate-then-edit methods beside AlphaEdit, each as its paper writes it, in float64 NumPy with d x d matrices.

Columns are samples: W (d_out x d), K (d x N), R = V - W K (d_out x N), C = E[k0 k0^T] (d x d). Every solution is an
inverse. Nothing is shared with the product.
"""

import numpy as np


def memit(R, K, C, lam, others=None):
    """Meng et al. 2023, Eq. 14: Delta = R K^T (C_0 + K K^T)^-1 with C_0 = lam C; ``others`` is added to C_0."""
    C0 = lam * C + (0 if others is None else others)
    return R @ K.T @ np.linalg.inv(C0 + K @ K.T)


def memit_shares(n_layers):
    """Of what is missing at the last layer, the part that each takes when its turn comes."""
    return [1 / (n_layers - position) for position in range(n_layers)]


def rome(W, k, v, C):
    """Meng et al. 2022, Eq. 2: W + Lambda (C^-1 k)^T with Lambda = (v - W k) / ((C^-1 k)^T k); what is added."""
    u = np.linalg.inv(C) @ k
    Lambda = (v - W @ k) / (u @ k)
    return np.outer(Lambda, u)


def emmet(R, K, C):
    """Gupta et al. 2024: the least tr(Delta C Delta^T) with Delta K = R."""
    inverse = np.linalg.inv(C)
    return R @ np.linalg.inv(K.T @ inverse @ K) @ K.T @ inverse


def encore(R, K, C, lam_p, lam_n):
    """Gupta et al. 2025: MEMIT with the Frobenius norm of the update beside what it does to the preserved keys."""
    return R @ K.T @ np.linalg.inv(lam_p * C + K @ K.T + lam_n * np.eye(len(C)))
