"""The equations and Algorithm 1 of papers/alphaedit-plus.md in float64 NumPy, with d x d matrices throughout.

Columns are samples, as in the paper: W (d_out x d), K1 (d x N), Kp (d x M), V1 (d_out x N). Every solution is an
inverse and every step of a search a solution from scratch. Nothing is shared with the product.
"""

import numpy as np


def projector(U, columns):
    """P = U_hat U_hat^T for the eigenvectors in ``columns``."""
    P = np.zeros((U.shape[0], U.shape[0]))
    for column in columns:
        P += np.outer(U[:, column], U[:, column])
    return P


def conflict(k, K):
    """s(k, K), Eq. 3."""
    largest = 0.0
    for j in range(K.shape[1]):
        scale = np.sqrt(k @ k) * np.sqrt(K[:, j] @ K[:, j])
        if scale > 0:
            largest = max(largest, abs(k @ K[:, j]) / scale)
    return largest


def subspace_conflict(k, P):
    """s of Eq. 6 for a key of any norm: the norm of what P takes away, of the key scaled to norm 1."""
    k = k / np.sqrt(k @ k)
    parallel = k - P @ k
    return np.sqrt(parallel @ parallel)


def weights(Kp, K1):
    """Lambda_p of Eq. 7, line 1 of Algorithm 1."""
    Lp = np.zeros((Kp.shape[1], Kp.shape[1]))
    for j in range(Kp.shape[1]):
        Lp[j, j] = 1 - abs(conflict(Kp[:, j], K1))
    return Lp


def alphaedit(R, K1, Kp, P, lam):
    """Eq. 2."""
    return R @ K1.T @ P @ np.linalg.inv(Kp @ Kp.T @ P + K1 @ K1.T @ P + lam * np.eye(len(P)))


def solution(R, K1, Kp, Lp, P_mod, lam, beta):
    """Eq. 8 with the residual of t = 0, Eq. 9 with any other; beta as in A.5."""
    return (
        R @ K1.T @ P_mod @ np.linalg.inv(beta * Kp @ Lp @ Kp.T @ P_mod + K1 @ K1.T @ P_mod + lam * np.eye(len(P_mod)))
    )


def objective(W, delta, K1, V, Kp, Lp, lam, beta):
    """Eq. 7, for delta = delta~ P_mod and the targets V."""
    return (
        np.linalg.norm((W + delta) @ K1 - V) ** 2
        + beta * np.linalg.norm(delta @ Kp @ np.sqrt(Lp)) ** 2
        + lam * np.linalg.norm(delta) ** 2
    )


def smoothed(W, K1, V1, t, T, smooth):
    """V_1^t and beta(t) of Eq. 7; ``smooth[i]`` says whether ||r_i|| is above tau_r."""
    beta = np.zeros(K1.shape[1])
    V = V1.copy()
    for i in range(K1.shape[1]):
        if smooth[i]:
            beta[i] = (T - t) / (2 * T)
            v0 = W @ K1[:, i]
            V[:, i] = V1[:, i] + beta[i] * (v0 - V1[:, i])
    return V, beta


def search(W, K1, V, Kp, Lp, U, n_null, lam, beta, epsilon, at_a_time=1):
    """Lines 3-10 of Algorithm 1 for targets V; ``epsilon`` is a relative reduction.

    Returns the eigenvectors in use, P_mod, and the values of the objective from the start to the last addition.
    """
    R = V - W @ K1
    used = list(range(n_null))
    P_mod = projector(U, used)
    values = [objective(W, solution(R, K1, Kp, Lp, P_mod, lam, beta), K1, V, Kp, Lp, lam, beta)]
    while len(used) < U.shape[1]:
        more = list(range(len(used), min(len(used) + at_a_time, U.shape[1])))
        P_tilde = projector(U, more)
        delta = solution(R, K1, Kp, Lp, P_mod + P_tilde, lam, beta)
        value = objective(W, delta, K1, V, Kp, Lp, lam, beta)
        if values[-1] == 0 or (values[-1] - value) / values[-1] < len(more) * epsilon:
            break
        used, P_mod = used + more, P_mod + P_tilde
        values.append(value)
    return used, P_mod, values


