"""Layers to choose among, and windows of them."""

from __future__ import annotations

import pytest

from corsa_plugins.alphaedit.auto.layers import likely_layers, windows


@pytest.mark.parametrize(
    ("n_blocks", "first", "last"), [(1, 0, 0), (3, 0, 0), (6, 0, 1), (12, 1, 4), (30, 1, 11), (32, 1, 12), (48, 1, 17)]
)
def test_a_good_third_is_likely(n_blocks: int, first: int, last: int) -> None:
    assert likely_layers(n_blocks) == tuple(range(first, last + 1))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((0,), [(0,)]),
        ((3, 4), [(3, 4), (3,), (4,)]),
        ((4, 5, 6, 7, 8), [(4, 5, 6, 7, 8), (6, 7, 8)]),
        ((1, 2, 3, 4, 5, 6, 9), [(1, 2, 3, 4, 5), (2, 3, 4, 5, 6), (9,)]),
    ],
)
def test_windows_are_runs_of_neighbours(layers, expected) -> None:
    assert windows(layers) == expected


def test_many_layers_are_tried_in_three_places_from_the_lowest_to_the_highest() -> None:
    found = windows(range(1, 30))
    assert len(found) == 3
    assert found[0] == (1, 2, 3, 4, 5)
    assert found[-1] == (25, 26, 27, 28, 29)
