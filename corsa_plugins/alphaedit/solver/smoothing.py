"""Smoothed targets for requests of high inconsistency (AlphaEdit+ paper, Eq. 7 and Algorithm 1, lines 11-20).

    v_i(t) = v_i + beta_i(t) (W k_i - v_i),    beta_i(t) = (T - t) / (2 T) if request i is inconsistent, else 0

so t = 0 starts half way between what the model says and the target, and t = T is the target itself. In terms of the
residual, R(t) = R diag(1 - beta(t)): the solution for one t is the solution for any other with its columns scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, isnan
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.settings import NonNegative, NonNegativeInt, Settings, Share

__all__ = [
    "Selection",
    "SmoothingChoice",
    "SmoothingError",
    "SmoothingSettings",
    "is_smoothed",
    "select_smoothing",
    "smoothing",
]

Selection = Literal["early_stop", "best"]


class SmoothingError(CorsaError, ValueError):
    """Norms or validation scores that decide nothing: NaN, infinite or of the wrong shape."""


@dataclass(frozen=True)
class SmoothingSettings(Settings):
    """Which targets are smoothed, in how many steps, and which step is kept.

    Attributes:
        steps: T. 0 smooths nothing.
        share: The share of a batch that counts as inconsistent, those of the largest residual norms. Their number is
            the nearest integer to ``share * N``, halves rounded up; so a request edited alone is never an outlier
            of its batch, nor is one of two at the default. Of equal norms the earlier request comes first. A residual
            of 0 never counts.
        over_median: A request of the share counts only if its norm is also more than this many times the median of
            those in the batch that are over 0: without that, a fifth of any batch would be held back, whether anything
            in it is inconsistent or not. 0: everybody of the share counts, as in the paper.
        threshold: tau_r, an absolute norm, in place of both: every request whose residual norm is above it.
        tolerance: delta of Algorithm 1, in the unit of the validation score.
        selection: ``"best"``, as in the published code: all of 0 to T, and the first of the highest score is kept.
            ``"early_stop"``, as in the paper: t = 0, 1, ... until the score changes by no more than ``tolerance`` from
            one to the next; that last t is kept, wherever the score stands still.
    """

    steps: NonNegativeInt = 10
    share: Share = 0.2
    over_median: NonNegative = 2.0
    threshold: Annotated[NonNegative | None, Field(description="a number of at least 0, or None to go by share")] = None
    tolerance: NonNegative = 2e-4
    selection: Selection = "best"


@dataclass(frozen=True)
class SmoothingChoice:
    """The step that was kept.

    Attributes:
        t: The step, in 0..T.
        scores: The validation scores of t = 0, 1, ..., as far as they were asked for; none if nothing is smoothed.
    """

    t: int
    scores: tuple[float, ...]


@torch.no_grad()
def is_smoothed(norms: Tensor, settings: SmoothingSettings) -> Tensor:
    """Which requests count as inconsistent.

    Args:
        norms: (N,), the norms of the residuals, ||v_i - W k_i||.
        settings: Share or threshold.

    Returns:
        (N,) of bool.

    Raises:
        SmoothingError: ``norms`` is no vector of finite numbers, 0 or more; the message names the requests.
    """
    if norms.ndim != 1:
        raise SmoothingError(f"one residual norm for each request is needed, not shape {tuple(norms.shape)}")
    wrong = (~(torch.isfinite(norms) & (norms >= 0))).nonzero().flatten().tolist()
    if wrong:
        raise SmoothingError(f"the residual norm of request {', '.join(map(str, wrong[:5]))} is no number of 0 or more")
    if settings.steps == 0:
        return torch.zeros_like(norms, dtype=torch.bool)
    if settings.threshold is not None:
        return norms > settings.threshold
    # 0.29 * 50 is 14.499999999999998 in floating point, and 14.5 to whoever wrote 0.29.
    count = floor(settings.share * len(norms) + 0.5 + 1e-9)
    chosen = torch.zeros_like(norms, dtype=torch.bool)
    chosen[norms.argsort(descending=True, stable=True)[:count]] = True
    missing = norms > 0
    if not missing.any():
        return missing
    return chosen & missing & (norms > settings.over_median * norms[missing].quantile(0.5))


def smoothing(norms: Tensor, t: int, settings: SmoothingSettings) -> Tensor:
    """beta(t) of Eq. 7. The residual at t is ``residual * (1 - beta)``.

    Args:
        norms: (N,), the norms of the residuals before any smoothing.
        t: The step, 0 to T.
        settings: T, and which requests are smoothed.

    Returns:
        (N,) float64 in [0, 1/2], on the device of ``norms``.

    Raises:
        SettingError: ``t`` is not between 0 and T.
        SmoothingError: As for :func:`is_smoothed`.
    """
    if not 0 <= t <= settings.steps:
        raise SettingError(f"t is {t}: it must lie between 0 and steps, which is {settings.steps}")
    chosen = is_smoothed(norms, settings).to(torch.float64)
    return chosen * ((settings.steps - t) / (2 * settings.steps)) if settings.steps else chosen


def select_smoothing(
    score: Callable[[int], float], settings: SmoothingSettings, norms: Tensor | None = None
) -> SmoothingChoice:
    """Choose t by validation: lines 11-20 of Algorithm 1.

    Args:
        score: The validation score of the edit with targets smoothed to step t; higher is better. Called once for each
            t it is asked for, in order from 0.
        settings: T, tolerance and selection.
        norms: (N,), the norms of the residuals. With them, a batch of which no request is smoothed asks for no score at
            all, and t is T (lines 11-14).

    Raises:
        SmoothingError: A score is NaN.
    """
    if settings.steps == 0 or (norms is not None and not bool(is_smoothed(norms, settings).any())):
        return SmoothingChoice(settings.steps, ())
    scores: list[float] = []
    for t in range(settings.steps + 1):
        scores.append(float(score(t)))
        if isnan(scores[t]):
            raise SmoothingError(f"the validation score at t = {t} is NaN, which decides nothing")
        if settings.selection == "early_stop" and t and abs(scores[t] - scores[t - 1]) <= settings.tolerance:
            break
    kept = scores.index(max(scores)) if settings.selection == "best" else len(scores) - 1
    return SmoothingChoice(kept, tuple(scores))
