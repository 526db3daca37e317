"""Every target exactly, at the least cost: what Eq. 8 becomes as lambda goes to 0.

    min E||Delta k0||^2  such that  Delta K1 = R        is        Delta = R (K1^T C^-1 K1)^-1 K1^T C^-1

For one request it is ROME's (Meng et al. 2022, Eq. 2), Delta = r (C^-1 k)^T / (k^T C^-1 k); for several together,
EMMET's (Gupta et al. 2024). In the coordinates of :mod:`~corsa_plugins.alphaedit.solver.weighed`, Z = K1 there,
it is Delta = R (Z^T Z)^-1 Z^T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.closed_form import Solution
from corsa_plugins.alphaedit.solver.columns import ColumnsError, check_columns

__all__ = ["solve_exactly"]

DEPENDENT = 1e-10
"""Of its squared norm: of a key that has less outside the span of the others, another target than theirs is no edit."""


@torch.no_grad()
def solve_exactly(new: Tensor, residual: Tensor) -> Solution:
    """The edit that leaves nothing of the residual.

    Args:
        new: (d, N), coordinates of the new keys, N at least 1.
        residual: (d_out, N); the coefficients of the result serve any other.

    Raises:
        ColumnsError: Shapes that do not match, NaN or infinity, no request, or keys that depend on each other.
    """
    check_columns(new, "new keys")
    check_columns(residual, "residual")
    d, n = new.shape
    if not n or residual.shape[1] != n:
        raise ColumnsError(f"residual: {residual.shape[1]} columns for {n} new keys; there must be one for each")
    exact = new.to(torch.float64)
    gram = exact.T @ exact
    factor, info = torch.linalg.cholesky_ex(gram)
    # the square of a diagonal element is what a key has outside the span of those before it
    outside = factor.diagonal().square() / gram.diagonal()
    if int(info) or not bool((outside > DEPENDENT).all()):
        raise ColumnsError(
            "ridge is 0, which asks for every target exactly, and the keys of these requests depend on each other, as "
            "those of two requests about one subject may: edit them in batches of their own, or give a ridge over 0"
        )
    return Solution(
        rank=d,
        added=0,
        grades=exact.new_ones(d),
        coefficients=torch.cholesky_solve(exact.T, factor).T,
        remainder=exact.new_zeros(n, n),
        objective=(0.0,),
        refused=None,
        form="dual",
    )
