"""Foresight: the figures of a case worked out by hand, its table and its drawing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corsa_plugins.alphaedit.diagnosis import Conflicts, Diagnosis, LayerConflicts, layer_conflicts
from corsa_plugins.alphaedit.solver.columns import ColumnsError
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.errors import SettingError
from tests.fixtures.alphaedit import REQUESTS, SETTINGS, Bench

# The preserved keys vary along the last axis only: the first three span the null space.
SPACE = NullSpace.from_moment(torch.diag(torch.tensor([1e-4, 2e-4, 3e-4, 1.0])), NullSpaceRule("threshold", 0.01))
KEYS = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
SAMPLE = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-5.0, 1.0]])
HALF = 0.5**0.5


def _hand(prior: Tensor | None = None, sample: Tensor | None = SAMPLE) -> LayerConflicts:
    prior = torch.tensor([[-2.0], [0.0], [0.0], [0.0]]) if prior is None else prior
    names = tuple(f"earlier {i}" for i in range(prior.shape[1]))
    return layer_conflicts(4, KEYS, SPACE, sample, prior, names)


def test_a_layer_by_hand() -> None:
    found = _hand()
    assert found.preserved is not None
    assert found.preserved.tolist() == pytest.approx([0, HALF, 0.8])  # the larger of 0.8 and 4 / 5 / sqrt(2)
    assert found.subspace.tolist() == pytest.approx([0, 0, 0.8])
    assert found.prior.tolist() == [pytest.approx([one]) for one in (1, 0, 0.6)]
    expected = [[0, 0, 0.6], [0, 0, 0], [0.6, 0, 0]]
    assert found.batch.tolist() == [pytest.approx(row) for row in expected]


def test_the_figures_of_a_request_are_the_highest_over_the_layers() -> None:
    second = replace(
        _hand(torch.zeros(4, 0), None),
        layer=7,
        batch=torch.tensor([[0.0, 0.9, 0.0], [0.9, 0.0, 0.1], [0.0, 0.1, 0.0]]),
        subspace=torch.tensor([0.3, 0.0, 0.1]),
    )
    conflicts = Conflicts(("a", "b", "c"), (_hand(), second))
    one = conflicts.of(0)
    assert (one.batch_conflict, one.batch_conflict_with) == (pytest.approx(0.9), "b")
    assert (one.prior_conflict, one.prior_conflict_with) == (pytest.approx(1), "earlier 0")
    assert one.subspace_conflict == pytest.approx(0.3)
    assert one.preserved_conflict == pytest.approx(0)
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


def _cells(diagnosis: Diagnosis) -> list[list[str]]:
    table: Any = diagnosis.table()
    return [[cell.plain for cell in row] for row in zip(*(column._cells for column in table.columns), strict=True)]


def test_rows_are_plain_and_the_table_starts_with_the_worst() -> None:
    diagnosis = Diagnosis(Conflicts(("[a]", "b", "c"), (_hand(),)), (0.25, 0.5, 0.75), (1.5, 20.0, 3.0))
    rows = json.loads(json.dumps(diagnosis.rows(), allow_nan=False))
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["value_probability"] for row in rows] == [0.25, 0.5, 0.75]
    assert [row["inconsistency"] for row in rows] == [1.5, 20.0, 3.0]
    assert rows[2]["subspace_conflict"] == pytest.approx(0.8)
    cells = _cells(diagnosis)
    assert [row[0] for row in cells] == ["[a]", "c", "b"]  # conflicts of 1, 0.8 and 0
    assert cells[1][1:] == ["0.80", "0.80", "0.60", "earlier 0", "0.60", "[a]", "0.75", "3"]
    assert len(_cells(replace(diagnosis, reach=None, inconsistency=None))[0]) == 7
    assert "value_probability" not in Diagnosis(diagnosis.conflicts).rows()[0]


@pytest.mark.parametrize(
    ("name", "start"), [("f.png", b"\x89PNG"), ("f.svg", b"<?xml"), ("f.PDF", b"%PDF"), ("f", b"\x89PNG")]
)
def test_the_figure_is_drawn(tmp_path: Path, name: str, start: bytes) -> None:
    # Layers that know different earlier edits, one of them both.
    both = _hand(torch.eye(4)[:, :2])
    other = replace(_hand(torch.eye(4)[:, :1]), prior_names=("earlier 1",))
    none = _hand(torch.zeros(4, 0))
    path = Diagnosis(Conflicts(("a", "b", "c"), (both, other, none))).figure(tmp_path / "new" / name)
    assert path == tmp_path / "new" / name
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_earlier_edits_are_matched_by_name_over_the_layers() -> None:
    both = _hand(torch.eye(4)[:, :2])
    other = replace(_hand(torch.eye(4)[:, :1]), prior_names=("earlier 1",))
    found = Diagnosis(Conflicts(("a", "b", "c"), (other, both)))._prior()
    assert found.tolist() == [pytest.approx(row) for row in ([1, 1], [1, 0], [0.6, 0.6])]


def test_a_figure_that_cannot_be_drawn_leaves_nothing(tmp_path: Path) -> None:
    diagnosis = Diagnosis(Conflicts(("a", "b", "c"), (_hand(),)))
    with pytest.raises(SettingError, match=r"f\.jsonl: figures are PNG, SVG or PDF"):
        diagnosis.figure(tmp_path / "f.jsonl")
    assert not list(tmp_path.iterdir())


def test_layers_with_different_earlier_edits(llama_bench: Bench, tmp_path: Path) -> None:
    quick = replace(SETTINGS, values=replace(SETTINGS.values, steps=2), n_contexts=0)
    editor = llama_bench.editor(replace(quick, layers=(0,)))
    editor.edit(REQUESTS[:1], answers=False)
    editor.settings = quick
    editor.edit(REQUESTS[1:2], answers=False)
    diagnosis = editor.diagnose([REQUESTS[0], REQUESTS[2]])
    first = diagnosis.rows()[0]
    assert first["prior_conflict_with"] == REQUESTS[0].name()
    assert first["prior_conflict"] == pytest.approx(1, abs=1e-3)
    assert diagnosis.figure(tmp_path / "f.png").exists()
