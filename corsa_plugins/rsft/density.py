"""How much of a change a second stage may take away: the least density that undoes no request (Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable

from corsa_plugins.rsft.settings import AUTO_DENSITIES

__all__ = ["least_density"]


def least_density(said: Callable[[float], int], enough: int) -> tuple[float, tuple[tuple[float, int], ...]]:
    """Merge at one density of :data:`AUTO_DENSITIES` after the other, until as much is said as before.

    Args:
        said: Merges at a density, and counts the requests that the model says then.
        enough: How many it says before the merge.

    Returns:
        The smallest density at which ``enough`` are said, or the first of those at which most are; and what was tried,
        the model being left at the last of these.
    """
    tried: list[tuple[float, int]] = []
    for density in AUTO_DENSITIES:
        tried.append((density, said(density)))
        if tried[-1][1] >= enough:
            break
    return max(tried, key=lambda result: result[1])[0], tuple(tried)  # the first of equal ones
