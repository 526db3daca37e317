"""pass@k: how likely one of k samples is right."""

from __future__ import annotations

from math import comb

from corsa_plugins.errors import SettingError

__all__ = ["pass_at_k"]


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the share of the sets of k among n samples with a right one in it, which estimates
    without bias how likely k samples hold one (Chen et al., 2021, arXiv 2107.03374, equation 1).

    Args:
        n: How many samples there are.
        c: How many of them are right.
        k: How many are looked at.

    Raises:
        SettingError: Not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise SettingError(f"pass@{k} of {c} right among {n} samples: k must be from 1 to the number of samples")
    return 1.0 - comb(n - c, k) / comb(n, k)
