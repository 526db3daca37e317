"""What changed, request by request; and only where the same was asked."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.evaluation import ReportError, compare
from tests.support.taught import REQUESTS, run


def test_changes_are_paired_by_request(taught_llama, tiny_llama, tiny_tokenizer):
    before = run(tiny_llama, tiny_tokenizer, label="before")
    after = run(taught_llama, tiny_tokenizer, label="after")
    changes = compare(before, after)
    for name, change in changes.items():
        pairs = [(b, a) for b, a in zip(before.values(name), after.values(name), strict=True) if b is not None]
        assert change.difference.mean == pytest.approx(sum(a - b for b, a in pairs) / len(pairs))
    assert all(change.difference == (0, 0, 0, change.before.n) for change in compare(after, after).values())


def test_evaluations_of_other_prompts_or_settings_are_refused(taught_llama, tiny_tokenizer):
    one = run(taught_llama, tiny_tokenizer, max_new_tokens=8)
    with pytest.raises(ReportError, match="different prompts"):
        compare(one, run(taught_llama, tiny_tokenizer, REQUESTS[:2], max_new_tokens=8))
    with pytest.raises(ReportError, match="asked differently"):
        compare(one, run(taught_llama, tiny_tokenizer, max_new_tokens=9))
