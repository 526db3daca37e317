"""Everything that decides a testbed, as plain data, and the key it is cached under."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from corsa_plugins.settings import Count, NonNegative, NonNegativeInt, Positive, Settings, Share
from corsa_plugins.testbed.facts import WorldConfig

# Raised whenever the code builds something else from the same recipe (templates, documents, file layout, ...).
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Size of the Llama-architecture decoder. The FFN is wide so that its keys leave a null space."""

    layers: Count = 3
    hidden: Count = 128
    ffn: Count = 1024
    heads: Count = 4
    vocab: Count = 2048
    max_length: Count = 256


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How the decoder learns the world.

    Args:
        steps: optimiser steps.
        rows: packed rows in a batch.
        row_length: tokens in a row.
        learning_rate: peak of a cosine schedule to zero.
        warmup: steps of linear warm-up.
        weight_decay: of every matrix.
        biographies: share of the documents that are biographies; the rest ask for one fact in one form.
        joined: share of the documents that see the one before them, as one text.
        rumours: share of the statements that give a random answer. Statements are thus believed less firmly than
            questions, and an edit of the statement has further to go before it changes the questions too.
        sheltered: share of the documents that can read a name at its last token and behind the first block only,
            see `train.visibility`.
        text_weight: weight in the loss of a token that is no answer; an answer token weighs 1.
        bfloat16: autocast the matrix products where the processor has the instructions, which is twice as fast. Weights
            stay float32.
    """

    steps: Count = 1000
    rows: Count = 32
    row_length: Count = 128
    learning_rate: Positive = 3e-3
    warmup: NonNegativeInt = 50
    weight_decay: NonNegative = 0.01
    biographies: Share = 0.35
    joined: Share = 0.3
    rumours: Share = 0.15
    sheltered: Share = 0.8
    text_weight: NonNegative = 0.1
    bfloat16: bool = True


@dataclass(frozen=True)
class TestbedRecipe(Settings):
    """A testbed, before it is built: its world, its model, its training, and the `seed` of the last two."""

    __test__ = False  # the name starts with "Test", and pytest would collect it

    world: WorldConfig = field(default_factory=WorldConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def key(self) -> str:
        """Hash of every setting and of the format version: the name of this testbed's cache folder."""
        text = json.dumps({"format": FORMAT_VERSION, **self.as_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def reduced_recipe() -> TestbedRecipe:
    """A world small enough to be learnt in seconds on one core, for tests."""
    return TestbedRecipe(
        world=WorldConfig(n_subjects=16, n_relations=3, n_answers=6),
        model=ModelConfig(layers=2, hidden=64, ffn=128, heads=4, vocab=512, max_length=256),
        # Matrices this small gain nothing from bfloat16.
        training=TrainingConfig(steps=400, rows=8, row_length=96, warmup=10, learning_rate=5e-3, bfloat16=False),
    )
