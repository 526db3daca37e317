"""Keys and residuals are read where the value is put."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.values.search import find_values
from tests.fixtures.alphaedit import QUICK, REQUESTS, Bench


@pytest.mark.parametrize("fact_token", ["subject_first", "last"])
def test_keys_and_residuals_are_read_where_the_value_is(llama_bench: Bench, fact_token: Any) -> None:
    other = copy.deepcopy(llama_bench.model)
    settings = replace(QUICK, layers=(1,), values=replace(QUICK.values, fact_token=fact_token))
    subject = llama_bench.editor(settings)
    report = subject.edit(REQUESTS, answers=False)
    given = llama_bench.tokenizer, REQUESTS
    contexts = subject.state.contexts
    keys = request_keys(llama_bench.model, *given, [1], contexts, fact_token=fact_token)[1]
    assert torch.allclose(subject.state.prior_keys(1, 64), keys, atol=1e-6)
    wanted = find_values(other, *given, 1, contexts, settings.values).vectors
    left = wanted - request_outputs(llama_bench.model, *given, 1, fact_token=fact_token)
    assert [request.residual for request in report.requests] == pytest.approx(left.norm(dim=0).tolist(), rel=1e-4)
