"""What several adapters answered: its files and its page have the report's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.bench.routing.several import AdapterPart, measure_adapters
from corsa_plugins.report.adapters_page import UNFINISHED, save_adapters
from tests.support.routing import PARTS, Fixed


@pytest.mark.parametrize("single", [None, "people"])
def test_files_and_page_say_what_the_report_says(adapters, tiny_tokenizer, tmp_path: Path, single: str | None) -> None:
    names = ("capitals", "people")
    parts = [AdapterPart(name.title(), name, part) for name, part in zip(names, PARTS, strict=True)]
    router = Fixed(lambda question: int(question.startswith("W")))
    (tmp_path / UNFINISHED).mkdir()
    report = measure_adapters(adapters, tiny_tokenizer, parts, router, single=single, progress=False, max_new_tokens=4)
    page = save_adapters(
        report, tmp_path, asked={"command": "by a test", "nothing": None}, descriptions={"People": "who <they> are"}
    )
    choices = ["single", "true", "routed"] if single else ["true", "routed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*choices, "report.html", "routes.jsonl", "routing.json"]
    )
    assert [load_evaluation(tmp_path / choice) for choice in choices] == report.evaluations
    told = json.loads((tmp_path / "routing.json").read_text(encoding="utf-8"))
    assert told == {"asked": {"command": "by a test"}, **json.loads(json.dumps(report.as_dict()))}
    rows = [json.loads(line) for line in (tmp_path / "routes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == [route.prompt for route in report.routed.routes]
    assert {row["chosen"] for row in rows} == {"Capitals", "People"}

    source = page.read_text(encoding="utf-8")
    assert f"{100 * report.routed.accuracy.mean:.1f}" in source
    assert "People: who &lt;they&gt; are" in source
    for part in PARTS:
        assert all(request.prompt in source for request in part)
