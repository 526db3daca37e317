"""Metrics of two moments, on records written by hand."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.evaluation import ReportError, pair_metrics, update_sequence
from tests.support.verdicts import BOTH, NEITHER, NEW, OLD, evaluation


def test_locality_is_the_share_of_answers_that_stayed_right_or_wrong():
    before = evaluation([[OLD]], [" Rome. She is", "Paris", "Oslo"], untouched=["Rome", "Bern"])
    after = evaluation([[NEW]], ["rome. He was", "Oslo", "Oslo"], untouched=["Rome", "Rome"])
    found = pair_metrics(before, after)
    assert {name: interval.mean for name, interval in found.items()} == {
        "locality": pytest.approx(2 / 3),
        "untouched_locality": 0.5,
    }


def test_with_a_chat_template_the_whole_output_counts_for_locality():
    settings = {"chat_template": True}
    before = evaluation([[OLD]], ["Rome. She is", "Rome"], settings=settings)
    after = evaluation([[NEW]], ["Rome. He was", " rome "], settings=settings)
    assert pair_metrics(before, after)["locality"].mean == 0.5


def test_forgetting_and_activation_by_hand():
    first = evaluation([[NEW, NEW, OLD, NEITHER], [NEW, BOTH]])
    later = evaluation([[NEW, OLD, OLD, OLD], [NEITHER, BOTH]])
    found = pair_metrics(first, later, later=True)
    # generality 2/4 and 2/2 right after; 1/4 and 1/2 later
    assert found["forgetting"].mean == pytest.approx(((2 / 4 - 1 / 4) + (2 / 2 - 1 / 2)) / 2)
    assert found["forgetting_edit_prompt"].mean == 0.5
    # of four, the second and the fourth came back; "both" was there before
    assert found["old_activation"].mean == pytest.approx((2 / 4 + 0) / 2)
    assert "locality" not in found


def test_old_answers_later_are_those_that_stayed_and_those_that_came_back():
    first = evaluation([[OLD, NEW], [NEW, NEW]])
    later = evaluation([[OLD, OLD], [NEW, OLD]])
    retained = later.summary()["old_retention"].mean
    assert (
        retained
        == first.summary()["old_retention"].mean + pair_metrics(first, later, later=True)["old_activation"].mean
    )


def test_a_sequence_of_updates():
    one, two, three = evaluation([[NEW, NEW]]), evaluation([[NEW, OLD]]), evaluation([[NEW, NEW]])
    one_later, two_later = evaluation([[NEW, OLD]]), evaluation([[NEW, OLD]])
    for ends in ([one_later, two_later], [one_later, two_later, three]):
        found = update_sequence([one, two, three], ends)
        assert [interval.mean for interval in found.update_efficacy] == [1, 0.5, 1]
        assert [interval and interval.mean for interval in found.forgetting] == [0.5, 0, None]
        assert [interval and interval.mean for interval in found.old_activation] == [0.5, 0, None]
    with pytest.raises(ReportError, match="3 evaluations right after an update and 1 at the end"):
        update_sequence([one, two, three], [one_later])
