"""What a dense editor would assume of routed experts is what the benchmark gives it."""

from __future__ import annotations

from dataclasses import fields

import torch

from benchmarks.experts import Assuming, OneExpert, Ungated
from corsa_plugins.model.architecture import RoutedExperts, find_architecture
from tests.model.test_routed import called, routed
from tests.support.mixtures import COUNT


def test_keys_are_those_that_are_assumed() -> None:
    model, edited = routed("qwen3_moe", norm_topk_prob=False)
    args, _ = called(model, edited.module)
    parts = find_architecture(model)
    given = {field.name: getattr(parts, field.name) for field in fields(parts)}
    weighted = edited.keys(args, {}).dense().unflatten(1, (COUNT, -1))
    _, index, weights = args
    gates = torch.zeros(len(index), COUNT, dtype=weights.dtype).scatter(1, index, weights)[..., None]
    found = {}
    for kind in (RoutedExperts, Ungated, OneExpert):
        assumed = Assuming(**given, kind=kind).edited(1)
        assert type(assumed) is kind
        found[kind] = assumed.keys(args, {}).dense().unflatten(1, (COUNT, -1))  # type: ignore[attr-defined]
    torch.testing.assert_close(found[RoutedExperts], weighted)
    torch.testing.assert_close(found[Ungated] * gates, weighted)
    largest = gates == gates.amax(1, keepdim=True)
    torch.testing.assert_close(found[OneExpert], torch.where(largest, found[Ungated], 0.0))
