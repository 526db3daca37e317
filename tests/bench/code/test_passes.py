"""pass@k against its definition."""

from __future__ import annotations

from itertools import combinations

import pytest

from corsa_plugins.bench.code import pass_at_k
from corsa_plugins.errors import SettingError


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_it_is_the_share_of_sets_of_k_with_a_right_one(n):
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            sets = list(combinations(samples, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, sets)) / len(sets))


def test_its_mean_over_all_outcomes_is_the_chance_that_one_of_k_is_right():
    p, n, k = 0.3, 6, 3
    outcomes = [[bool(bits >> i & 1) for i in range(n)] for bits in range(2**n)]
    expected = sum(p ** sum(o) * (1 - p) ** (n - sum(o)) * pass_at_k(n, sum(o), k) for o in outcomes)
    assert expected == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_out_of_range(n, c, k):
    with pytest.raises(SettingError, match="pass@"):
        pass_at_k(n, c, k)
