"""Building a testbed from its recipe, and reading one from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from corsa_plugins.manifest import write_manifest
from corsa_plugins.testbed.corpus import sentences
from corsa_plugins.testbed.recipe import TestbedRecipe
from corsa_plugins.testbed.tokenizer import train_tokenizer
from corsa_plugins.testbed.train import new_model, train
from corsa_plugins.testbed.world import World

RECIPE_FILE = "recipe.json"
WORLD_FILE = "world.json"


@dataclass(frozen=True)
class Testbed:
    """A small model that knows a small world.

    Attributes:
        model: float32, in eval mode; a fresh copy for every `load_testbed`, so editing it harms nobody.
        tokenizer: adds no token to a prompt; pads on the right.
        world: what is true, and how to ask for it.
        recipe: what it was built from.
        path: folder that `AutoModelForCausalLM` and `AutoTokenizer` load from.
    """

    __test__ = False  # the name starts with "Test", and pytest would collect it

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    world: World
    recipe: TestbedRecipe
    path: Path


def build_testbed(recipe: TestbedRecipe, path: str | Path) -> Testbed:
    """Train the testbed of `recipe`, write it to the folder `path`, and return it as read back from there.

    The weights are stored as float16 to halve the size; what is returned, and everything measured, is after that
    rounding. Takes minutes for the default recipe and seconds for `reduced_recipe()`.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    world = World.build(recipe.world)
    tokenizer = train_tokenizer(sentences(world), recipe.model.vocab, recipe.model.max_length)
    model = train(new_model(recipe.model, tokenizer, recipe.seed), tokenizer, world, recipe)
    model.to(torch.float16).save_pretrained(path)
    # The file is half precision; whoever loads it, with whatever tool, is to compute in full precision.
    model.config.dtype = torch.float32
    model.config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / RECIPE_FILE).write_text(json.dumps(recipe.as_dict(), indent=1) + "\n", encoding="utf-8")
    (path / WORLD_FILE).write_text(json.dumps(world.to_dict(), indent=1) + "\n", encoding="utf-8")
    write_manifest(path, recipe=recipe.key())
    return read_testbed(path)


def read_testbed(path: str | Path) -> Testbed:
    """Read what `build_testbed` wrote; the weights come back as float32."""
    path = Path(path)
    return Testbed(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(),
        tokenizer=AutoTokenizer.from_pretrained(path),
        world=World.from_dict(json.loads((path / WORLD_FILE).read_text(encoding="utf-8"))),
        recipe=TestbedRecipe.from_dict(json.loads((path / RECIPE_FILE).read_text(encoding="utf-8"))),
        path=path,
    )
