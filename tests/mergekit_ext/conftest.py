"""Tiny models on disk, and recipes carried out on them."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec

os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import yaml
from transformers import LlamaForCausalLM

from corsa_plugins.errors import CorsaError
from tests.conftest import llama
from tests.support.edited import changed, stored

collect_ignore_glob = [] if find_spec("mergekit") else ["test_*.py"]

VOCABULARY = 64


class Workshop:
    """Saves models, carries out recipes."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def save(self, name, model, **options):
        model.save_pretrained(self.folder / name, **options)
        return str(self.folder / name)

    def recipe(self, **settings):
        self.count += 1
        path = self.folder / f"recipe-{self.count}.yaml"
        path.write_text(yaml.safe_dump({"merge_method": "scaled_pruned_delta", **settings}))
        return path

    def merge(self, options=None, **settings):
        """The merged tensors, by name."""
        from mergekit.options import MergeOptions

        from mergekit_ext.merging import merge_recipe

        recipe = self.recipe(**settings)
        out = self.folder / f"out-{self.count}"
        self.merged = merge_recipe(recipe, out, MergeOptions(quiet=True, **(options or {})))
        return stored(out)


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture(scope="session")
def _base_model() -> LlamaForCausalLM:
    return llama(VOCABULARY)


@pytest.fixture
def base_model(_base_model):
    return copy.deepcopy(_base_model)


@pytest.fixture
def two(workshop, base_model):
    """A base and an edited model on disk, and the settings of a recipe for them."""
    base, edited = workshop.save("base", base_model), workshop.save("edited", changed(base_model, 1))
    return {"base_model": base, "models": [{"model": edited}]}


def files(folder):
    """The names in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def refuse(workshop):
    def call(match, options=None, **settings):
        """The recipe is refused with such a message, and nothing is left of the output."""
        from mergekit.options import MergeOptions

        from mergekit_ext.merging import merge_recipe

        before = files(workshop.folder)
        recipe = workshop.recipe(**settings)
        with pytest.raises(CorsaError, match=match):
            merge_recipe(recipe, workshop.folder / "refused", MergeOptions(quiet=True, **(options or {})))
        assert files(workshop.folder) == sorted([*before, recipe.name])

    return call
