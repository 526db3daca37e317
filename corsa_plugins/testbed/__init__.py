"""The embedded default: a small model that truly knows a small world of facts.

It is what the demo, the tests and the benchmarks edit, and it needs no download::

    testbed = load_testbed()
    plan = testbed.world.edit_rounds(n_rounds=3, size=100, untouched=500)
    plan.rounds[0][0].prompt, plan.rounds[0][0].target_new

The model and tokenizer are ordinary transformers objects; `testbed.path` is a folder that `from_pretrained` loads.
"""

from corsa_plugins.testbed.build import Testbed, build_testbed
from corsa_plugins.testbed.cache import load_testbed
from corsa_plugins.testbed.edits import EditPlan
from corsa_plugins.testbed.facts import Fact, WorldConfig
from corsa_plugins.testbed.lora import LoraDefaults
from corsa_plugins.testbed.manifest import BrokenTestbedError
from corsa_plugins.testbed.recipe import ModelConfig, TestbedRecipe, TrainingConfig, reduced_recipe
from corsa_plugins.testbed.texts import texts_of_testbed
from corsa_plugins.testbed.world import World

__all__ = [
    "BrokenTestbedError",
    "EditPlan",
    "Fact",
    "LoraDefaults",
    "ModelConfig",
    "Testbed",
    "TestbedRecipe",
    "TrainingConfig",
    "World",
    "WorldConfig",
    "build_testbed",
    "load_testbed",
    "reduced_recipe",
    "texts_of_testbed",
]
