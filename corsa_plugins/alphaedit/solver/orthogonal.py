"""Updates that leave the outputs at the keys of earlier edits as they are: orthogonal to them (KDE's constraint).

    the best Delta with Delta Kp = 0        is        Eq. 8 of the parts of the new keys outside the span of Kp

in whatever coordinates the edit is made, for an update is a sum of products with the keys it is made for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.columns import ColumnsError

__all__ = ["orthogonal"]

RANK = 1e-7
"""Of the largest singular value of the earlier keys, each of length 1: what is less is rounding, and no direction."""

LEFT = 1e-6
"""Of its length: a key of which less is left outside the span cannot get another output."""


@torch.no_grad()
def orthogonal(new: Tensor, prior: Tensor) -> Tensor:
    """The parts of the new keys outside the span of the earlier ones.

    Args:
        new: (d, N), coordinates of the new keys.
        prior: (d, M), of the keys of earlier edits; M may be 0.

    Returns:
        (d, N) float64.

    Raises:
        ColumnsError: Of a new key nothing is left.
    """
    exact = new.to(torch.float64)
    if not prior.shape[1]:
        return exact
    units = torch.nn.functional.normalize(prior.to(torch.float64), dim=0)
    directions, values, _ = torch.linalg.svd(units, full_matrices=False)
    span = directions[:, values > RANK * values[0]]
    for _ in range(2):  # twice is enough: what rounding has left of the span the first time goes
        exact = exact - span @ (span.T @ exact)
    gone = (exact.norm(dim=0) <= LEFT * new.norm(dim=0)).nonzero().flatten().tolist()
    if gone:
        raise ColumnsError(
            f"the keys of {len(gone)} of {new.shape[1]} requests lie in the span of those of {prior.shape[1]} earlier "
            f"edits ({span.shape[1]} of {len(new)} directions), whose outputs are to stay exactly as they are "
            "(prior_outputs='kept'): take earlier edits back, or weigh them instead (prior_outputs='weighed')"
        )
    return exact
