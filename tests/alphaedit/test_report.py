"""A verdict says why an edit failed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fixtures.alphaedit import TestbedBench

REACH = "try more value steps, a larger clamp or other layers"


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
