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


def kept_by_rect(delta, W, share, epsilon=1e-8):
    """Gu et al. 2024: the share of delta's elements with the largest |delta_ij / (W_ij + epsilon)|, the others zero."""
    change = np.abs(delta / (W + epsilon)).ravel()
    order = np.argsort(-change, kind="stable")
    chosen = order[: change.size - int(change.size * (1 - share))]
    kept = np.zeros(change.size)
    kept[chosen] = delta.ravel()[chosen]
    return kept.reshape(delta.shape)


def held_by_prune(total, W0, base):
    """Ma et al. 2025: the singular values of the summed update over W0's largest become log_base(s / s_0) + s_0."""
    U, S, Vt = np.linalg.svd(total, full_matrices=False)
    limit = np.linalg.svd(W0)[1][0]
    held = np.array([np.log(s) / np.log(base) - np.log(limit) / np.log(base) + limit if s > limit else s for s in S])
    return U @ np.diag(held) @ Vt


def weakened_by_sphere(delta, W, eta, alpha):
    """Liu et al. 2026: Delta (I - alpha U U^T), U the eigenvectors of the mean of w w^T over W's rows, made 1 long,
    from the largest on until they have more than eta of the trace."""
    rows = W / np.linalg.norm(W, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    chosen, total = [], 0.0
    for place in np.argsort(-values):
        chosen.append(vectors[:, place])
        total += values[place]
        if total / values.sum() > eta:
            break
    U = np.stack(chosen, axis=1)
    return delta @ (np.eye(W.shape[1]) - alpha * U @ U.T)


def nas_norm(norms, drop):
    """Liu et al. 2026, published code: the mean over the norms but for the floor(drop N) largest."""
    ordered = sorted(norms)
    left_out = int(np.floor(drop * len(ordered)))
    kept = ordered[: len(ordered) - left_out]
    return sum(kept) / len(kept)


def nas_target(h, v0, delta, norm, skip_over):
    """Liu et al. 2026: the target of the block whose output is h, its FFN's output v0, for the value v0 + delta."""
    v_star = v0 + delta
    length = np.sqrt(np.sum(v_star**2))
    v_star = v0 if length > skip_over * norm else v_star * norm / length
    return (h - v0) + v_star


def orthogonal_to(R, K, C, lam, Kp):
    """MEMIT's objective under Delta Kp = 0, by its Karush-Kuhn-Tucker equations: one linear system for Delta^T and the
    multipliers of the constraint."""
    d, m = Kp.shape
    system = np.block([[lam * C + K @ K.T, Kp], [Kp.T, np.zeros((m, m))]])
    return np.linalg.solve(system, np.vstack([K @ R.T, np.zeros((m, len(R)))]))[:d].T


def memit_plus(R, K1, Kp, Lp, P, C, lam, beta):
    """MEMIT with earlier edits weighed by Lambda_p, beta Kp Lp Kp^T, of all Delta = Delta P; P projects onto some of
    C's eigenvectors."""
    K, earlier = P @ K1, P @ Kp
    return memit(R, K, C, lam, beta * earlier @ Lp @ earlier.T) @ P


def memit_plus_objective(delta, R, K1, Kp, Lp, C, lam, beta):
    """Eq. 7 of AlphaEdit+ with MEMIT's lambda E||Delta k0||^2 in place of lambda ||Delta||^2."""
    return (
        np.linalg.norm(delta @ K1 - R) ** 2
        + beta * np.linalg.norm(delta @ Kp @ np.sqrt(Lp)) ** 2
        + lam * np.trace(delta @ C @ delta.T)
    )


def dearer(C, U, n_null, weight):
    """C with the eigenvectors beyond the null space at 1 + weight times what they cost in MEMIT: the price of a graded
    addition, lambda weight s_u |Delta u|^2, on top of MEMIT's own lambda s_u |Delta u|^2. ``U``: ascending."""
    costs = np.diag(U.T @ C @ U) * np.where(np.arange(len(C)) < n_null, 1, 1 + weight)
    return U @ np.diag(costs) @ U.T


def searched(U, n_null, solution, objective, epsilon):
    """Lines 4-10 of Algorithm 1 for any objective: how many eigenvectors, in ascending order, end up in P_mod.

    ``solution`` gives the update for a projector, and ``objective`` what an update is worth.
    """

    def value(count):
        return objective(solution(U[:, :count] @ U[:, :count].T))

    used, before = n_null, value(n_null)
    while used < len(U):
        after = value(used + 1)
        if (before - after) / before < epsilon:
            break
        used, before = used + 1, after
    return used


def inconsistent(norms, share):
    """The requests of the largest residual norms, ``share`` of them, halves rounded up."""
    count = int(np.floor(share * len(norms) + 0.5))
    chosen = np.zeros(len(norms))
    chosen[np.argsort(-norms, kind="stable")[:count]] = 1
    return chosen
