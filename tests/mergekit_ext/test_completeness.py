"""A merged model has every tensor of its base, in its shape and in the precision asked for, or is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

from mergekit_ext.completeness import missing_from
from mergekit_ext.stored_models import read_stored_model
from tests.support.edited import stored

LAYER = "model.layers.1.mlp.up_proj.weight"


def add_everywhere(workshop, name, tensor):
    for model in ("base", "edited"):
        tensors = {**stored(workshop.folder / model), name: tensor}
        save_file(tensors, workshop.folder / model / "model.safetensors", metadata={"format": "pt"})


def test_a_tensor_that_mergekit_does_not_know_is_not_left_out_in_silence(workshop, refuse, two):
    add_everywhere(workshop, "model.layers.0.gate_of_mine.weight", torch.ones(4))
    refuse(r"model\.layers\.0\.gate_of_mine\.weight of the base .* would be missing", **two)


def pickle_weights(folder, **archive):
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin", **archive)
    file.unlink()


@pytest.mark.parametrize("archive", [{}, {"_use_new_zipfile_serialization": False}], ids=["archive", "older"])
def test_what_is_pickled_is_compared_too(workshop, refuse, two, archive):
    add_everywhere(workshop, "model.layers.0.gate_of_mine.weight", torch.ones(4))
    for model in ("base", "edited"):
        pickle_weights(workshop.folder / model, **archive)
    refuse(r"model\.layers\.0\.gate_of_mine\.weight of the base .* would be missing", **two)


def test_pickled_weights_say_what_they_are_as_others_do(workshop, two):
    before = read_stored_model(workshop.folder / "base", "base")
    merged = workshop.merge(**two)
    for model in ("base", "edited"):
        pickle_weights(workshop.folder / model)
    after = read_stored_model(workshop.folder / "base", "base")
    assert (after.shapes, after.dtypes, after.size) == (before.shapes, before.dtypes, before.size)
    again = workshop.merge(**two)
    assert again.keys() == merged.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in merged.items())


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_what_a_pickle_would_run_is_not_run(workshop, refuse, two, capsys):
    folder = workshop.folder / "edited"
    torch.save({**load_file(folder / "model.safetensors"), "x": Harmful()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refuse(r"edited/pytorch_model\.bin holds more than tensors \(.*\), which could run, and is not read", **two)
    assert "run" not in capsys.readouterr().out.split()


def test_a_buffer_that_models_compute_is_no_loss(workshop, two):
    add_everywhere(workshop, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
    assert LAYER in workshop.merge(**two)


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_a_merge_is_whole_in_the_precision_asked_for(workshop, two, dtype):
    merged = workshop.merge(**two, **({"out_dtype": dtype} if dtype else {}))
    assert merged.keys() >= stored(workshop.folder / "base").keys()
    assert {tensor.dtype for tensor in merged.values()} == {getattr(torch, dtype or "float32")}


def test_of_slices_every_block_is_whole(workshop, two):
    base, edited = two["base_model"], two["models"][0]["model"]

    def piece(first, last):
        sources = [{"model": model, "layer_range": [first, last]} for model in (base, edited)]
        return {"sources": sources}

    merged = workshop.merge(base_model=base, slices=[piece(0, 2), piece(1, 2)])
    assert "model.layers.2.mlp.up_proj.weight" in merged


def test_what_is_not_as_it_should_be_is_named(workshop, two):
    workshop.merge(**two)
    base, merged = (read_stored_model(workshop.folder / name, name) for name in ("base", "out-1"))
    recipe = {"merge_method": "scaled_pruned_delta", **two}
    config, options = MergeConfiguration.model_validate(recipe), MergeOptions()
    assert missing_from(merged, base, config, options) is None

    def without(*names):
        return replace(merged, shapes={n: shape for n, shape in merged.shapes.items() if n not in names})

    assert LAYER in str(missing_from(without(LAYER), base, config, options))
    sliced = config.model_copy(update={"slices": ["any"]})
    kinds = "model.layers.*.mlp.up_proj.weight"
    assert kinds in str(missing_from(without(LAYER), base, sliced, options))
    assert "model.norm.weight" in str(missing_from(without("model.norm.weight"), base, sliced, options))
    other = replace(merged, shapes={**merged.shapes, LAYER: (1, 2)})
    assert f"{LAYER} would have shape (1, 2)" in str(missing_from(other, base, config, options))
    typed = replace(merged, dtypes={**merged.dtypes, LAYER: "F16"})
    assert f"{LAYER} would be written as F16, and F32" in str(missing_from(typed, base, config, options))
    asked = config.model_copy(update={"dtype": "bfloat16"})
    assert "BF16 was asked for" in str(missing_from(merged, base, asked, options))
