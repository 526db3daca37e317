"""What ``corsa evaluate-code`` found, on the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from corsa_plugins.bench.code.results import CODE as FILE
from corsa_plugins.bench.code.results import CodeFigures, CodeResult, Judged
from corsa_plugins.bench.code.running import Verdict
from corsa_plugins.bench.code.tasks import SPECIFICITY, UPDATE
from corsa_plugins.report.page import Report, page
from corsa_plugins.report.sections import CODE
from corsa_plugins.report.sources import SourceError, read_sources
from tests.support.html import ATTACK


def judged(kind: str, name: str, *came_to: str) -> Judged:
    verdicts = tuple(Verdict(what == "passed", what) for what in came_to)
    return Judged(kind, name, False, tuple("x" for _ in came_to), verdicts)


def save(folder: Path, label: str, *problems: Judged, ks: tuple[int, ...] = (1, 2), **more: object) -> CodeResult:
    result = CodeResult(label, problems, {"samples": 2, "temperature": 0.8}, **more)  # type: ignore[arg-type]
    folder.mkdir()
    result.save(folder, ks, {"model": label})
    return result


@pytest.fixture
def two(tmp_path: Path) -> tuple[CodeResult, CodeResult]:
    first = save(
        tmp_path / "first", "base", judged(UPDATE, "a", "failed", "not needed"),
        judged(UPDATE, "b", "failed", "failed"),
        judged(SPECIFICITY, "c", "passed", "passed"),
    )  # fmt: skip
    second = save(
        tmp_path / "second", ATTACK, judged(UPDATE, "a", "passed", "time"), judged(UPDATE, "b", "failed", "failed"),
        ks=(1,), unenforced=("network", "files"),
    )  # fmt: skip
    return first, second


def test_the_figures_come_back(two: tuple[CodeResult, CodeResult], tmp_path: Path) -> None:
    for result, name in zip(two, ("first", "second"), strict=True):
        figures = CodeFigures.from_dict(json.loads((tmp_path / name / FILE).read_text()))
        assert figures.label == result.label
        assert {name: of.passes[1] for name, of in figures.measures.items()} == result.passes(1)
        assert {name: of.answers for name, of in figures.measures.items()} == result.outcomes()
        assert figures.unenforced == result.unenforced


def test_passes_of_models_side_by_side_and_what_became_of_their_answers(
    two: tuple[CodeResult, CodeResult], tmp_path: Path
) -> None:
    sources = read_sources([str(tmp_path / "first"), str(tmp_path / "second")])
    html = page(Report("t", parts=sources.parts))
    assert ATTACK not in html
    table = str(CODE.render(sources.parts["code"]))
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>(.*?)</tr>', table, re.DOTALL)
    cells = [(name, re.findall(r"<td>([^<]*)", row)) for name, row in rows]
    assert cells[:4] == [
        ("UPass", ["pass@1", "0.0", "25.0"]),
        ("UPass", ["pass@2", "0.0", ""]),
        ("SPass", ["pass@1", "100.0", ""]),
        ("SPass", ["pass@2", "100.0", ""]),
    ]
    kinds = re.findall(r'<th scope="col">([^<]*)</th>', table)[-5:]
    assert kinds == ["problems", "failed", "not needed", "passed", "time"]
    assert [row[1] for row in cells[4:]] == [
        ["UPass", "2", "3", "1", "0", "0"], ["SPass", "1", "0", "0", "2", "0"], ["UPass", "2", "2", "0", "1", "1"],
    ]  # fmt: skip
    assert "without these promises of the sandbox: network, files" in table


def test_a_damaged_file_is_named(two: tuple[CodeResult, CodeResult], tmp_path: Path) -> None:
    path = tmp_path / "first" / FILE
    data = json.loads(path.read_text())
    data["figures"]["UPass"]["pass@k"]["1"] = 0.5
    path.write_text(json.dumps(data))
    with pytest.raises(SourceError, match="is not what was written"):
        read_sources([str(tmp_path / "first")])
    del data["checksum"]  # as of a file from before there were any
    path.write_text(json.dumps(data))
    with pytest.raises(SourceError, match="looks like passes of programs, and is damaged"):
        read_sources([str(tmp_path / "first")])
