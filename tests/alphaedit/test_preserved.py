"""Preserved keys of which only AlphaEdit's projector is left, and those of another width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from corsa_plugins.alphaedit import AlphaEditor, NullSpace, NullSpaceRule, SearchSettings
from corsa_plugins.errors import SettingError
from tests.fixtures.alphaedit import QUICK, REQUESTS, SETTINGS, Bench


class Projected:
    """The preserved keys where only AlphaEdit's projector of them is left."""

    def __init__(self, bench: Bench) -> None:
        spaces = {layer: bench.statistics.null_space(layer, SETTINGS.null_space) for layer in (0, 1)}
        kept = {layer: space.combine(torch.eye(space.n_null, dtype=torch.float64)) for layer, space in spaces.items()}
        self.spaces = {layer: NullSpace.from_projector(U @ U.T) for layer, U in kept.items()}

    def check(self, model: Any, architecture: Any = None) -> None:
        assert model is not None

    def null_space(self, layer: int, rule: NullSpaceRule) -> NullSpace:
        return self.spaces[layer]

    def sample(self, layer: int) -> Tensor | None:
        return None


def test_a_projector_has_no_order_to_search_in(llama_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    other = llama_bench.copy()
    settings = replace(QUICK, search=SearchSettings(threshold=0))
    assert all(layer.added for layer in other.editor(settings).edit(REQUESTS, answers=False).layers)
    other = llama_bench.copy()
    without = other.editor(replace(settings, search=None))
    without.edit(REQUESTS, answers=False)
    subject = AlphaEditor(llama_bench.model, llama_bench.tokenizer, Projected(llama_bench), settings)
    report = subject.edit(REQUESTS, answers=False)
    assert [layer.added for layer in report.layers] == [0, 0]
    assert all(request.preserved_conflict is None for request in report.requests)
    assert sum("given as a projector" in record.message for record in caplog.records) == 2
    ours, theirs = llama_bench.weights(), other.weights()
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5) for name in ours)


def test_statistics_of_other_widths_are_refused(llama_bench: Bench) -> None:
    statistics = Projected(llama_bench)
    statistics.spaces = {layer: NullSpace.from_projector(torch.eye(4)) for layer in (0, 1)}
    subject = AlphaEditor(llama_bench.model, llama_bench.tokenizer, statistics, QUICK)
    with pytest.raises(SettingError, match="layer 0: the statistics are 4 wide, and the keys 64"):
        subject.edit(REQUESTS, answers=False)
