"""What an eigenvector outside the null space costs what is preserved, and what that leaves of it.

An edit that writes Delta u along an eigenvector u, in which the preserved keys k0 have the mean square s_u, moves what
is preserved by s_u |Delta u|^2 in the mean square. With a weight c of what is preserved, its price is

    c E|Delta k0|^2 = c sum_u s_u |Delta u|^2 = c tr(Delta C Delta^T)        over the u that are not free

The null space is what is free, and it says what c is: its last eigenvector, of the largest eigenvalue s_0, is taken for
nothing but lambda |Delta u|^2, which every direction pays in Eq. 7, so that what is preserved is held to be worth

    c = weight lambda / s_0                                                  at weight 1: at the edge, as much as lambda

There is no unit in it: keys, residuals, lambda and the number of preserved keys may be scaled, and nothing changes.
There are two ways to go by it.

*Graded.* With the price as a term of Eq. 7, the best edit is Eq. 8 with P~ = sum f_u u u^T, whose weights are

    f_u = lambda / (lambda + c s_u) = s_0 / (s_0 + weight s_u)

for lambda |Delta u|^2 + c s_u |Delta u|^2 is lambda |Delta u|^2 / f_u. Nothing is searched for: whatever is gained is
worth its price. f_u falls as the preserved keys' energy rises, so that at most s_0 / weight of it is laid open in any
direction. In coordinates, f_u^(1/2) scales the row of u; without conflicts, rows of zeros, nothing is added.

*Whole or not at all.* P~ is a projector, as in the paper, and eigenvectors are added for as long as they gain what they
cost.
In the dual form, with z = u^T [K1, Kp (beta Lambda_p)^(1/2)], A = (G + lambda I)^-1, h = A z^T, q = 1 + z h and the
residual padded with zeros for earlier edits, T = [R, 0]::

    gain     lambda |T h|^2 / q                     Eq. 7 at its minimum without u, less that with it
    price    c s_u |T h|^2 / q^2                    T h / q is Delta u once u is added

so that u pays as long as s_u <= s_0 q / weight: at the edge, what no edit reaches into breaks even. In the primal form,
with l = (lambda q)^(1/2) the new diagonal element of L and f the new row of F, the gain is |f|^2 and the price
c s_u |f / l|^2. Several at once gain what they gain together, and cost the sum of their prices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Proposal", "edge", "grades"]


class Proposal(NamedTuple):
    """Eigenvectors that could be added.

    Attributes:
        gain: By how much they would lower the objective together.
        written: |Delta u|^2 for each of them, (count,), of the solution with all of them.
    """

    gain: float
    written: Tensor

    def moved(self, eigenvalues: Tensor) -> float:
        """E|Delta V V^T k0|^2, the mean square by which preserved outputs would move along them; (count,) each."""
        return float(self.written @ eigenvalues)


def edge(eigenvalues: Tensor, n_null: int) -> float:
    """s_0, the largest eigenvalue in the null space; 0 where rounding made it less.

    Args:
        eigenvalues: (d,) ascending.
        n_null: How many of them are in the null space, at least 1.
    """
    return max(0.0, float(eigenvalues[n_null - 1]))


def grades(eigenvalues: Tensor, n_null: int, weight: float) -> Tensor:
    """f, (d,) float64 in [0, 1]: 1 in the null space, and s_0 / (s_0 + weight s_u) beyond.

    Args:
        eigenvalues: (d,) ascending.
        n_null: How many of them are in the null space, at least 1.
        weight: Of what is preserved, 0 or more; at 0 everything is free.
    """
    free = edge(eigenvalues, n_null)
    price = weight * eigenvalues.double().clamp(min=0.0)
    price[:n_null] = 0.0
    # An eigenvector in which nothing is preserved costs nothing, also where nothing is in the null space either.
    return torch.where(price > 0, free / (free + price).clamp(min=torch.finfo(torch.float64).tiny), 1.0)
