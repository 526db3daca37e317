"""A report says why an edit failed, what the search added, and what stays protected."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit import EditReport, LayerReport, SearchSettings
from tests.fixtures.alphaedit import TestbedBench

REACH = "try more value steps, a larger clamp or other layers"

LAYER = LayerReport(
    layer=3, width=1024, null_space=717, added=17, ridge=0.5, objective=(9.0, 8.0), prior_weight=None,
    smoothing_step=None, validation_scores=(), graded=17.0, protected=(0.991, 0.982),
)  # fmt: skip


def test_a_verdict_says_why_an_edit_failed(testbed_bench: TestbedBench, caplog: pytest.LogCaptureFixture) -> None:
    requests = testbed_bench.requests[:3]
    short = replace(testbed_bench.settings.values, steps=2)
    hopeless = testbed_bench.editor(values=short)
    assert all(r.verdict.startswith("out of reach") for r in hopeless.edit(requests).requests)
    assert f"0 of 3 requests edited: the batch did nothing that was asked for; most often: {REACH}" in caplog.text
    hopeless.revert_all()
    caplog.clear()
    held_back = testbed_bench.editor(ridge=1e6, search=None, smoothing=None).edit(requests)
    reached = [r for r in held_back.requests if r.value_probability >= 0.5]
    assert reached
    assert all(r.verdict.startswith("not taken: 100 % of its residual remains") for r in reached)
    cause = "its key lies in the space to preserve"
    assert sum(f"; {cause} (" in request.verdict for request in held_back.requests) >= 2
    assert held_back.effect == f"0 of 3 requests edited: the batch did nothing that was asked for; most often: {cause}"
    assert held_back.effect in caplog.text
    some = replace(held_back, requests=(replace(held_back.requests[0], edited=True), *held_back.requests[1:]))
    assert some.effect == "1 of 3 requests edited"
    known = replace(held_back, requests=tuple(replace(r, edited=True, known_before=True) for r in held_back.requests))
    assert known.effect == "3 of 3 requests edited: the model knew all of them already"


def test_a_layer_says_what_was_added_and_what_stays_protected() -> None:
    assert str(LAYER) == "layer 3: added 17 of 307, protected share 0.99 -> 0.98"
    graded = replace(LAYER, added=307, graded=21.04)
    assert str(graded) == "layer 3: added 307 of 307 by degrees, as much as 21.0 in full, protected share 0.99 -> 0.98"
    assert str(replace(LAYER, protected=None)) == "layer 3: added 17 of 307"
    assert str(graded) in str(EditReport("monday", (), (graded,)))
    assert LAYER.unprotected is None
    assert graded.unprotected is None  # all of them, but none in full


@pytest.mark.parametrize(
    ("changes", "cause", "cure"),
    [
        (
            {"protected": (0.9, 0.4)},
            "17 of 307 .* 40 % of .* where it was 90 %",
            "leave search.threshold out",
        ),
        ({"added": 307, "graded": 307.0, "protected": (0.9, 0.0)}, "307 of 307", "give search a limit"),
        ({"added": 307, "graded": 9.0, "protected": (0.6, 0.4)}, "307 of 307", "a larger weight"),
        ({"protected": (0.35, 0.34)}, "the null space itself holds 65 %", "give null_space a smaller value"),
    ],
)
def test_little_protection_is_told_with_its_cure(changes: dict[str, Any], cause: str, cure: str) -> None:
    message = replace(LAYER, **changes).unprotected
    assert message is not None
    assert re.match(f"layer 3: .*{cause}", message)
    assert cure in message


def test_reports_with_and_without_shares_are_read_back() -> None:
    report = EditReport("monday", (), (LAYER,))
    assert EditReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    old = report.as_dict()
    for name in ("graded", "protected"):
        del old["layers"][0][name]
    assert EditReport.from_dict(old).layers == (replace(LAYER, graded=None, protected=None),)


def test_an_edit_reports_the_share_that_stays_protected(
    testbed_bench: TestbedBench, caplog: pytest.LogCaptureFixture
) -> None:
    values = replace(testbed_bench.settings.values, steps=2)
    for search in (None, SearchSettings(), SearchSettings(rule="price", weight=0.5), SearchSettings(0.0)):
        caplog.clear()
        subject = testbed_bench.editor(values=values, search=search, smoothing=None)
        (layer,) = subject.edit(testbed_bench.requests[:3], answers=False).layers
        s, n = testbed_bench.statistics.eigenvalues(0).double(), layer.null_space
        f = torch.ones(n + layer.added, dtype=torch.float64)
        if search is not None and search.decides == "graded":
            assert layer.added == layer.width - n
            f[n:] = s[n - 1] / (s[n - 1] + search.weight * s[n:])
        total = float(s.sum())
        assert layer.protected is not None
        assert layer.protected == pytest.approx((float(s[n:].sum()) / total, 1 - float(f @ s[: len(f)]) / total))
        assert layer.graded == pytest.approx(float(f[n:].sum()))
        gone = layer.protected[1] < 0.5
        assert gone == (search == SearchSettings(0.0))
        assert any("stays protected" in record.message for record in caplog.records) == gone
        subject.revert_all()
