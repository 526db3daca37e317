"""Foresight: its rows, its table and its drawing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit.conflicts import Conflicts
from corsa_plugins.alphaedit.diagnosis import Diagnosis
from corsa_plugins.errors import SettingError
from tests.fixtures.alphaedit import REQUESTS, SETTINGS, Bench
from tests.support.conflicts import by_hand


def _cells(diagnosis: Diagnosis) -> list[list[str]]:
    table: Any = diagnosis.table()
    return [[cell.plain for cell in row] for row in zip(*(column._cells for column in table.columns), strict=True)]


def test_rows_are_plain_and_the_table_starts_with_the_worst() -> None:
    diagnosis = Diagnosis(Conflicts(("[a]", "b", "c"), (by_hand(),)), (0.25, 0.5, 0.75), (1.5, 20.0, 3.0))
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
    both = by_hand(torch.eye(4)[:, :2])
    other = replace(by_hand(torch.eye(4)[:, :1]), prior_names=("earlier 1",))
    none = by_hand(torch.zeros(4, 0))
    path = Diagnosis(Conflicts(("a", "b", "c"), (both, other, none))).figure(tmp_path / "new" / name)
    assert path == tmp_path / "new" / name
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_earlier_edits_are_matched_by_name_over_the_layers() -> None:
    both = by_hand(torch.eye(4)[:, :2])
    other = replace(by_hand(torch.eye(4)[:, :1]), prior_names=("earlier 1",))
    found = Diagnosis(Conflicts(("a", "b", "c"), (other, both)))._prior()
    assert found.tolist() == [pytest.approx(row) for row in ([1, 1], [1, 0], [0.6, 0.6])]


def test_a_figure_that_cannot_be_drawn_leaves_nothing(tmp_path: Path) -> None:
    diagnosis = Diagnosis(Conflicts(("a", "b", "c"), (by_hand(),)))
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
