"""How sharp a minimum an adapter sits in: the extreme eigenvalues of the Hessian of the loss and of the margin.

An update survives later ones if its margin is large and the margin's curvature kappa is small (CoRSA paper, Eq. 2 and
3); sharpness-aware minimisation lowers the largest eigenvalue of the loss's Hessian (C.1, Eq. 12). Both are measured
here, over the adapter's parameters, without ever forming the Hessian: the Lanczos process needs its products with
vectors alone.

* :mod:`~corsa_plugins.bench.curvature.measure`: the loss's and the margin's curvature;
* :mod:`~corsa_plugins.bench.curvature.functions`: the two functions, and products with their Hessians;
* :mod:`~corsa_plugins.bench.curvature.lanczos`: extreme eigenvalues of an operator;
* :mod:`~corsa_plugins.bench.curvature.storage`: curvatures as a file.
"""

from corsa_plugins.bench.curvature.functions import FUNCTIONS
from corsa_plugins.bench.curvature.lanczos import Curvature, CurvatureError, Search, extreme_eigenvalues
from corsa_plugins.bench.curvature.measure import curvature
from corsa_plugins.bench.curvature.storage import load_curvature, save_curvature

__all__ = [
    "FUNCTIONS",
    "Curvature",
    "CurvatureError",
    "Search",
    "curvature",
    "extreme_eigenvalues",
    "load_curvature",
    "save_curvature",
]
