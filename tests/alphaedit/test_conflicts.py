"""Conflicts of requests: the figures of a case worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from corsa_plugins.alphaedit.conflicts import Conflicts, layer_conflicts
from corsa_plugins.alphaedit.diagnosis import Diagnosis
from corsa_plugins.alphaedit.solver.columns import ColumnsError
from tests.support.conflicts import HALF, KEYS, SPACE, by_hand


def test_a_layer_byby_hand() -> None:
    layer = by_hand()
    assert layer.preserved is not None
    assert layer.preserved.tolist() == pytest.approx([0, HALF, 0.8])  # the larger of 0.8 and 4 / 5 / sqrt(2)
    assert layer.subspace.tolist() == pytest.approx([0, 0, 0.8])
    assert layer.prior.tolist() == [pytest.approx([cosine]) for cosine in (1, 0, 0.6)]
    expected = [[0, 0, 0.6], [0, 0, 0], [0.6, 0, 0]]
    assert layer.batch.tolist() == [pytest.approx(row) for row in expected]


def test_the_figures_of_a_request_are_the_highest_over_the_layers() -> None:
    second = replace(
        by_hand(torch.zeros(4, 0), None),
        layer=7,
        batch=torch.tensor([[0.0, 0.9, 0.0], [0.9, 0.0, 0.1], [0.0, 0.1, 0.0]]),
        subspace=torch.tensor([0.3, 0.0, 0.1]),
    )
    conflicts = Conflicts(("a", "b", "c"), (by_hand(), second))
    first = conflicts.of(0)
    assert (first.batch_conflict, first.batch_conflict_with) == (pytest.approx(0.9), "b")
    assert (first.prior_conflict, first.prior_conflict_with) == (pytest.approx(1), "earlier 0")
    assert first.subspace_conflict == pytest.approx(0.3)
    assert first.preserved_conflict == pytest.approx(0)
    assert (conflicts.of(2).batch_conflict, conflicts.of(2).batch_conflict_with) == (pytest.approx(0.6), "a")
    means = conflicts.means()
    assert means == {
        "preserved_conflict": pytest.approx((0 + HALF + 0.8) / 3),
        "subspace_conflict": pytest.approx((0.3 + 0 + 0.8) / 3),
        "prior_conflict": pytest.approx((1 + 0 + 0.6) / 3),
        "batch_conflict": pytest.approx((0.9 + 0.9 + 0.6) / 3),
    }


def test_nothing_to_conflict_with() -> None:
    alone = layer_conflicts(0, KEYS[:, :1], SPACE, None, torch.zeros(4, 0), ())
    conflicts = Conflicts(("a",), (alone,))
    means = {"preserved_conflict": None, "subspace_conflict": 0.0, "prior_conflict": None, "batch_conflict": None}
    assert conflicts.means() == means
    assert str(Diagnosis(conflicts)) == "mean conflicts of 1 requests: subspace 0.00"
    assert [column._cells for column in Diagnosis(conflicts).table().columns][3][0].plain == "-"
    with pytest.raises(ColumnsError, match="column 1"):
        layer_conflicts(0, KEYS.clone().index_fill_(1, torch.tensor([1]), float("nan")), SPACE, None, KEYS, "abc")
