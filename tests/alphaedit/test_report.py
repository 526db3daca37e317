"""A verdict says why an edit failed."""

from __future__ import annotations

from dataclasses import replace

from tests.fixtures.alphaedit import TestbedBench


def test_a_verdict_says_why_an_edit_failed(testbed_bench: TestbedBench) -> None:
    requests = testbed_bench.requests[:3]
    short = replace(testbed_bench.settings.values, steps=2)
    hopeless = testbed_bench.editor(values=short)
    assert all(r.verdict.startswith("out of reach") for r in hopeless.edit(requests).requests)
    hopeless.revert_all()
    held_back = testbed_bench.editor(ridge=1e6, search=None, smoothing=None).edit(requests)
    reached = [r for r in held_back.requests if r.value_probability >= 0.5]
    assert reached
    assert all(r.verdict.startswith("not taken: 100 % of its residual remains") for r in reached)
