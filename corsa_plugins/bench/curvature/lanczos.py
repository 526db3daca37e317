"""Extreme eigenvalues of a symmetric operator by the Lanczos process (Lanczos, 1950).

By hand, as no library's (scipy's, PyTorch's) takes lists of tensors and leaves them on their devices. Three vectors of
the size of the parameters are kept. Without reorthogonalisation the process finds the extreme eigenvalues all the same;
it only finds them again and again (Paige, 1980).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError, SettingError

__all__ = ["MAX_ITERATIONS", "TOLERANCE", "Curvature", "CurvatureError", "Search", "extreme_eigenvalues"]

MAX_ITERATIONS, TOLERANCE = 100, 1e-3


class CurvatureError(CorsaError, RuntimeError):
    """A Hessian that cannot be measured: no second derivative, no dependence on the parameters, or NaN."""


@dataclass(frozen=True)
class Curvature:
    """Extreme eigenvalues of the Hessian of a function.

    Attributes:
        largest: The eigenvalue of largest magnitude, with its sign; its magnitude is the spectral norm, kappa in Eq. 2.
        top: The most positive eigenvalue, lambda_max in Eq. 12.
        bottom: The most negative one.
        residual: Bound on the distance of ``largest`` and of ``top`` from an eigenvalue.
        iterations: Products with the Hessian that it took.
        converged: Whether the residual came under the tolerance. If not, the magnitudes are lower bounds.
        value: Of the function.
        about: What it was measured on and how, plain data for JSON: digests of model, tokenizer and requests, settings,
            seed.
    """

    largest: float
    top: float
    bottom: float
    residual: float
    iterations: int
    converged: bool
    value: float = math.nan
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Search(TypedDict, total=False):
    """How long eigenvalues are looked for.

    Attributes:
        tolerance: Largest residual, relative to the magnitude of the largest eigenvalue, to call it converged; by
            default 1e-3.
        max_iterations: Most products with the Hessian; by default 100.
        seed: Of the first vector; by default 0.
    """

    tolerance: float
    max_iterations: int
    seed: int


def extreme_eigenvalues(
    product: Callable[[list[Tensor]], list[Tensor]],
    like: Sequence[Tensor],
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    seed: int = 0,
) -> Curvature:
    """Extreme eigenvalues of a symmetric operator on lists of tensors, by the Lanczos process.

    With T the tridiagonal matrix of k steps, theta an eigenvalue of it and s its unit eigenvector, some eigenvalue of
    the operator lies within beta_k |s_k| of theta.

    Args:
        product: Maps a vector (tensors of the shapes of ``like``) to its product with the operator.
        like: Gives shapes, devices and types; float32 is used where a type is shorter.
        tolerance: Largest residual, relative to the magnitude of ``largest``, to call it converged.
        max_iterations: Most products.
        seed: Of the first vector.

    Raises:
        SettingError: There are no parameters, or ``max_iterations`` is under 1.
        CurvatureError: A product is not finite.
    """
    if max_iterations < 1:
        raise SettingError(f"max_iterations is {max_iterations}: it must be at least 1")
    size = sum(tensor.numel() for tensor in like)
    if not size:
        raise SettingError("no parameters: give those of the adapter")
    types = [torch.promote_types(tensor.dtype, torch.float32) for tensor in like]
    vector = _first_vector(like, types, seed)
    before = [torch.zeros_like(part) for part in vector]
    alphas: list[float] = []
    betas: list[float] = []
    ends = _Ends(0.0, 0.0, 0.0)
    converged = False
    rounding = max(torch.finfo(kind).eps for kind in types)
    while not converged and len(alphas) < max_iterations:
        image = [part.to(kind) for part, kind in zip(product(vector), types, strict=True)]
        alpha = _dot(image, vector)
        for part, v, u in zip(image, vector, before, strict=True):
            part.sub_(v, alpha=alpha).sub_(u, alpha=betas[-1] if betas else 0.0)
        beta = _norm(image)
        if not math.isfinite(alpha) or not math.isfinite(beta):
            raise CurvatureError("a product with the Hessian is not finite: the model or its parameters hold NaN")
        alphas.append(alpha)
        ends = _ends(alphas, betas, beta)
        converged = ends.residual <= tolerance * ends.magnitude or len(alphas) == size == 1
        betas.append(beta)
        if beta <= rounding * ends.magnitude:  # the vectors so far span all that the operator does to the first one
            converged = True
        else:
            _scale(image, 1 / beta)
            before, vector = vector, image
    largest = ends.low if abs(ends.low) > abs(ends.high) else ends.high
    return Curvature(largest, ends.high, ends.low, ends.residual, len(alphas), converged)


@dataclass(frozen=True)
class _Ends:
    """Extreme eigenvalues of a tridiagonal matrix, and how far they may be from the operator's."""

    low: float
    high: float
    residual: float

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))


def _ends(alphas: Sequence[float], betas: Sequence[float], beta: float) -> _Ends:
    """Of the matrix with the diagonal ``alphas`` and ``betas`` beside it; ``beta`` is what would come next."""
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        off = torch.tensor(betas, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    low, high = float(values[0]), float(values[-1])
    last = {float(vectors[-1, -1].abs()), float(vectors[-1, 0 if abs(low) > abs(high) else -1].abs())}
    return _Ends(low, high, beta * max(last))


def _first_vector(like: Sequence[Tensor], types: Sequence[torch.dtype], seed: int) -> list[Tensor]:
    """Of length 1, in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    vector = [
        torch.randn(tensor.shape, generator=generator, dtype=kind).to(tensor.device)
        for tensor, kind in zip(like, types, strict=True)
    ]
    _scale(vector, 1 / _norm(vector))
    return vector


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return math.fsum(float(torch.sum(x * y, dtype=torch.float64)) for x, y in zip(a, b, strict=True))


def _norm(a: Sequence[Tensor]) -> float:
    return math.sqrt(_dot(a, a))


def _scale(a: Sequence[Tensor], factor: float) -> None:
    for part in a:
        part.mul_(factor)