def price(delta, P_tilde, C, c):
    """c E|delta k0|^2 of what delta writes in the space of P_tilde; C is the second moment of the preserved keys."""
    written = delta @ P_tilde
    return c * np.trace(written @ C @ written.T)


def priced_search(W, K1, V, Kp, Lp, U, s, n_null, lam, beta, weight, at_a_time=1):
    """As ``search``, for as long as an addition costs no more than it gains; ``s``: the eigenvalues, ascending."""
    R, C, c = V - W @ K1, U @ np.diag(s) @ U.T, weight * lam / s[n_null - 1]
    used = list(range(n_null))
    P_mod = projector(U, used)
    values = [objective(W, solution(R, K1, Kp, Lp, P_mod, lam, beta), K1, V, Kp, Lp, lam, beta)]
    while len(used) < U.shape[1]:
        more = list(range(len(used), min(len(used) + at_a_time, U.shape[1])))
        P_tilde = projector(U, more)
        delta = solution(R, K1, Kp, Lp, P_mod + P_tilde, lam, beta)
        value = objective(W, delta, K1, V, Kp, Lp, lam, beta)
        if price(delta, P_tilde, C, c) > values[-1] - value:
            break
        used, P_mod = used + more, P_mod + P_tilde
        values.append(value)
    return used, P_mod, values


def priced_objective(W, delta, K1, V, Kp, Lp, U, s, n_null, lam, beta, weight):
    """Eq. 7 and, as one more term, the price of what delta writes outside the null space."""
    P_tilde, C = projector(U, range(n_null, U.shape[1])), U @ np.diag(s) @ U.T
    return objective(W, delta, K1, V, Kp, Lp, lam, beta) + price(delta, P_tilde, C, weight * lam / s[n_null - 1])


def priced(R, K1, Kp, Lp, U, s, n_null, lam, beta, weight):
    """The delta at which the gradient of ``priced_objective`` is zero, of all matrices there are."""
    d = U.shape[0]
    P_tilde, C, c = projector(U, range(n_null, d)), U @ np.diag(s) @ U.T, weight * lam / s[n_null - 1]
    return R @ K1.T @ np.linalg.inv(K1 @ K1.T + beta * Kp @ Lp @ Kp.T + lam * np.eye(d) + c * P_tilde @ C @ P_tilde)


def published_search(W, K1, V, Kp, Lp, U, n_null, lam, beta, epsilon, layer_position=1):
    """The published code's: ten eigenvectors at a time against 10 epsilon, beta times the 1-based layer position."""
    return search(W, K1, V, Kp, Lp, U, n_null, lam, beta * layer_position, epsilon, at_a_time=10)


def algorithm_1(W, K1, V1, Kp, U, n_null, T, tau, epsilon, tolerance, lam, beta, val_score):
    """The whole of Algorithm 1; ``val_score`` is a function of the update. Returns Delta_+ and the t it is of."""
    Lp = weights(Kp, K1)  # line 1
    R = V1 - W @ K1
    smooth = [np.sqrt(R[:, i] @ R[:, i]) > tau for i in range(K1.shape[1])]
    V0, beta_0 = smoothed(W, K1, V1, 0, T, smooth)  # 3
    _, P_mod, _ = search(W, K1, V0, Kp, Lp, U, n_null, lam, beta, epsilon)  # 4-10
    if np.abs(beta_0).sum() == 0:  # 11
        return solution(R, K1, Kp, Lp, P_mod, lam, beta), T  # 12, 13
    delta = solution(V0 - W @ K1, K1, Kp, Lp, P_mod, lam, beta)  # 15
    before = val_score(delta)
    for t in range(1, T + 1):  # 16
        Vt, _ = smoothed(W, K1, V1, t, T, smooth)  # 17
        delta = solution(Vt - W @ K1, K1, Kp, Lp, P_mod, lam, beta)  # 18
        score = val_score(delta)
        if abs(score - before) <= tolerance:  # 19
            break
        before = score
    return delta, t  # 21
