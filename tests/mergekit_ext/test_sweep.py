"""A sweep in memory gives what mergekit's merge on disk gives, and its best recipe is one that mergekit carries out."""

from __future__ import annotations

import copy

import pytest
import torch

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.bench.merge_sweep import SweepGrid, changed_tensors, merged_into, sweep
from corsa_plugins.merging.recipe import delta_recipe
from tests.support.merges import REQUESTS, UNTOUCHED


@pytest.mark.parametrize(("per_row", "prune_vectors"), [(False, True), (True, False)])
def test_every_point_is_the_evaluation_of_the_merge_on_disk(
    taught_llama, tiny_tokenizer, shaken, workshop, per_row, prune_vectors
):
    how = {"per_row": per_row, "prune_vectors": prune_vectors}
    points = sweep(
        taught_llama, shaken, tiny_tokenizer, REQUESTS, UNTOUCHED, grid=SweepGrid((0.5, 1), (0.2,), **how),
        results=workshop.folder / "sweep.jsonl", progress=False,
    )  # fmt: skip
    assert [(p.weight, p.density) for p in points] == [(0, 0), (0.5, 0.2), (1, 0.2), (1, 1)]
    base, new = workshop.save("base", taught_llama), workshop.save("edited", shaken)
    for point in points[1:]:
        merged = workshop.merge(**delta_recipe(base, new, point.weight, point.density, **how))
        model = copy.deepcopy(taught_llama)
        model.load_state_dict(merged)
        changed = changed_tensors(taught_llama, shaken)
        with merged_into(shaken, changed, point.weight, point.density, **how):
            for name, tensor in model.state_dict().items():
                assert torch.equal(shaken.state_dict()[name], tensor), name
        result = evaluate(model, tiny_tokenizer, REQUESTS, untouched=UNTOUCHED, progress=False)
        assert point.metrics == {name: result.summary()[name].mean for name in point.metrics}
        assert point.right == tuple(map(bool, result.values("untouched")))
