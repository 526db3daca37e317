"""A merge as a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from corsa_plugins.merging.recipe import METHOD, delta_recipe


def test_what_is_the_default_is_left_out():
    recipe = delta_recipe("owner/base", "./edited", 0.8, 0.2)
    assert recipe == {
        "merge_method": METHOD,
        "base_model": "owner/base",
        "models": [{"model": "./edited", "parameters": {"weight": 0.8, "density": 0.2}}],
    }
    other = delta_recipe("owner/base", "./edited", 0.8, 0.2, per_row=True, prune_vectors=False)
    assert other == {**recipe, "parameters": {"per_row": True, "prune_vectors": False}}
    assert yaml.safe_load(yaml.safe_dump(other)) == other


@pytest.mark.parametrize("name", ["a+b", "user@host"])
def test_a_folder_is_a_folder_whatever_its_name_and_a_text_is_mergekits(name):
    assert delta_recipe(Path(name), Path("plain"), 1, 1)["base_model"] == {"model": {"path": name}}
    assert delta_recipe(name, Path("plain"), 1, 1)["base_model"] == name
    assert delta_recipe(name, Path("plain"), 1, 1)["models"][0]["model"] == "plain"
    adapted = delta_recipe("base", "base", 1, 1, adapter=Path(name))["models"][0]["model"]
    assert adapted == {"model": "base", "lora": {"path": name}}
    assert delta_recipe("b", Path("b"), 1, 1, adapter=Path("c"))["models"][0]["model"] == "b+c"


def test_mergekit_reads_it():
    config = pytest.importorskip("mergekit.config")
    for base in (Path("/models/a+b@c"), "/models/base"):
        recipe = config.MergeConfiguration.model_validate(delta_recipe(base, "/models/base+adapter", 0.8, 0.2))
        assert recipe.base_model.model.path == str(base)
        assert recipe.models[0].model.lora.path == "adapter"
    recipe = config.MergeConfiguration.model_validate(delta_recipe("b", Path("b@1"), 1, 1, adapter=Path("c+d")))
    assert (recipe.models[0].model.model.path, recipe.models[0].model.lora.path) == ("b@1", "c+d")
