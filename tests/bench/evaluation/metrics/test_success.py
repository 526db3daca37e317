"""The stricter kind of success."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.evaluation import exact_match_tokens


@pytest.mark.parametrize(
    ("predicted", "target", "matches"),
    [
        ([5, 6], [5, 6], True),
        ([5, 6, 9], [5, 6], True),
        ([5, 7], [5, 6], False),
        ([5], [5, 6], False),
        ([], [5], False),
    ],
)
def test_exact_match_needs_every_token_of_the_target(predicted, target, matches):
    assert exact_match_tokens(predicted, target) is matches


def test_an_empty_target_matches_nothing_it_is_an_error():
    with pytest.raises(ValueError, match="no tokens"):
        exact_match_tokens([1], [])
