"""A mixture of experts in float64 NumPy, a token and an expert at a time, and what the dense closed form takes of it.

x (hidden,) is what goes into the mixture, router (E, hidden), up (E, 2 f, hidden), down (E, hidden, f). Every key is
written out with its zeros: kappa = [g_1 k_1; ...; g_E k_E], (E f,). Nothing is shared with the product.
"""

import numpy as np


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def gates(logits, taken, how):
    """g (E,), of which ``taken`` are not zero, as Mixtral, Qwen3-MoE (``norm_topk_prob`` off) and gpt-oss make them."""
    g = np.zeros(len(logits))
    largest = np.argsort(-logits)[:taken]
    if how == "gpt_oss":
        g[largest] = softmax(logits[largest])
        return g
    g[largest] = softmax(logits)[largest]
    return g / g.sum() if how == "mixtral" else g


def silu(z):
    return z / (1 + np.exp(-z))


def gated(inner):
    """k of the two halves of an up map."""
    half = len(inner) // 2
    return silu(inner[:half]) * inner[half:]


def gated_and_clamped(inner, alpha, limit):
    """gpt-oss's: the two maps take turns, and what they give is held to a limit."""
    gate, up = np.minimum(inner[0::2], limit), np.clip(inner[1::2], -limit, limit)
    return (up + 1) * gate / (1 + np.exp(-alpha * gate))


def kappa(x, g, up, activation, up_bias=None):
    """[g_1 k_1; ...; g_E k_E] of one token."""
    parts = []
    for e in range(len(g)):
        inner = up[e] @ x + (0 if up_bias is None else up_bias[e])
        parts.append(g[e] * activation(inner))
    return np.concatenate(parts)


def output(x, g, up, down, activation, up_bias=None, down_bias=None):
    """What the experts put out for one token, expert after expert."""
    total = np.zeros(down.shape[1])
    for e in range(len(g)):
        if g[e] == 0:
            continue
        inner = up[e] @ x + (0 if up_bias is None else up_bias[e])
        total += g[e] * (down[e] @ activation(inner) + (0 if down_bias is None else down_bias[e]))
    return total


def side_by_side(down):
    """W = [W_1 ... W_E], (hidden, E f)."""
    return np.concatenate(list(down), axis=1)


def moment(kappas):
    """E[kappa kappa^T], (E f, E f), of tokens in rows, with products of different experts in it."""
    total = np.zeros((kappas.shape[1], kappas.shape[1]))
    for k in kappas:
        total += np.outer(k, k)
    return total / len(kappas)


def blocks_alone(C, experts):
    """C with zeros for the products of different experts."""
    f = len(C) // experts
    result = np.zeros_like(C)
    for e in range(experts):
        own = slice(e * f, (e + 1) * f)
        result[own, own] = C[own, own]
    return result
