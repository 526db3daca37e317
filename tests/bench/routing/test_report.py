"""The tables of several adapters add up."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.bench.routing.report import RoutingReport
from corsa_plugins.errors import SettingError
from corsa_plugins.model.borrowing import active_adapter
from tests.support.routing import CAPITALS, PEOPLE, Fixed, run


def test_the_report_adds_up(adapters, tiny_tokenizer):
    choose = lambda question: int(question.startswith("W") or "Spain" in question)  # noqa: E731
    routed, true = run(adapters, tiny_tokenizer, Fixed(choose)), run(adapters, tiny_tokenizer)
    with active_adapter(adapters, "people"):
        single = evaluate(adapters, tiny_tokenizer, [*CAPITALS, *PEOPLE], max_new_tokens=4, progress=False)
    report = RoutingReport(["capitals", "people"], [2, 1], routed, true.evaluation, single)
    assert (report.chance, report.largest) == (1 / 2, 2 / 3)
    assert report.confusion() == [[2, 2], [1, 1]]
    assert sum(map(sum, report.confusion())) == 6
    parts = [report.part(place) for place in (0, 1)]
    for at, one in enumerate(report.evaluations):
        assert parts[0][at].records + parts[1][at].records == one.records
        for name in report.metrics:
            mine = [part[at].summary()[name] for part in parts if name in part[at].summary()]
            assert sum(i.mean * i.n for i in mine) / sum(i.n for i in mine) == pytest.approx(one.summary()[name].mean)
    data = report.as_dict()
    assert json.loads(json.dumps(data)) == data
    for metric in data["metrics"].values():
        assert metric["lost_by_routing"]["mean"] == pytest.approx(metric["routed"]["mean"] - metric["true"]["mean"])
    assert report.table().row_count == 2 + len(report.metrics)
    assert report.parts_table().row_count == 2
    with pytest.raises(SettingError, match="evaluate the requests of all parts"):
        RoutingReport(["capitals", "people"], [2, 2], routed, true.evaluation)
