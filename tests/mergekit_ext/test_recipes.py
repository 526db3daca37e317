"""The packaged recipes and those of the examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mergekit_ext.checks import check_settings
from mergekit_ext.merging import read_recipe
from mergekit_ext.recipes import find_recipe, recipe_names
from tests.support.edited import changed, stored

EXAMPLES = Path(__file__).parents[2] / "examples" / "mergekit"


class TestRecipes:
    @pytest.mark.parametrize("name", [*recipe_names(), *sorted(map(str, EXAMPLES.glob("*.yaml")))])
    def test_recipes_are_of_our_method_and_in_range(self, name):
        config, text = read_recipe(name)
        assert config.merge_method == "scaled_pruned_delta"
        assert config.base_model is not None
        check_settings(config)
        assert text.startswith("#")

    @pytest.mark.parametrize("name", recipe_names())
    def test_packaged_recipes_merge_when_the_models_are_there(self, workshop, base_model, name):
        import peft

        models = {name: changed(base_model, seed) for seed, name in enumerate(("base", "one", "two"))}
        folders = {name: workshop.save(name, model) for name, model in models.items()}
        peft.get_peft_model(base_model, peft.LoraConfig(target_modules="all-linear")).save_pretrained(
            workshop.folder / "adapter"
        )
        text = find_recipe(name).read_text()
        for theirs, ours in (("Qwen/Qwen2.5-7B-Instruct", folders["base"]), ("./qwen2.5-7b-rsft", folders["one"]),
                             ("./edited-facts", folders["one"]), ("./edited-code", folders["two"]),
                             ("./adapter", str(workshop.folder / "adapter"))):  # fmt: skip
            text = text.replace(theirs, ours)
        assert workshop.merge(**yaml.safe_load(text)).keys() == stored(folders["base"]).keys()

    def test_the_papers_settings(self):
        (model,) = yaml.safe_load(find_recipe("rsft-qwen2.5-7b").read_text())["models"]
        assert model["parameters"] == {"weight": 0.8, "density": 0.2}
