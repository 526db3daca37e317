"""Edits whose cost is what they change of the outputs that are to stay, and not the norm of the update: MEMIT's.

Where AlphaEdit weighs lambda ||Delta||^2 (Eq. 1), MEMIT (Meng et al. 2023, Eq. 14) weighs lambda E||Delta k0||^2 over
the preserved keys, which in the eigenbasis U of C = E[k0 k0^T] is lambda sum_u s_u |Delta u|^2. With u / s_u^(1/2) for
u everything else is as it was, so that one solver serves both::

    Delta = R K1^T (lambda C + K1 K1^T)^-1        is Eq. 8 in coordinates s_u^(-1/2) u^T k, with nothing left out

Of keys that lie side by side C has the blocks on the diagonal alone
(:mod:`~corsa_plugins.alphaedit.solver.side_by_side`): each expert is priced as if it were taken alone. What an edit
costs is at most that times the number of experts that a token takes, as |a + b|^2 <= 2 (|a|^2 + |b|^2).

ENCORE (Gupta et al. 2025) adds the norm again, lambda (E||Delta k0||^2 + nu ||Delta||^2): s_u + nu for s_u.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis
from corsa_plugins.alphaedit.solver.nullspace import NullSpace
from corsa_plugins.errors import SettingError

__all__ = ["everything", "weighed"]

SINGULAR = 1e-12
"""Of the largest cost: a direction that costs less has no price that float64 can tell from none."""


@dataclass(frozen=True)
class _Scaled(Eigenbasis):
    """Eigenvectors of the lengths ``factors``, (d,) float64; ``vectors`` are as they were.

    Attributes:
        basis: In which coordinates are found: keys that lie side by side have a way of their own.
        factors: By eigenvector.
    """

    basis: Eigenbasis
    factors: Tensor

    def coordinates(self, keys: Tensor, n: int) -> Tensor:
        return self.basis.coordinates(keys, n) * self.factors[:n, None].to(keys.device)

    def combine(self, coefficients: Tensor) -> Tensor:
        return self.basis.combine(coefficients * self.factors[: len(coefficients), None].to(coefficients.device))


def weighed(space: NullSpace, norm_weight: float = 0.0, what: str = "") -> NullSpace:
    """The same directions, each of a length at which its cost is 1.

    Args:
        space: Of the preserved keys; of its eigenvectors those in the null space stay in it.
        norm_weight: nu, the weight of ||Delta||^2 against E||Delta k0||^2; 0 in MEMIT.
        what: Whose keys, for messages.

    Returns:
        A space whose coordinates are (s_u + nu)^(-1/2) u^T k, and whose eigenvalues are s_u / (s_u + nu): what is
        written along a direction costs the preserved keys so much of what it costs in all.

    Raises:
        SettingError: The second moment is not known, or in some directions there is none and no norm to go by.
    """
    where = f"{what}: " if what else ""
    if not space.ordered:
        raise SettingError(
            f"{where}the preserved keys are known by a projector alone, and penalty='outputs' needs their second "
            "moment: give statistics of corsa stats, or EasyEdit's second moments"
        )
    costs = space.eigenvalues.double() + norm_weight
    missing = int((costs <= SINGULAR * costs[-1]).sum())
    if missing:
        raise SettingError(
            f"{where}in {missing} of {space.d} directions the statistics hold no keys, so that lambda C has no inverse "
            "and an edit there no price: collect statistics of more text (corsa stats), or give norm_weight a small "
            f"number, such as {float(costs.mean()) * 1e-4:.1g}"
        )
    values, basis = space.eigenvalues.double() / costs, space.basis
    return NullSpace(_Scaled(values, basis.vectors, basis, costs.rsqrt()), space.n_null)


def everything(space: NullSpace) -> NullSpace:
    """The same basis, with every direction open to edits: P = I."""
    return NullSpace(space.basis, space.d, ordered=space.ordered)
